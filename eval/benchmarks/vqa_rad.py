"""
VQA-RAD: questions that clinicians asked about radiology images.

Source: Lau et al. 2018, "A dataset of clinically generated visual questions and answers about radiology images",
Scientific Data 5, 180251. Read from `trainset.json` and `testset.json` of the split used in the field, from the
authors' release (`VQA_RAD Dataset Public.json`), whose ids are others and which LLaVA-Med's own answers go by, from
conversations (ExGra-Med's `test_w_options_new.json`, LLaVA-Med's `test.json`), or from the copy on the Hub, whose rows
have no ids and no answer types.
"""

from collections.abc import Sequence
from pathlib import Path

from logramed.eval.benchmarks.by_image import SHARES, read_image_splits
from logramed.eval.benchmarks.converted import read_converted_rows, read_table_rows
from logramed.eval.benchmarks.hub import find_file, image_folder, locate, parquet_files, refuse_folder
from logramed.eval.benchmarks.rows import (
    check_ids,
    check_split,
    check_subset,
    collect_image_names,
    count_rows,
    describe_count_differences,
    find_image,
    read_answer_type,
    read_records,
    read_rows,
    read_text,
    warn_of_differences,
)


TASK = "vqa"
SPLITS = ("test", "train", *SHARES)
TRAINING_SPLITS = dict.fromkeys(SHARES, "by_image_train")  # what leakage is looked for in; else "train"
HUB_ID = "flaviagiammarino/vqa-rad"
# Rows by answer type. Source: the files of the field's split; 272 and 179 are the denominators behind the published
# figures of LLaVA-Med and ExGra-Med.
EXPECTED_COUNTS = {
    "test": {"CLOSED": 272, "OPEN": 179},
    "train": {"CLOSED": 1823, "OPEN": 1241},
    "by_image_test": {"CLOSED": 430, "OPEN": 296},
    "by_image_validation": {"CLOSED": 219, "OPEN": 151},
    "by_image_train": {"CLOSED": 1446, "OPEN": 973},
}
# The release holds both splits in one file, in the order of the field's files.
RELEASE_FILE = "VQA_RAD Dataset Public.json"
RELEASE_PHRASE_TYPES = {"test": ("test_freeform", "test_para"), "train": ("freeform", "para")}
IMAGE_FOLDERS = ("images", "VQA_RAD Image Folder", ".")
# Training rows of other copies, none of which has the 1,267 `frame` rows. Source: the release; for the Hub its card
# (read in a stored copy of July 2023), which leaves four repeated triplets out as well.
OTHER_TRAINING_SPLITS = {
    1797: "the 1,797 rows of the authors' release, without `frame` questions",
    1793: "the 1,793 rows of the Hub's copy, without repeated and `frame` questions",
}
YES_NO_TEST_ROWS = 251
QUESTION_TYPE_SPELLINGS = {"PRSE": "PRES", "ATRIB": "ATTRIB"}


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    Read the questions of one split.

    Row counts that differ from the field's split give a warning that says what differs.

    Args:
        data (`str` or `Path`): Folder with `images/` and `testset.json` (`trainset.json`), with the release's
            `VQA_RAD Dataset Public.json` and `VQA_RAD Image Folder/`, or with `images/` and `test_w_options_new.json`
            or `test.json`; or the Hub id "flaviagiammarino/vqa-rad", or a folder with its files.
        split (`str`): "test" or "train"; or "by_image_test", "by_image_validation" or "by_image_train", which share no
            image (see `by_image`): the questions of `trainset.json` and `testset.json` about theirs.
        subset (`None`): There are none.
        skipped (`list[str]`, *optional*): Bad rows are left out and added here in words (see `read_rows`).

    Returns:
        `list[dict]`: one row a question, in the order of the file, with `question_id` (str), `image` (str, absolute
        path), `question` (str), `answer` (str; the files hold whole numbers too), `answer_type` ("OPEN" or "CLOSED")
        and `groups`: `organ` (HEAD, CHEST, ABD) and `question_type` (see `normalize_question_type`). The converted
        files and the Hub's copy have no groups; the latter has its row numbers for ids and only yes/no questions count
        as closed.

    Raises:
        ValueError: If `split` is unknown, the file or an image is missing, or a row is not of the form above.
    """
    check_split(split, SPLITS)
    check_subset(subset, (), "vqa_rad")
    folder = locate(data, "VQA-RAD", HUB_ID, (f"data/{split}-*.parquet",))
    if split in SHARES:
        return _read_by_image(folder, split, skipped)
    official = (f"{split}set.json", RELEASE_FILE)
    names = (*official, f"{split}_w_options_new.json", f"{split}.json")
    path = find_file(folder, names)
    tables = parquet_files(folder, split)
    if path is not None and path.name in official:
        questions = _read_official(path, split, skipped)
        check_ids(questions, path, "qid")
    elif path is not None:
        questions = read_converted_rows(path, IMAGE_FOLDERS, skipped=skipped)
        check_ids(questions, path, "id")
    elif tables:
        questions = read_table_rows(tables)
    else:
        raise refuse_folder(folder, (*names, f"data/{split}-*.parquet"), "VQA-RAD")
    _warn_of_differences(questions, split)
    return questions


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """
    What differs from `EXPECTED_COUNTS`, in words.

    The copy on the Hub differs always: it has 451 test rows but no answer types, and with only yes/no questions closed
    251 are, not 272.
    """
    expected = {f"{kind} questions": number for kind, number in EXPECTED_COUNTS[split].items()}
    differences = describe_count_differences(questions, expected)
    counts = count_rows(questions)
    complete = counts["questions"] == sum(EXPECTED_COUNTS[split].values())
    if split == "test" and complete and counts["CLOSED questions"] == YES_NO_TEST_ROWS:
        differences.append("no answer types of its own (only yes/no answers count as CLOSED)")
    if split == "train" and counts["questions"] in OTHER_TRAINING_SPLITS:
        differences.append(OTHER_TRAINING_SPLITS[counts["questions"]])
    return differences


def _warn_of_differences(questions: Sequence[dict], split: str) -> None:
    remedy = "Use the files of the field's split (3,064 training and 451 test rows)."
    warn_of_differences("VQA-RAD", split, count_differences(questions, split), remedy)


def normalize_question_type(question_type: str) -> str:
    """
    One type for a question: spelled as in the paper, and of several the one named first.

    So every question counts in exactly one group and the groups add up to the whole. 8 of the 451 test questions name
    two types ("PRES, ATTRIB").

    Example:
        >>> normalize_question_type("PRSE"), normalize_question_type("Other"), normalize_question_type("POS, PRES")
        ('PRES', 'OTHER', 'POS')
    """
    first = question_type.split(",")[0].strip().upper()
    return QUESTION_TYPE_SPELLINGS.get(first, first)


def _read_official(path: Path, split: str, skipped: list[str] | None) -> list[dict]:
    records = read_records(path)
    if path.name == RELEASE_FILE:
        kinds = RELEASE_PHRASE_TYPES[split]
        records = [(where, record) for where, record in records if read_text(record, "phrase_type", where) in kinds]
    return _question_rows(records, path.parent, skipped)


def _read_by_image(folder: Path, split: str, skipped: list[str] | None) -> list[dict]:
    paths = [folder / "trainset.json", folder / "testset.json"]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise refuse_folder(folder, missing, "VQA-RAD")
    images = read_image_splits()[split]
    records = [located for path in paths for located in read_records(path)]
    asked = [(where, record) for where, record in records if Path(str(record.get("image_name"))).stem in images]
    questions = _question_rows(asked, folder, skipped)
    check_ids(questions, folder, "qid")
    _warn_of_differences(questions, split)
    return questions


def _question_rows(records: Sequence[tuple[str, dict]], folder: Path, skipped: list[str] | None) -> list[dict]:
    names = collect_image_names((record for _, record in records), "image_name")
    images = image_folder(folder, IMAGE_FOLDERS, names)
    return read_rows(records, lambda record, where: _question_row(record, images, where), skipped, "qid")


def _question_row(record: dict, images: Path, where: str) -> dict:
    image_name = read_text(record, "image_name", where)
    if Path(image_name).name != image_name:
        raise ValueError(f"{where}, `image_name`: expected a file name without folders, got {image_name!r}.")
    return {
        "question_id": read_text(record, "qid", where),
        "image": find_image(images, image_name, where, "image_name"),
        "question": read_text(record, "question", where),
        "answer": read_text(record, "answer", where),
        "answer_type": read_answer_type(record, where),
        # Tells questions of clinicians from those made by a pattern.
        **({"phrase_type": record["phrase_type"]} if "phrase_type" in record else {}),
        "groups": {
            "organ": read_text(record, "image_organ", where).upper(),
            "question_type": normalize_question_type(read_text(record, "question_type", where)),
        },
    }
