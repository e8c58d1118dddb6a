"""
VQA-RAD: questions that clinicians asked about radiology images.

Source: Lau et al. 2018, "A dataset of clinically generated visual questions and answers about radiology images",
Scientific Data 5, 180251. Read from `trainset.json` and `testset.json` of the split used in the field, from the
authors' release (`VQA_RAD Dataset Public.json`), with different ids, which LLaVA-Med's answers use, from conversations
(ExGra-Med's `test_w_options_new.json`, LLaVA-Med's `test.json`), or from the copy on the Hub, whose rows have no ids
and no answer types.
"""

from collections.abc import Sequence
from pathlib import Path

from logramed.eval.benchmarks.by_image import IMAGE_SPLITS, read_image_splits
from logramed.eval.benchmarks.converted import read_converted_rows, read_table_rows
from logramed.eval.benchmarks.hub import (
    find_file,
    locate,
    parquet_files,
    read_questions,
    refuse_folder,
    require_file,
)
from logramed.eval.benchmarks.rows import (
    Located,
    check_ids,
    check_split,
    check_subset,
    describe_count_differences,
    find_image,
    read_answer_type,
    read_records,
    read_text,
    warn_of_differences,
)


TASK = "vqa"
SPLITS = ("test", "train", *IMAGE_SPLITS)
TRAINING_SPLITS = dict.fromkeys(IMAGE_SPLITS, "by_image_train")  # for the leakage check; otherwise "train"
HUB_ID = "flaviagiammarino/vqa-rad"
# Rows by answer type. Source: the files of the split used in the field; 272 and 179 are the denominators of the
# published figures of LLaVA-Med and ExGra-Med.
EXPECTED_COUNTS = {
    "test": {"CLOSED questions": 272, "OPEN questions": 179},
    "train": {"CLOSED questions": 1823, "OPEN questions": 1241},
    "by_image_test": {"CLOSED questions": 430, "OPEN questions": 296},
    "by_image_validation": {"CLOSED questions": 219, "OPEN questions": 151},
    "by_image_train": {"CLOSED questions": 1446, "OPEN questions": 973},
}
# The release has both splits in one file, in the order of the files used in the field.
RELEASE_FILE = "VQA_RAD Dataset Public.json"
RELEASE_PHRASE_TYPES = {"test": ("test_freeform", "test_para"), "train": ("freeform", "para")}
IMAGE_FOLDERS = ("images", "VQA_RAD Image Folder", ".")
QUESTION_TYPE_SPELLINGS = {"PRSE": "PRES", "ATRIB": "ATTRIB"}


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    The questions of one split of the files above, with images in `images/` or the release's `VQA_RAD Image Folder/`;
    `groups`: `organ` (HEAD, CHEST, ABD) and `question_type`, which the converted files and the Hub's copy lack. In the
    Hub's copy, ids are row numbers and only yes/no questions count as closed. The splits by image (see `by_image`)
    have the questions of `trainset.json` and `testset.json` about their images.
    """
    check_split(split, SPLITS)
    check_subset(subset, (), "vqa_rad")
    folder = locate(data, "VQA-RAD", HUB_ID, (f"data/{split}-*.parquet",))
    official = (f"{split}set.json", RELEASE_FILE)
    names = (*official, f"{split}_w_options_new.json", f"{split}.json")
    path, tables = find_file(folder, names), parquet_files(folder, split)
    if split in IMAGE_SPLITS:
        paths = [require_file(folder, (name,), "VQA-RAD") for name in ("trainset.json", "testset.json")]
        images = read_image_splits()[split]
        records = [located for path in paths for located in read_records(path)]
        records = [(where, row) for where, row in records if Path(str(row.get("image_name"))).stem in images]
        questions = _read_official(records, folder, skipped)
    elif path is not None and path.name in official:
        records = read_records(path)
        if path.name == RELEASE_FILE:
            kinds = RELEASE_PHRASE_TYPES[split]
            records = [(where, row) for where, row in records if read_text(row, "phrase_type", where) in kinds]
        questions = _read_official(records, path, skipped)
    elif path is not None:
        questions = read_converted_rows(path, IMAGE_FOLDERS, skipped=skipped)
        check_ids(questions, path, "id")
    elif tables:
        questions = read_table_rows(tables)
    else:
        raise refuse_folder(folder, (*names, f"data/{split}-*.parquet"), "VQA-RAD")
    warn_of_differences("VQA-RAD", split, count_differences(questions, split))
    return questions


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """
    Describe differences from `EXPECTED_COUNTS`.

    The copy on the Hub always differs: it has 451 test rows but no answer types, and only its 251 yes/no questions
    count as closed, not 272; its 1,793 training rows lack repeated and `frame` questions.
    """
    return describe_count_differences(questions, EXPECTED_COUNTS[split])


def normalize_question_type(question_type: str) -> str:
    """
    The first type of a question, spelled as in the paper.

    This puts every question into exactly one group, so that groups add up to the total. 8 of the 451 test questions
    have two types ("PRES, ATTRIB").

    Example:
        >>> normalize_question_type("PRSE"), normalize_question_type("Other"), normalize_question_type("POS, PRES")
        ('PRES', 'OTHER', 'POS')
    """
    first = question_type.split(",")[0].strip().upper()
    return QUESTION_TYPE_SPELLINGS.get(first, first)


def _read_official(records: list[Located], source: Path, skipped: list[str] | None) -> list[dict]:
    questions = read_questions(
        records,
        _question_row,
        skipped,
        image_fields=("image_name",),
        image_folders=IMAGE_FOLDERS,
        folder=source if source.is_dir() else source.parent,
        id_field="qid",
    )
    check_ids(questions, source, "qid")
    return questions


def _question_row(record: dict, where: str, images: Path) -> dict:
    image_name = read_text(record, "image_name", where)
    if Path(image_name).name != image_name:
        raise ValueError(f"{where}, `image_name`: expected a file name without folders, got {image_name!r}.")
    return {
        "question_id": read_text(record, "qid", where),
        "image": find_image(images, image_name, where, "image_name"),
        "question": read_text(record, "question", where),
        "answer": read_text(record, "answer", where),
        "answer_type": read_answer_type(record, where),
        # Distinguishes clinicians' questions from template-based ones.
        **({"phrase_type": record["phrase_type"]} if "phrase_type" in record else {}),
        "groups": {
            "organ": read_text(record, "image_organ", where).upper(),
            "question_type": normalize_question_type(read_text(record, "question_type", where)),
        },
    }
