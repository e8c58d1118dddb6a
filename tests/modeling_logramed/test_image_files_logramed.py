"""Image files of every depth against independent readers and writers, and files that are damaged somewhere."""

import gzip
import io
import struct
import zlib

import numpy as np
import png
import pytest
import tifffile
from PIL import Image, ImageOps

from logramed.eval.image_check import find_decoding_problem
from logramed.image_files_logramed import USUAL_BIT_DEPTHS, read_pixels, scale_to_8_bits
from logramed.image_processing_logramed import convert_to_rgb, load_image


BLACK = (0, 0, 0)
HEIGHT, WIDTH = 11, 17
PLANES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def draw(channels, top, seed=0):
    """Random pixels up to `top`, which one of them has; alpha is of the same depth."""
    values = np.random.default_rng(seed).integers(0, top + 1, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    values[0, 0] = top
    return values


def png_bytes(values, interlace=False):
    file = io.BytesIO()
    channels = values.shape[-1]
    writer = png.Writer(
        WIDTH, HEIGHT, greyscale=channels < 3, alpha=channels in (2, 4), bitdepth=16, interlace=interlace
    )
    writer.write(file, values.reshape(HEIGHT, -1).tolist())
    return file.getvalue()


def tiff_bytes(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def opened(content):
    return Image.open(io.BytesIO(content))


def expected_rgb(values):
    """The colours by the depth that holds them, over black where alpha says so."""
    top = next(2**bits - 1 for bits in USUAL_BIT_DEPTHS if values.max() < 2**bits)
    has_alpha = values.shape[-1] in (2, 4)
    colors = (values[..., :-1] if has_alpha else values).astype(float) / top
    alpha = values[..., -1:].astype(float) / top if has_alpha else 1.0
    return np.broadcast_to(255 * colors * alpha, (HEIGHT, WIDTH, 3))


def assert_close(image, expected, tolerance=1.6):
    found = np.asarray(convert_to_rgb(image, BLACK)).astype(float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("bits", USUAL_BIT_DEPTHS)
@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("mode", PLANES)
def test_png_of_16_bits_keeps_the_depth_of_every_channel(mode, bits, interlace):
    values = draw(PLANES[mode], 2**bits - 1)
    content = png_bytes(values, interlace)
    read = np.array(list(png.Reader(bytes=content).read()[2])).reshape(values.shape)
    assert (read == values).all()  # the file is what it should be
    assert_close(opened(content), expected_rgb(values))


TIFF_LAYOUTS = {
    "little-endian": {"byteorder": "<"},
    "big-endian": {"byteorder": ">"},
    "deflate": {"compression": "zlib"},
    "deflate, big-endian": {"compression": "zlib", "byteorder": ">"},
    "predictor": {"compression": "zlib", "predictor": True},
    "tiles": {"tile": (16, 16)},
    "strips": {"rowsperstrip": 3},
}


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("layout", TIFF_LAYOUTS)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_tiff_of_16_bits_keeps_the_depth_of_every_channel(mode, layout, bits):
    values = draw(PLANES[mode], 2**bits - 1)
    options = {"photometric": "minisblack" if mode == "L" else "rgb", **TIFF_LAYOUTS[layout]}
    options |= {"extrasamples": ["unassalpha"]} if mode == "RGBA" else {}
    content = tiff_bytes(values[..., 0] if mode == "L" else values, **options)
    assert (tifffile.imread(io.BytesIO(content)).reshape(values.shape) == values).all()
    assert_close(opened(content), expected_rgb(values))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_tiff_whose_zero_is_white_is_inverted(bits):
    values = draw(1, 2**bits - 1)
    content = tiff_bytes(values[..., 0], photometric="miniswhite")
    assert_close(opened(content), 255 - expected_rgb(values))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (draw(1, 65535)[..., 0].astype(np.int32) - 1024, None, None),  # Hounsfield units
        ((draw(1, 30000)[..., 0].astype(np.int32) - 1024).astype(np.int16), None, None),
        ((draw(1, 1000)[..., 0] / 1000).astype(np.float32), 0, 1),
        ((draw(1, 1000)[..., 0] - 500.0).astype(np.float32), None, None),
    ],
    ids=["int32", "int16", "float in 0..1", "float"],
)
def test_signed_and_floating_point_tiff_is_scaled_by_its_range(values, low, high, byteorder):
    content = tiff_bytes(values, photometric="minisblack", byteorder=byteorder)
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    expected = 255 * (values.astype(float) - low) / (high - low)
    assert_close(opened(content), np.broadcast_to(expected[..., None], (HEIGHT, WIDTH, 3)))


@pytest.mark.parametrize(
    "values",
    [draw(1, 9)[..., 0].astype(np.float64), draw(3, 9).astype(np.float32), draw(3, 9).astype(np.uint32)],
    ids=["float64", "float RGB", "32-bit RGB"],
)
def test_depths_that_pillow_does_not_read_are_refused_by_name(tmp_path, values):
    path = tmp_path / "deep.tif"
    path.write_bytes(tiff_bytes(values, photometric="rgb" if values.ndim == 3 else "minisblack"))
    with pytest.raises(ValueError, match=r"The image .*deep\.tif cannot be read"):
        load_image(path)


def test_channels_that_lie_apart_are_refused_not_read_wrongly(tmp_path):
    path = tmp_path / "planar.tif"
    path.write_bytes(tiff_bytes(np.moveaxis(draw(3, 4095), -1, 0), photometric="rgb", planarconfig="separate"))
    with pytest.raises(ValueError, match=r"planar\.tif cannot be read: its 16-bit channels are stored separately"):
        load_image(path)


def test_a_colour_that_stands_for_transparent_is_background():
    values = draw(3, 4095)
    file = io.BytesIO()
    png.Writer(WIDTH, HEIGHT, greyscale=False, bitdepth=16, transparent=tuple(map(int, values[3, 5]))).write(
        file, values.reshape(HEIGHT, -1).tolist()
    )
    expected = expected_rgb(values).copy()
    expected[(values == values[3, 5]).all(-1)] = 0
    assert_close(opened(file.getvalue()), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_every_orientation_is_honoured_once(form, orientation):
    image, exif, file = Image.fromarray(draw(3, 255).astype(np.uint8)), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(opened(file.getvalue())).convert("RGB"))
    once = read_pixels(opened(file.getvalue()))
    loaded = opened(file.getvalue())
    loaded.load()
    for found in (once, read_pixels(once), read_pixels(loaded)):
        assert (np.asarray(found.convert("RGB")) == expected).all()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_deep_tiff_is_turned_once(orientation):
    values = draw(3, 4095)
    content = tiff_bytes(values, photometric="rgb", extratags=[(0x0112, 3, 1, orientation, True)])
    turns = {1: 0, 3: 2, 6: -1}[orientation]
    expected = np.rot90(scale_to_8_bits(values), turns)
    assert (np.asarray(read_pixels(opened(content))) == expected).all()


def chunk(kind, content, damaged=False):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ damaged)


def with_chunk(content, kind, data, before=b"IEND"):
    """A PNG with one more chunk."""
    place = content.index(before) - 4
    return content[:place] + chunk(kind, data) + content[place:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: with_chunk(content, b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 30),
        lambda content: with_chunk(content, b"eXIf", b"not at all"),
        lambda content: with_chunk(content, b"zTXt", b"Comment\0\0not deflated"),
        lambda content: with_chunk(content, b"iCCP", b"profile\0\0not deflated", before=b"IDAT"),
    ],
    ids=["exif", "no exif", "comment", "profile"],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_are_used_whatever_the_metadata_say(damage, bits):
    values = draw(3, 2**bits - 1)
    if bits == 8:
        file = io.BytesIO()
        Image.fromarray(values.astype(np.uint8)).save(file, "PNG")
    content = damage(png_bytes(values) if bits == 16 else file.getvalue())
    assert_close(opened(content), expected_rgb(values))


OTHER_FILES = {
    "DICOM": b"\0" * 128 + b"DICM" + b"\0" * 300,
    "NIfTI": b"\x5c\x01" + b"\0" * 342 + b"n+1\0" + b"\0" * 100,
    "packed NIfTI": gzip.compress(b"\x5c\x01" + b"\0" * 342 + b"n+1\0" + b"\0" * 100),
    "HEIC": b"\0\0\0\x18ftypheic" + b"\0" * 100,
    "PDF": b"%PDF-1.7",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "web page": b"<!DOCTYPE html><html></html>",
    "no image": b"hello",
    "empty": b"",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_named_with_what_to_do(tmp_path, name):
    path = tmp_path / "scan.dat"
    path.write_bytes(OTHER_FILES[name])
    with pytest.raises(ValueError, match=r"scan\.dat cannot be read: it is ") as refused:
        load_image(path)
    assert name.split()[-1] in str(refused.value)
    problem = find_decoding_problem(str(path))
    if name.endswith(("DICOM", "NIfTI")):  # training and evaluation read them, and these are none
        assert "scan.dat: it " in problem
    else:
        assert problem in str(refused.value)


def all_forms():
    """A small file of each supported format, with an orientation, a profile and a comment where it can have them."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a comment"
    rgb, grey = Image.fromarray(draw(3, 255).astype(np.uint8)), Image.fromarray(draw(1, 255)[..., 0].astype(np.uint8))
    forms = {"deep.png": png_bytes(draw(3, 4095)), "deep.tif": tiff_bytes(draw(3, 4095), photometric="rgb")}
    saves = {
        "PNG": (rgb, {"exif": exif}),
        "JPEG": (rgb, {"exif": exif, "comment": "a comment"}),
        "TIFF": (rgb, {"exif": exif, "compression": "tiff_deflate"}),
        "WEBP": (rgb, {"exif": exif}),
        "GIF": (grey, {"comment": "a comment", "transparency": 3}),
        "BMP": (rgb, {}),
        "PPM": (rgb, {}),
        "JPEG2000": (rgb, {}),
    }
    for form, (image, options) in saves.items():
        file = io.BytesIO()
        image.save(file, form, **options)
        forms[form] = file.getvalue()
    return forms


def damage(content, generator):
    """Bytes changed, cut, repeated or put in, mostly where headers and metadata are."""
    if not content:
        return content
    place = int(min(generator.exponential(len(content) / 6), len(content) - 1))
    kind, length = generator.integers(4), int(generator.integers(1, 9))
    if kind == 0:
        changed = bytearray(content)
        for offset in range(place, min(place + length, len(content))):
            changed[offset] = generator.integers(256)
        return bytes(changed)
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[place + length :]
    return content[:place] + generator.bytes(length) + content[place:]


def check_damaged(path, content):
    """Either the pixels or a sentence that names the file; and the check before training finds what training would."""
    path.write_bytes(content)
    problem = find_decoding_problem(str(path))
    if problem is None:
        assert convert_to_rgb(load_image(path), BLACK, f"The image {path}").mode == "RGB"
        return True
    with pytest.raises(ValueError, match=path.name):
        convert_to_rgb(load_image(path), BLACK, f"The image {path}")
    return False


@pytest.mark.parametrize("name", all_forms())
def test_a_damaged_file_gives_its_pixels_or_is_named(tmp_path, name, recwarn):
    generator = np.random.default_rng(1)
    read = [check_damaged(tmp_path / "damaged", damage(all_forms()[name], generator)) for _ in range(60)]
    assert 0 < sum(read) < len(read)


@pytest.mark.slow
@pytest.mark.parametrize("name", all_forms())
def test_damaged_files_at_length(tmp_path, name, recwarn):
    generator = np.random.default_rng(2)
    for _ in range(2000):
        check_damaged(tmp_path / "damaged", damage(damage(all_forms()[name], generator), generator))
