import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from logramed.image_processing_logramed import (
    LoGraMedImageProcessor,
    convert_to_rgb,
    flatten_images,
    image_from_array,
    pad_to_square,
    scale_to_8_bits,
)


BACKGROUND = (1, 2, 3)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def raw_processor(**settings):
    """An image processor whose output is the pixels of the padded, resized image."""
    return LoGraMedImageProcessor(do_rescale=False, do_normalize=False, **settings)


def pixels_of(image, size=4, **settings):
    """`(height, width, 3)` of the image processor's output for one image."""
    return raw_processor(size=size, **settings)(image)["pixel_values"][0].transpose(1, 2, 0)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_pixel_values_are_clip_normalized_float32():
    white = Image.new("RGB", (4, 4), "white")
    pixel_values = LoGraMedImageProcessor(size=4)(white, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 4, 4)
    assert pixel_values.dtype == torch.float32
    expected = (1 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    torch.testing.assert_close(pixel_values[0, :, 2, 1], expected)


def test_a_square_image_of_the_right_size_keeps_its_pixels(generator):
    values = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert np.array_equal(pixels_of(Image.fromarray(values)), values)


@pytest.mark.parametrize(
    ("width", "height", "box"), [(8, 4, np.s_[2:6, :]), (4, 8, np.s_[:, 2:6]), (8, 5, np.s_[1:6, :])]
)
def test_padding_centers_the_whole_image_on_the_mean_color(generator, width, height, box):
    values = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    square = np.asarray(pad_to_square(Image.fromarray(values), BACKGROUND))
    assert square.shape == (8, 8, 3)
    assert np.array_equal(square[box], values)
    inside = np.zeros((8, 8), dtype=bool)
    inside[box] = True
    assert (square[~inside] == BACKGROUND).all()


def test_a_square_image_is_prepared_as_clip_does(generator):
    transformers = pytest.importorskip("transformers", minversion="5")
    clip = transformers.CLIPImageProcessorPil(size={"height": 24, "width": 24}, do_center_crop=False)
    image = Image.fromarray(generator.integers(0, 256, (50, 50, 3), dtype=np.uint8))
    expected = clip(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(LoGraMedImageProcessor(size=24)(image)["pixel_values"], expected, rtol=0, atol=1e-6)


def test_padding_is_close_to_zero_after_normalization():
    pixel_values = LoGraMedImageProcessor(size=8)(Image.new("RGB", (8, 2), "white"))["pixel_values"]
    assert np.abs(pixel_values[0, :, 0]).max() < 1 / 255 / min(OPENAI_CLIP_STD)


def test_the_border_of_a_wide_image_stays_in_sight():
    values = np.zeros((10, 40), dtype=np.uint8)
    values[:, :4], values[:, -4:] = 255, 255
    pixels = pixels_of(values, size=20)
    assert pixels[10, 0].min() > 200
    assert pixels[10, -1].min() > 200


def test_without_padding_the_image_fills_the_square():
    pixels = pixels_of(Image.new("RGB", (8, 2), "white"), size=4, do_pad_to_square=False)
    assert (pixels == 255).all()


def test_settings_of_a_call_precede_those_of_the_processor():
    processor = LoGraMedImageProcessor(size=4)
    image = Image.new("RGB", (8, 2), "white")
    of_call = processor(image, size=6, do_pad_to_square=False, do_normalize=False, do_rescale=False)["pixel_values"]
    assert of_call.shape == (1, 3, 6, 6)
    assert (of_call == 255).all()
    assert processor(image)["pixel_values"].shape == (1, 3, 4, 4)


@pytest.mark.parametrize("size", [6, {"height": 6, "width": 6}, {"shortest_edge": 6}])
def test_size_is_a_square(size):
    assert LoGraMedImageProcessor(size=size).size == {"height": 6, "width": 6}


@pytest.mark.parametrize("size", [{"height": 6, "width": 8}, 0, {}])
def test_size_other_than_a_square_is_refused(size):
    with pytest.raises(ValueError, match="`size` must be one side of a square"):
        LoGraMedImageProcessor(size=size)


# -- depth ----


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_deep_pixels_use_the_full_range_of_their_depth(bits, top):
    values = np.array([[0, top // 2, top]], dtype=np.uint16)
    assert scale_to_8_bits(values).tolist() == [[0, 127, 255]]


def test_deep_pixels_keep_black_and_their_order(generator):
    values = np.sort(generator.integers(100, 3000, 50)).astype(np.uint16)
    scaled = scale_to_8_bits(values).astype(int)
    assert (np.diff(scaled) >= 0).all()
    assert np.abs(scaled - values * (255 / 4095)).max() <= 0.5


def test_values_below_zero_are_scaled_by_their_own_range():
    assert scale_to_8_bits(np.array([[-1000, 500, 2000]])).tolist() == [[0, 128, 255]]
    assert scale_to_8_bits(np.full((2, 2), -7)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_files_are_scaled_and_not_clipped_to_white(tmp_path, suffix):
    values = np.linspace(0, 65535, 16).round().astype(np.uint16).reshape(4, 4)
    path = saved(Image.fromarray(values), tmp_path / f"deep.{suffix}")
    assert Image.open(path).mode.startswith("I")
    expected = np.round(values / 65535 * 255)
    assert np.array_equal(pixels_of(path)[:, :, 0], expected)
    assert np.array_equal(pixels_of(Image.open(path))[:, :, 2], expected)
    assert np.array_equal(pixels_of(values)[:, :, 1], expected)


def test_big_endian_and_32_bit_modes_are_scaled_alike():
    values = np.linspace(0, 4095, 16).round().astype(np.uint16).reshape(4, 4)
    expected = np.round(values / 4095 * 255)
    big_endian = Image.frombytes("I;16B", (4, 4), values.astype(">u2").tobytes())
    assert np.array_equal(pixels_of(big_endian)[:, :, 0], expected)
    assert np.array_equal(pixels_of(Image.fromarray(values.astype(np.int32)))[:, :, 0], expected)


def test_floating_point_files_outside_the_unit_range_are_scaled_by_their_own():
    values = np.array([[-1000, 0], [500, 3000]], dtype=np.float32)
    assert pixels_of(Image.fromarray(values), size=2)[:, :, 0].tolist() == [[0, 64], [96, 255]]
    unit = np.array([[0, 0.25], [0.5, 0.5]], dtype=np.float32)
    assert pixels_of(Image.fromarray(unit), size=2)[:, :, 0].tolist() == [[0, 64], [128, 128]]


# -- modes ----


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LA", "RGBA", "PA", "I", "I;16", "F"])
def test_a_gray_ramp_looks_the_same_in_every_mode(mode):
    ramp = Image.fromarray(np.repeat(np.array([[0, 255], [255, 0]], dtype=np.uint8), 2, axis=0).repeat(2, axis=1))
    image = (
        ramp.convert("P").convert("PA") if mode == "PA" else ramp.convert("RGB" if mode in ("CMYK", "HSV") else "L")
    )
    if mode == "F":
        image = image.convert("F").point(lambda value: value / 255)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(ramp, dtype=np.uint16) * 257)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    converted = convert_to_rgb(image, BACKGROUND)
    assert converted.mode == "RGB"
    assert np.abs(np.asarray(converted).astype(int) - np.asarray(ramp)[..., None]).max() <= 1


def test_a_palette_is_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([1, 0])
    assert np.asarray(convert_to_rgb(image, BACKGROUND)).tolist() == [[[40, 50, 60], [10, 20, 30]]]


def test_transparent_pixels_show_the_background(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([1, 0])
    path = saved(palette, tmp_path / "transparent.png", transparency=0)
    assert np.asarray(convert_to_rgb(Image.open(path), BACKGROUND)).tolist() == [[[40, 50, 60], list(BACKGROUND)]]

    rgba = Image.fromarray(np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], dtype=np.uint8))
    assert np.asarray(convert_to_rgb(rgba, BACKGROUND)).tolist() == [[[200, 0, 0], list(BACKGROUND)]]
    gray = Image.merge("LA", (Image.new("L", (1, 1), 90), Image.new("L", (1, 1), 0)))
    assert np.asarray(convert_to_rgb(gray, BACKGROUND)).tolist() == [[list(BACKGROUND)]]


def test_a_cmyk_file_has_its_colors(tmp_path):
    path = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "red.jpg", quality=95)
    red, green, blue = pixels_of(path, size=8)[4, 4]
    assert red > 230
    assert max(green, blue) < 25


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, generator, orientation):
    upright = Image.fromarray(generator.integers(0, 256, (4, 4), dtype=np.uint8))
    transpose = Image.Transpose
    # How a camera stores an image that is shown upright, by EXIF orientation.
    undo = {
        1: None,
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_90,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "rotated.png", exif=exif)
    assert np.array_equal(pixels_of(path)[:, :, 0], np.asarray(upright))
    assert np.array_equal(pixels_of(Image.open(path))[:, :, 0], np.asarray(upright))


def test_a_rotated_16_bit_image_is_turned_and_scaled(tmp_path):
    values = np.array([[0, 65535], [30000, 40000]], dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3
    path = saved(Image.fromarray(values), tmp_path / "rotated.png", exif=exif)
    assert np.array_equal(pixels_of(path, size=2)[:, :, 0], np.round(values[::-1, ::-1] / 65535 * 255))


def test_the_first_frame_of_several_is_taken(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (50, 100)]
    path = saved(frames[0], tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    assert (pixels_of(path) == 50).all()


def test_other_modes_are_refused_where_conversion_is_off():
    with pytest.raises(ValueError, match=r"`images\[0\]` must be RGB .* got mode L"):
        LoGraMedImageProcessor(size=4, do_convert_rgb=False)(Image.new("L", (4, 4)))


# -- arrays ----


def test_arrays_and_tensors_of_either_layout_give_the_same_pixels(generator):
    values = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    first = np.ascontiguousarray(values.transpose(2, 0, 1))
    alike = [
        values,
        first,
        torch.from_numpy(first),
        torch.from_numpy(values),
        values.astype(np.int64),
        values.astype(np.float32) / 255,
        torch.from_numpy(first).to(torch.float64) / 255,
    ]
    for image in alike:
        assert np.array_equal(pixels_of(image), values)


def test_gray_arrays_are_repeated_over_the_channels(generator):
    values = generator.integers(0, 256, (4, 4), dtype=np.uint8)
    for image in (values, values[..., None], values[None], torch.from_numpy(values), torch.from_numpy(values)[None]):
        assert np.array_equal(pixels_of(image), np.repeat(values[..., None], 3, axis=2))


def test_true_is_white():
    assert pixels_of(np.array([[True, False], [False, True]]), size=2)[:, :, 0].tolist() == [[255, 0], [0, 255]]


def test_an_array_of_four_channels_has_transparency():
    values = np.zeros((4, 4, 4), dtype=np.uint8)
    assert (pixels_of(values) == [int(255 * mean) for mean in OPENAI_CLIP_MEAN]).all()


def test_an_ambiguous_layout_goes_by_the_kind_of_array_or_as_told(generator):
    values = generator.integers(0, 256, (3, 5, 3), dtype=np.uint8)
    assert image_from_array(values, "it").size == (5, 3)
    assert image_from_array(torch.from_numpy(values), "it").size == (3, 5)
    assert image_from_array(values, "it", "channels_first").size == (3, 5)
    pixels = LoGraMedImageProcessor(size=4)
    as_told = pixels(values, input_data_format="channels_first")["pixel_values"]
    assert np.array_equal(as_told, pixels(torch.from_numpy(values))["pixel_values"])


# -- lists and sources ----


def test_nested_lists_and_batches_are_flattened_in_order():
    images = [Image.new("L", (4, 4), level) for level in (10, 20, 30)]
    nested = [[images[0], images[1]], [], None, [images[2]]]
    assert flatten_images(nested) == images
    pixel_values = raw_processor(size=4)(nested)["pixel_values"]
    assert pixel_values[:, 0, 0, 0].tolist() == [10, 20, 30]
    batch = np.stack([np.asarray(image) for image in images])[..., None]
    assert np.array_equal(raw_processor(size=4)(batch)["pixel_values"], pixel_values)


def test_one_by_one_equals_batched(generator):
    images = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in [(9, 5), (7, 7, 3), (3, 30, 40)]]
    processor = LoGraMedImageProcessor(size=8)
    batched = processor(images)["pixel_values"]
    assert np.array_equal(batched, np.concatenate([processor(image)["pixel_values"] for image in images]))


def test_a_path_an_address_and_an_image_are_the_same(tmp_path, generator):
    image = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    path = saved(image, tmp_path / "image.png")
    address = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (path, str(path), address):
        assert np.array_equal(pixels_of(source), np.asarray(image))


@pytest.mark.parametrize(("return_tensors", "kind"), [("pt", torch.Tensor), ("np", np.ndarray), (None, np.ndarray)])
def test_return_tensors(return_tensors, kind):
    pixel_values = LoGraMedImageProcessor(size=4)(Image.new("L", (4, 4)), return_tensors=return_tensors)[
        "pixel_values"
    ]
    assert isinstance(pixel_values, kind)
    assert pixel_values.dtype in (torch.float32, np.float32)


# -- refusals ----


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((6, 5, 2), np.uint8), r"`images\[0\]` must have the shape .* got \(6, 5, 2\)"),
        (np.zeros(4, np.uint8), r"`images\[0\]` must have the shape .* got \(4,\)"),
        (np.zeros((0, 4), np.uint8), r"`images\[0\]` is empty: its shape is \(0, 4\)"),
        (Image.new("L", (0, 4)), r"`images\[0\]` is empty: it is 0 pixels wide"),
        (np.full((4, 4), 255.0), r"`images\[0\]` holds floating point numbers from 255 to 255.*0\.\.1"),
        (np.full((4, 4), np.nan), r"`images\[0\]` holds floating point numbers from nan"),
        ([], r"`images` holds no image"),
    ],
)
def test_an_impossible_image_is_refused(image, words):
    with pytest.raises(ValueError, match=words):
        LoGraMedImageProcessor(size=4)(image)


@pytest.mark.parametrize("image", [5, {"image": 1}, np.zeros((4, 4), complex)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(TypeError, match=r"`images\[0\]` must"):
        LoGraMedImageProcessor(size=4)(image)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image file .*missing\.png"):
        LoGraMedImageProcessor(size=4)([Image.new("L", (4, 4)), tmp_path / "missing.png"])


def test_an_unreadable_file_is_named(tmp_path, generator):
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(ValueError, match=r"image .*text\.png cannot be read"):
        LoGraMedImageProcessor(size=4)(text)
    whole = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, format="jpeg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ValueError, match=r"image .*cut\.jpg cannot be read"):
        LoGraMedImageProcessor(size=4)(cut)


# -- files ----


def test_settings_survive_save_and_load(tmp_path, generator):
    processor = LoGraMedImageProcessor(size=6, do_pad_to_square=False, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    processor.save_pretrained(tmp_path)
    loaded = LoGraMedImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = generator.integers(0, 256, (9, 5), dtype=np.uint8)
    assert np.array_equal(loaded(image)["pixel_values"], processor(image)["pixel_values"])
    resized = LoGraMedImageProcessor.from_pretrained(tmp_path, size=4, do_pad_to_square=True)
    assert resized(image)["pixel_values"].shape == (1, 3, 4, 4)
    assert resized.do_pad_to_square
