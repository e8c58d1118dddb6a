"""Tests of the SLAKE loader on generated copies of its layouts."""

from collections import Counter
from pathlib import Path

import pytest

from logramed.eval.benchmarks.slake import count_differences, load_questions
from tests.eval.benchmarks.conftest import converted_row, write_image, write_json, write_zip


pytestmark = pytest.mark.filterwarnings("ignore:This SLAKE")


def official_rows(first_id: int = 0) -> list[dict]:
    """Two questions about two images in both languages, with the traps of the files."""
    common = {"location": "Lung", "modality": "CT", "base_type": "vqa", "triple": ["vhead", "_", "_"]}
    written = [
        (1, "What is the main organ?", "Lung, Heart", "en", "OPEN", "Organ"),
        (1, "Is the lung healthy? ", "No", "en", "CLOSED ", "Abnormality"),
        (2, "How many lungs are there?", 2, "EN ", "open", "Quantity"),
        (1, "图片主要器官是什么?", "肺", "zh", "OPEN", "Organ"),
        (2, "图片中包含肝脏吗?", "不包含", "zh", "CLOSED", "Organ"),
    ]
    return [
        common
        | {"img_id": image, "img_name": f"xmlab{image}/source.jpg", "qid": first_id + number}
        | {"question": question, "answer": answer, "q_lang": language, "answer_type": kind, "content_type": content}
        for number, (image, question, answer, language, kind, content) in enumerate(written)
    ]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_json(tmp_path / "slake" / "test.json", official_rows())
    for number in (1, 2):
        write_image(tmp_path / "slake" / "imgs" / f"xmlab{number}" / "source.jpg", seed=number)
    return tmp_path / "slake"


def test_english_is_read_by_default(folder):
    questions = load_questions(folder)
    assert questions[0] == {
        "question_id": "0",
        "image": str(folder / "imgs" / "xmlab1" / "source.jpg"),
        "question": "What is the main organ?",
        "answer": "Lung, Heart",
        "answer_type": "OPEN",
        "groups": {"content_type": "Organ", "modality": "CT", "location": "Lung"},
    }
    assert [row["answer"] for row in questions] == ["Lung, Heart", "No", "2"]  # a number in the file
    assert [row["answer_type"] for row in questions] == ["OPEN", "CLOSED", "OPEN"]  # "CLOSED " and "open" in the file
    assert load_questions(folder, subset="en") == questions


def test_chinese_and_both_languages_are_subsets(folder):
    chinese = load_questions(folder, subset="zh")
    assert [(row["question"], row["answer"]) for row in chinese] == [
        ("图片主要器官是什么?", "肺"),
        ("图片中包含肝脏吗?", "不包含"),
    ]
    both = load_questions(folder, subset="all")
    assert Counter(row["groups"]["language"] for row in both) == {"en": 3, "zh": 2}
    assert [row["question_id"] for row in both] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("name", ["validation.json", "validate.json"])
def test_the_validation_file_has_two_names(folder, name):
    (folder / "test.json").rename(folder / name)
    assert len(load_questions(folder, "validation")) == 3


def test_images_are_read_from_the_archive_that_is_downloaded(folder, tmp_path):
    image = (folder / "imgs" / "xmlab1" / "source.jpg").read_bytes()
    packed = tmp_path / "packed"
    write_json(packed / "test.json", official_rows())
    write_zip(
        packed / "imgs.zip",
        {
            "__MACOSX/imgs/xmlab1/._source.jpg": b"junk",
            "imgs/xmlab1/source.jpg": image,
            "imgs/xmlab1/mask.png": b"not asked for",
            "imgs/xmlab2/source.jpg": b"other",
        },
    )
    questions = load_questions(packed)
    assert Path(questions[0]["image"]).read_bytes() == image
    assert Path(questions[2]["image"]).read_bytes() == b"other"
    assert [row["question"] for row in questions] == [row["question"] for row in load_questions(folder)]


def test_the_hub_gives_the_same_questions(folder, local_hub):
    repository = local_hub.repository("BoKelvin/SLAKE")
    write_json(repository / "test.json", official_rows())
    write_json(repository / "train.json", official_rows())
    images = {f"imgs/xmlab{n}/source.jpg": (folder / f"imgs/xmlab{n}/source.jpg").read_bytes() for n in (1, 2)}
    write_zip(repository / "imgs.zip", images)
    questions = load_questions("BoKelvin/SLAKE")
    for downloaded, local in zip(questions, load_questions(folder), strict=True):
        assert Path(downloaded["image"]).read_bytes() == Path(local["image"]).read_bytes()
        assert downloaded | {"image": ""} == local | {"image": ""}
    ((repo_id, patterns),) = local_hub.downloads
    assert repo_id == "BoKelvin/SLAKE"
    assert "train.json" not in patterns


@pytest.mark.parametrize("name", ["test.json", "test_w_options_new.json"])
@pytest.mark.parametrize("field", ["conversations", "conversatons"])
def test_the_converted_form_is_read(folder, name, field):
    (folder / "test.json").unlink()
    options = 'Is the lung healthy? (Answer with either "Yes" or "No").'
    rows = [
        converted_row(11934, "xmlab1/source.jpg", "What is the main organ?", "Lung", "OPEN", field),
        converted_row(11935, "xmlab1/source.jpg", options, "No", "CLOSED", field),
        converted_row(11936, "xmlab2/source.jpg", "How many lungs are there?", 2, "OPEN", field),
    ]
    write_json(folder / name, rows)
    questions = load_questions(folder)
    assert questions[1] == {
        "question_id": "11935",
        "image": str(folder / "imgs" / "xmlab1" / "source.jpg"),
        "question": options,
        "answer": "No",
        "answer_type": "CLOSED",
        "groups": {},
    }
    assert questions[2]["answer"] == "2"
    with pytest.raises(ValueError, match=r"converted file with only the English questions, got `subset` 'zh'"):
        load_questions(folder, subset="zh")


@pytest.mark.parametrize(
    ("split", "subset", "num_open", "num_closed"),
    [("test", None, 645, 416), ("test", "zh", 500, 533), ("train", "en", 4919, 0), ("validation", "all", 99, 2000)],
)
def test_the_known_sizes_give_no_differences(split, subset, num_open, num_closed):
    questions = [{"image": "a", "answer_type": "OPEN"}] * num_open + [
        {"image": "a", "answer_type": "CLOSED"}
    ] * num_closed
    assert count_differences(questions, split, subset) == []
    assert count_differences(questions[1:], split, subset) != []


@pytest.mark.filterwarnings("default:This SLAKE")
def test_other_sizes_are_named(folder):
    words = r"SLAKE \(en\) test split has 2 OPEN questions instead of 645 and 1 CLOSED questions instead of 416"
    with pytest.warns(UserWarning, match=words):
        load_questions(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q_lang": "fr"}, r"test\.json, row 1, `q_lang`: expected en or zh, got 'fr'"),
        ({"answer_type": "yes/no"}, r"row 1, `answer_type`: expected OPEN or CLOSED, got 'yes/no'"),
        ({"answer": None}, r"row 1 has no `answer`"),
        ({"img_name": "xmlab3/source.jpg"}, r"row 1, `img_name`: .*xmlab3/source\.jpg is missing"),
        ({"img_name": "../../secret.jpg"}, r"row 1, `img_name`: expected a path that stays in"),
        ({"qid": 0}, r"test\.json holds the same `qid` more than once: 0"),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_field(folder, change, words):
    rows = official_rows()
    rows[1] |= change
    write_json(folder / "test.json", rows)
    with pytest.raises(ValueError, match=words):
        load_questions(folder)


def test_unknown_splits_subsets_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"`split` must be one of test, train, validation, fold_0, .*, got 'dev'"):
        load_questions(folder, "dev")
    with pytest.raises(ValueError, match="`subset` of slake must be one of en, zh, all, got 'fr'"):
        load_questions(folder, subset="fr")
    with pytest.raises(ValueError, match=r"`data` holds no train\.json \(nor train_w_options_new\.json\)"):
        load_questions(folder, "train")
