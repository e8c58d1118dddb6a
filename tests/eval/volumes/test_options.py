"""Volumes in training rows and evaluations."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import config as datasets_config
from PIL import Image

from logramed.eval import image_check, run
from logramed.eval.arguments import EvaluationArguments
from logramed.eval.image_check import decode, find_unreadable, image_key
from logramed.eval.leakage import find_leakage
from logramed.eval.prompts import build_prompt, load_question_images
from logramed.eval.question_images import list_sources, question_content, show_volumes
from logramed.eval.volumes import VolumeError, VolumeOptions, count_image_tokens, open_image_reference
from logramed.trainer.arguments import DataArguments
from logramed.trainer.data import load_training_rows, open_stream, questions_of_rows
from logramed.trainer.data.collator import LoGraMedDataCollator
from logramed.trainer.data.records import canonical_row
from logramed.trainer.data.rows import RowError
from logramed.trainer.model_loading import find_image_tokens
from logramed.trainer.train import parse_arguments
from tests.eval.conftest import build_tiny_llava, write_tiny_vqa_rad
from tests.tiny import tiny_processor

from .dicom_files import TEXT_TAGS, phantom, write_nifti, write_series, write_slice


OPTIONS = VolumeOptions("slabs", "0,900", 64, lambda: 32)


@pytest.fixture
def folder(tmp_path):
    """Images of all kinds: a picture, a DICOM file without ending, a series and a NIfTI volume."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (6, 5), 128).save(images / "a.png")
    write_slice(images / "scan", phantom()[0], WindowCenter=-900, WindowWidth=200)
    write_series(images / "series", phantom())
    write_nifti(images / "b.nii.gz", phantom())
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_CACHE_HOME", tmp_path / "cache")


def write_rows(folder, rows):
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def describe(row):
    """The content parts of the questions of a row, images by a mark."""
    contents = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return [["<image>" if part["type"] == "image" else part["text"] for part in content] for content in contents]


CONVERSATION = [{"from": "human", "value": "<image>\nIs there a mass?"}, {"from": "gpt", "value": "No."}]
FORMS = {
    "conversations": {"image": "series", "conversations": CONVERSATION},
    "messages": {
        "images": ["series"],
        "messages": [
            {"role": "user", "content": "<image>Is there a mass?"},
            {"role": "assistant", "content": "No."},
        ],
    },
    "prompt": {"images": ["series"], "prompt": "Is there a mass?", "completion": "No."},
    "query": {"images": ["series"], "query": "Is there a mass?", "response": "No."},
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_form_show_the_slices_with_their_places(folder, form):
    path = write_rows(folder, [{"id": "1", **FORMS[form]}])
    loaded = load_training_rows(path, require_extended=False, volumes=OPTIONS)
    row = loaded.dataset[0]
    series = folder / "images" / "series"
    assert row["images"] == [f"{series}#slices=1-3&window=0,900", f"{series}#slices=4-6&window=0,900"]
    expected = ["<image>", "Slice 1 of 2, 2.5 mm", "<image>", "Slice 2 of 2, 10.0 mm\n", "Is there a mass?"]
    assert describe(row) == [expected]
    stream = open_stream(path, require_extended=False, volumes=OPTIONS)
    assert describe(next(iter(stream))) == [expected]
    record = {"id": "1", **FORMS[form]}
    record["images"] = [str(series)]
    record.pop("image", None)
    assert len(canonical_row(record, "row")["images"]) == 6  # of eight at most


def test_several_images_of_a_row_keep_their_places(folder):
    turns = [
        {"from": "human", "value": "<image> and <image>: which is a scan?"},
        {"from": "gpt", "value": "The second."},
        {"from": "human", "value": "And <image>?"},
        {"from": "gpt", "value": "A volume."},
    ]
    rows = [{"id": "1", "images": ["a.png", "scan", "b.nii.gz"], "conversations": turns}]
    row = load_training_rows(write_rows(folder, rows), require_extended=False, volumes=OPTIONS).dataset[0]
    assert describe(row) == [
        ["<image>", "and", "<image>", ": which is a scan?"],
        ["And", "<image>", "Slice 1 of 2, 1.2 mm", "<image>", "Slice 2 of 2, 6.2 mm\n", "?"],
    ]
    names = [name.rpartition("/")[2] for name in row["images"]]
    slabs = [f"b.nii.gz#slices={part}&window=0,900" for part in ("1-2", "3-4")]
    assert names == ["a.png", "scan#slices=1&window=0,900", *slabs]


def test_batches_hold_the_slices(folder):
    rows = [{"id": name, "image": name, "conversations": CONVERSATION} for name in ("a.png", "scan", "series")]
    loaded = load_training_rows(write_rows(folder, rows), require_extended=False, volumes=OPTIONS)
    collator = LoGraMedDataCollator(tiny_processor(), alignment=False)
    batch = collator([loaded.dataset[number] for number in range(3)])
    assert len(batch["pixel_values"]) == 4
    for number, name in enumerate(loaded.dataset[2]["images"]):
        alone = collator.processor.image_processor(open_image_reference(name), return_tensors="pt")["pixel_values"]
        assert np.array_equal(batch["pixel_values"][2 + number], alone[0])


def test_reference_in_a_row_stays_what_it_is(folder):
    rows = [{"id": "1", "image": "series#slices=2-3&window=bone", "conversations": CONVERSATION}]
    loaded = load_training_rows(write_rows(folder, rows), require_extended=False)
    assert loaded.dataset[0]["images"] == [f"{folder}/images/series#slices=2-3&window=bone"]


def test_bad_volume_is_a_bad_row(folder):
    (folder / "images" / "series" / "003").unlink()
    rows = [{"id": name, "image": name, "conversations": CONVERSATION} for name in ("a.png", "series")]
    path = write_rows(folder, rows)
    with pytest.raises(RowError, match=r"field `image`: unreadable image .*series: a slice seems to be missing"):
        load_training_rows(path, require_extended=False)
    loaded = load_training_rows(path, require_extended=False, on_bad_row="skip")
    assert (len(loaded), len(loaded.skipped)) == (1, 1)
    (folder / "images" / "empty").mkdir()
    rows[1]["image"] = "empty"
    with pytest.raises(RowError, match="missing image"):
        load_training_rows(write_rows(folder, rows), require_extended=False)


def test_official_files_may_be_volumes(tmp_path):
    data = write_tiny_vqa_rad(tmp_path / "data")
    records = json.loads((data / "testset.json").read_text())
    (data / "trainset.json").write_text(json.dumps(records))
    image = data / "images" / records[0]["image_name"]
    image.unlink()
    write_series(image, phantom())
    loaded = load_training_rows(data, require_extended=False, volumes=OPTIONS)
    assert sorted({len(images) for images in loaded.dataset["images"]}) == [1, 2]


def test_slices_are_checked_and_remembered_as_images_are(folder, monkeypatch):
    monkeypatch.setattr(image_check, "CHUNK_SIZE", 4)
    series = folder / "images" / "series"
    images = [str(folder / "images" / "a.png"), *(f"{series}#slices={number}&window=auto" for number in range(1, 7))]
    images.append(f"{series}#slices=7&window=auto")
    problems = find_unreadable(images)
    assert problems == {image_key(images[-1]): f"{series}: it has no slices 7 to 7, only 1 to 6"}
    monkeypatch.setattr(image_check, "find_decoding_problem", lambda image: pytest.fail(f"{image} is decoded again"))
    assert find_unreadable(images[:-1]) == {}
    assert decode(images[1]).size == (4, 5)
    before = image_key(images[1])
    write_slice(series / "000", phantom()[1], (10.0, -20.0, 100.0))
    assert image_key(images[1]) != before


def test_no_name_is_in_rows_nor_in_the_cache(folder, capfd):
    rows = [{"id": name, "image": name, "conversations": CONVERSATION} for name in ("scan", "series", "b.nii.gz")]
    loaded = load_training_rows(write_rows(folder, rows), require_extended=False)
    said = "\n".join([json.dumps(loaded.dataset[:]), loaded.fingerprint, *capfd.readouterr()])
    said += "".join(path.read_text() for path in (folder / "cache").rglob("*") if path.is_file())
    assert not [value for value in TEXT_TAGS.values() if value in said]


@pytest.mark.parametrize(
    ("name", "value"), [("window", "liver"), ("slices", "none"), ("slices", "0"), ("volume_tokens", 16)]
)
def test_impossible_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        DataArguments(train_data="a", **{name: value})
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        EvaluationArguments(model="a", benchmark="slake", data="b", output="c", **{name: value})


def test_budget_asks_for_the_tokens_of_an_image_only_where_there_is_a_volume(folder):
    asked = []
    options = VolumeOptions("uniform", "auto", 96, lambda: asked.append(1) or 32)
    assert options.show(str(folder / "images" / "scan"))[0] == [str(folder / "images" / "scan")]
    assert asked == []
    assert len(options.show(str(folder / "images" / "series"))[0]) == 3
    assert len(options.show(str(folder / "images" / "b.nii.gz"))[0]) == 3
    assert asked == [1]


def test_tokens_of_an_image_are_those_of_the_model():
    assert count_image_tokens(tiny_processor(num_image_tokens=4)) == 4
    command = ["quickstart.yaml", "--output_dir", "a", "--train_data", "b"]
    model, data, training = parse_arguments([*command, "--window", "lung", "--slices", "3,5-6"])
    assert (data.volumes.window, data.volumes.slices) == ("lung", "3,5-6")
    vision = model.vision_config
    assert find_image_tokens(model, training) == (vision["image_size"] // vision["patch_size"]) ** 2


def test_tokens_of_another_model_are_counted(tmp_path):
    from transformers import AutoConfig, AutoProcessor

    path = build_tiny_llava(tmp_path / "model")
    vision = AutoConfig.from_pretrained(path).vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    assert count_image_tokens(AutoProcessor.from_pretrained(path)) == tokens


def evaluate(tmp_path, data, name, *options):
    command = ["--model", tmp_path / "model", "--benchmark", "vqa_rad", "--data", data, "--output", tmp_path / name]
    run.main([str(word) for word in (*command, "--max_new_tokens", 6, *options)])
    metrics = json.loads((tmp_path / name / "metrics.json").read_text())
    images = json.loads((tmp_path / name / "local_paths.json").read_text())["images"]
    return metrics, images, (tmp_path / name / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")
def test_evaluation_shows_a_volume_of_one_slice_as_an_image(tmp_path):
    build_tiny_llava(tmp_path / "model")
    data = write_tiny_vqa_rad(tmp_path / "data")
    records = json.loads((data / "testset.json").read_text())
    image = data / "images" / records[0]["image_name"]
    image.unlink()
    write_slice(image, phantom()[0])
    plain, images, report = evaluate(tmp_path, data, "plain")
    assert str(image) in images.values()
    assert plain["run"]["num_questions"] == len(records)
    assert plain["run"]["window"] == "auto"
    assert not [value for value in TEXT_TAGS.values() if value in report]
    bone, images, _ = evaluate(tmp_path, data, "bone", "--window", "bone", "--no_blank_images")
    assert f"{image}#slices=1&window=bone" in images.values()
    assert bone["run"]["data_fingerprint"] != plain["run"]["data_fingerprint"]


SHOWN = {
    "b.nii.gz": ["Slice 1 of 2, 1.2 mm", "Slice 2 of 2, 7.5 mm"],
    "series": ["Slice 1 of 2, 1.2 mm", "Slice 2 of 2, 7.5 mm"],
}
CHOSEN = {"1-2": (1, 2), "4": (4, 4)}


def as_pictures(folder, name):
    """The slices of a volume as files, and the text with their places; of a picture itself."""
    if name not in SHOWN:
        return [name], "<image>"
    files = []
    for number, selection in enumerate(CHOSEN):
        files.append(f"{name}{number}.png")
        reference = f"{folder / 'images' / name}#slices={selection}&window=0,900"
        open_image_reference(reference).save(folder / "images" / files[-1])
    return files, "".join(f"<image>{text}\n" for text in SHOWN[name])


def write_questions(folder, rows):
    """Questions in LLaVA-Med's form of VQA-RAD, of images and texts."""
    (folder / "test.json").write_text(
        json.dumps(
            [
                {
                    "id": str(number),
                    ("images" if isinstance(images, list) else "image"): images,
                    "answer_type": "OPEN",
                    "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "left lung"}],
                }
                for number, (images, text) in enumerate(rows)
            ]
        )
    )


def told(folder, slices="uniform", window="auto"):
    return EvaluationArguments(
        model=str(folder / "model"),
        benchmark="vqa_rad",
        data=str(folder),
        output=str(folder / "none"),
        slices=slices,
        window=window,
    )


def read_answers(output):
    names = ("predictions.jsonl", "predictions.blank_images.jsonl")
    lines = [line for name in names for line in (output / name).read_text().splitlines()]
    return [json.loads(line)["prediction"] for line in lines]


@pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")
def test_a_volume_is_asked_about_as_its_slices_are_as_pictures(folder):
    build_tiny_llava(folder / "model")
    asked = [
        ("b.nii.gz", "is there a mass"),
        ("series", "where is the liver"),
        (["a.png", "series"], "is <image> more <image> left"),
        (["b.nii.gz", "a.png"], "where is the lung"),
        (["series", "b.nii.gz"], "<image> in <image> more"),
        ("a.png", "is there a mass"),
    ]
    write_questions(folder, asked)
    options = ("--slices", "1-2,4", "--window", "0,900")
    _, images, report = evaluate(folder, folder, "volumes", *options)
    places = [f"{folder}/images/series#slices={selection}&window=0,900" for selection in CHOSEN]
    assert (images["1"], images["2"]) == (places, [f"{folder}/images/a.png", *places])
    assert images["5"] == f"{folder}/images/a.png"
    assert report.count("data:image/jpeg;base64,") == 2 + 2 + 3 + 3 + 4 + 1

    by_hand = []
    for names, text in asked:
        found = [as_pictures(folder, name) for name in (names if isinstance(names, list) else [names])]
        if "<image>" not in text:
            text = "<image>" * len(found) + text
        pieces = [piece.strip() for piece in text.split("<image>")]
        texts = (piece for pair in zip(pieces, [*(shown for _, shown in found), ""], strict=True) for piece in pair)
        by_hand.append(([file for files, _ in found for file in files], "".join(texts)))
    assert by_hand[0][1] == "<image>Slice 1 of 2, 1.2 mm\n<image>Slice 2 of 2, 7.5 mm\nis there a mass"
    volumes = run.Run(told(folder, "1-2,4", "0,900")).questions
    write_questions(folder, by_hand)
    evaluate(folder, folder, "pictures")
    pictures = run.Run(told(folder)).questions
    answers = read_answers(folder / "volumes")
    assert answers == read_answers(folder / "pictures")
    assert len(set(answers)) > 3
    processor = tiny_processor()
    for volume, picture in zip(volumes, pictures, strict=True):
        assert build_prompt(processor, volume) == build_prompt(processor, picture)
        for blank in (False, True):
            shown, expected = (load_question_images([row], processor, blank)[0] for row in (volume, picture))
            assert [np.asarray(image).tolist() for image in shown] == [
                np.asarray(image).tolist() for image in expected
            ]


@pytest.mark.filterwarnings("ignore:This VQA-RAD test split has", "ignore:.*bad row")
def test_questions_about_volumes_that_cannot_be_shown_are_left_out_and_named(folder):
    build_tiny_llava(folder / "model")
    write_questions(folder, [("series", "mass"), (["a.png", "b.nii.gz"], "mass"), ("a.png", "mass")])
    metrics, images, _ = evaluate(folder, folder, "few", "--slices", "5", "--no_blank_images")
    assert sorted(images) == ["0", "2"]
    assert any("question 1: the image " in text for text in metrics["differences"])
    assert any("`slices` names slice 5, but there are only 4" in text for text in metrics["differences"])
    (folder / "images" / "series" / "003").unlink()
    metrics, images, _ = evaluate(folder, folder, "gap", "--no_blank_images")
    assert sorted(images) == ["1", "2"]
    assert any("a slice seems to be missing" in text for text in metrics["differences"])


def test_a_question_shows_slices_only_in_place_of_volumes(folder):
    a, series = (str(folder / "images" / name) for name in ("a.png", "series"))
    rows = [{"image": a}, {"images": [a, a]}, {"image": series}, {"images": [a, series]}]
    shown, problems = show_volumes(rows, OPTIONS)
    assert shown[:2] == rows[:2]
    slabs = [f"{series}#slices=1-3&window=0,900", f"{series}#slices=4-6&window=0,900"]
    texts = ["Slice 1 of 2, 2.5 mm", "Slice 2 of 2, 10.0 mm\n"]
    assert shown[2] == {"images": slabs, "position_texts": [texts]}
    assert shown[3] == {"images": [a, *slabs], "position_texts": [[""], texts]}
    assert [list_sources(row) for row in shown] == [[a], [a, a], [series], [a, series]]
    assert problems == {}
    assert show_volumes(shown, OPTIONS)[0] == shown


def test_validation_questions_about_a_volume_show_it_in_every_turn(folder):
    pairs = [("<image>\nMass?", "No."), ("Organ?", "Lung.")]
    turns = [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)]
    rows = [{"id": "1", "image": "series", "conversations": turns}]
    row = load_training_rows(write_rows(folder, rows), require_extended=False, volumes=OPTIONS).dataset[0]
    shown = ["<image>", "Slice 1 of 2, 2.5 mm", "<image>", "Slice 2 of 2, 10.0 mm\n"]
    for question, words in zip(questions_of_rows([row]), ("Mass?", "Organ?"), strict=True):
        content = [{"role": "user", "content": question_content(question)}]
        assert describe({"messages": content}) == [[*shown, words]]


def test_leakage_is_found_whichever_slices_are_shown(folder):
    series = str(folder / "images" / "series")
    copy = str(Path(shutil.copytree(series, folder / "copy")))
    test = [{"question_id": "1", "image": f"{series}#slices=2&window=bone", "question": "Mass?", "answer": "no"}]
    training = [{"image": copy, "question": "mass?", "answer": "No"}]
    assert find_leakage(test, training)["triplet_question_ids"] == ["1"]
    several, _ = show_volumes([test[0] | {"image": series}], OPTIONS)
    leakage = find_leakage(several, training)
    assert leakage["triplet_question_ids"] == ["1"]
    assert leakage["num_test_images"] == leakage["num_test_images_in_training"] == 1


def test_volume_that_cannot_be_used_is_named():
    with pytest.raises(VolumeError, match="no such file"):
        VolumeOptions().show("/none/at/all.nii")
