"""Tests of reading other systems' answers: each form with its traps, and all forms giving one score."""

import json
import random
from pathlib import Path

import pytest

from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.foreign.predictions import comparable_question, read_predictions
from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers
from tests.eval.foreign_files import (
    biomedgpt_rows,
    omnimedvqa_rows,
    own_rows,
    radfm_rows,
    release_rows,
    table_rows,
    v15_rows,
    write_lines,
    write_list,
    write_radfm,
    write_table,
)


VQA_RAD = Path(__file__).parents[4] / "shared" / "data" / "vqa_rad"


def make_question(number, question, answer, image=None, **more):
    row = {"question_id": str(number), "image": f"/data/images/{image or number}.jpg", "question": question}
    return row | {"answer": answer, "answer_type": "OPEN", "groups": {"organ": "CHEST"}} | more


QUESTIONS = [
    make_question(30, "Is there a mass?", "yes", answer_type="CLOSED"),
    make_question(10, "Which side is \tit on?", "left lung"),
    make_question(20, "What is shown?", "X-ray"),
    make_question(40, "How many", "2"),
]
ANSWERS = ["Assistant: Yes", "in the left lung", "", "two, or 3\n肺"]
EXPECTED = dict(zip(("30", "10", "20", "40"), ANSWERS, strict=True))


def read(path, questions=QUESTIONS, task="vqa", **options):
    return read_predictions(path, questions, task, **options)


def shuffled(rows):
    return random.Random(3).sample(rows, len(rows))


FORMS = {
    "release": ("LLaVA-Med", lambda path: write_lines(path, release_rows(QUESTIONS, ANSWERS))),
    "v1.5": ("LLaVA-Med", lambda path: write_lines(path, v15_rows(QUESTIONS, ANSWERS))),
    "radfm": ("RadFM", lambda path: write_radfm(path, radfm_rows(QUESTIONS, ANSWERS))),
    "biomedgpt": ("BiomedGPT", lambda path: write_list(path, biomedgpt_rows(QUESTIONS, ANSWERS))),
    "own": ("LoGra-Med answers", lambda path: write_lines(path, own_rows(QUESTIONS, ANSWERS))),
    "json lines": ("table", lambda path: write_lines(path, table_rows(QUESTIONS, ANSWERS))),
    "json list": ("table", lambda path: write_list(path, table_rows(QUESTIONS, ANSWERS))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_answers_word_for_word(form, tmp_path):
    name, write = FORMS[form]
    answers, description = read(write(tmp_path / "answers"))
    assert answers == EXPECTED
    assert list(answers) == [question["question_id"] for question in QUESTIONS]
    assert description["form"].startswith(name)
    assert description["num_rows"] == 4
    assert description["num_missing_as_empty"] == 0
    assert json.loads(json.dumps(description)) == description


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_rows_with_ids_does_not_matter(form, tmp_path):
    path = FORMS[form][1](tmp_path / "answers")
    if path.read_text().startswith("["):
        write_list(path, shuffled(json.loads(path.read_text())))
    elif form != "radfm":  # shuffled already
        write_lines(path, shuffled([json.loads(line) for line in path.read_text().splitlines()]))
    assert read(path)[0] == EXPECTED


# Text files as they come


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
def test_csv_from_a_spreadsheet_is_read(encoding, line_end, tmp_path):
    rows = table_rows(QUESTIONS, ["yes", 'a "left", lung', "line\r\nbreak", "肺"])
    path = write_table(tmp_path / "answers.csv", rows, encoding=encoding, lineterminator=line_end)
    assert list(read(path)[0].values()) == ["yes", 'a "left", lung', "line\r\nbreak", "肺"]


def test_json_lines_with_byte_order_mark_blank_lines_and_odd_separators_are_read(tmp_path):
    text = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in table_rows(QUESTIONS, ["a\u2028b"] * 4))
    (tmp_path / "answers.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert set(read(tmp_path / "answers.jsonl")[0].values()) == {"a\u2028b"}


def test_what_pandas_writes_is_read(tmp_path):
    # Row numbers under no name, and ids that became floating point.
    (tmp_path / "a.csv").write_text(",question_id,prediction\n0,30.0,yes\n1,10.0,2.0\n2,20.0,no\n3,40.0,left\n")
    assert list(read(tmp_path / "a.csv")[0].values()) == ["yes", "2.0", "no", "left"]
    (tmp_path / "a.json").write_text(json.dumps(table_rows(QUESTIONS, [2.0, 3, 2.5, "x"])))
    assert list(read(tmp_path / "a.json")[0].values()) == ["2", "3", "2.5", "x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question_id,prediction\n30,\xff\n", r"is not UTF-8 text.*Save it as UTF-8"),
        (b'question_id,prediction\n30,yes\n10,"left\n20,x\n', r"a.csv cannot be read as a table after line 2"),
        (b"question_id,prediction\n30,yes,left\n", r"a.csv, line 2 has more cells than the header"),
        (b"question_id,prediction\n,yes\n", r"a.csv, line 2 has no value in `question_id`"),
        (
            b"question_id,prediction,prediction\n30,yes,left\n",
            r"has a repeated column in its header: question_id, prediction, prediction",
        ),
        (b'{"question_id": 1, "prediction": "x"}\n{"question_id"', r"a.csv, line 2 is not JSON.*begins '\{\"quest"),
        (b'{"question_id": 1, "prediction": "x"}\n{"question_id": 2}', r"line 2 has no `prediction`, unlike the rows"),
        (b'{"question_id": 1, "prediction": ["x"]}', r"line 1, `prediction`: expected a text, got \['x'\]"),
        (
            b'{"question_id": 1, "prediction": "half \\ud83d"}',
            r"line 1, `prediction`: expected a text, got half of a surrogate pair",
        ),
        (b'{"question_id": 1, "prediction": [2]}', r"line 1, `prediction`: expected a text, got \[2\]"),
        (b'{"question_id": 1, "prediction": true}', r"line 1, `prediction`: expected a text, got True"),
        (b'["yes", "no"]', r"a.csv, row 0: expected an object with fields, got str"),
        (b'[{"question_id": 1', r"a.csv is not JSON"),
        (b"\n", r"a.csv holds no answers"),
        (b"question_id,prediction\n", r"a.csv holds no answers"),
    ],
)
def test_broken_files_are_refused_by_row(content, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.csv")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file .*/nowhere/a.jsonl"):
        read(tmp_path / "nowhere" / "a.jsonl")


# Which column holds the answers


@pytest.mark.parametrize(
    "row",
    [
        # Right answers: of a question file.
        {"question_id": 1, "question": "Side?", "answer": "left"},
        # Questions: `text` is the question in LLaVA-Med's question files.
        {"question_id": 1, "image": "a.jpg", "text": "Side?\n<image>"},
        # An object from id to answer.
        {"30": "yes", "10": "no"},
    ],
)
def test_files_that_are_no_answers_are_refused_with_their_columns(row, tmp_path):
    columns = ", ".join(row)
    with pytest.raises(ValueError, match=rf"is of no known form: it has the columns {columns}. Known: LLaVA-Med"):
        read(write_lines(tmp_path / "a", [row]))


# Exactly one answer for each question


def test_missing_answers_are_refused_by_id_or_counted(tmp_path):
    path = write_lines(tmp_path / "a", release_rows(QUESTIONS, ANSWERS)[1:3])
    with pytest.raises(ValueError, match=r"answers 2 of 4 questions. It lacks 30; 40. Pass `missing_as_empty`"):
        read(path)
    answers, description = read(path, missing_as_empty=True)
    assert answers == EXPECTED | {"30": "", "40": ""}
    assert description["num_missing_as_empty"] == 2


def test_many_missing_answers_show_the_first_five(tmp_path):
    questions = [make_question(number, "Side?", "left") for number in range(100)]
    path = write_lines(tmp_path / "a", table_rows(questions[:1], ["x"]))
    with pytest.raises(ValueError, match=r"answers 1 of 100 questions. It lacks 1; 2; 3; 4; 5 and 94 more"):
        read(path, questions)


@pytest.mark.parametrize("value", [None, float("nan"), "nan", "NaN "])
def test_rows_without_an_answer_are_refused_or_counted(value, tmp_path):
    rows = release_rows(QUESTIONS, ANSWERS)
    rows[1]["text"] = value
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"1 of 4 rows have no answer: .*a.jsonl, line 2. Pass `missing_as_empty`"):
        read(path)
    answers, description = read(path, missing_as_empty=True)
    assert answers == EXPECTED | {"10": ""}
    assert description["num_missing_as_empty"] == 1


def test_an_empty_csv_cell_may_be_no_answer_and_is_refused(tmp_path):
    path = write_table(tmp_path / "a.csv", table_rows(QUESTIONS, ANSWERS))
    with pytest.raises(ValueError, match=r"1 of 4 rows have no answer: .*a.csv, line 4"):
        read(path)


def test_rows_of_another_split_are_refused(tmp_path):
    others = [make_question(number, "Is there a mass?", "yes") for number in range(100, 103)]
    path = write_lines(tmp_path / "a.jsonl", release_rows([*QUESTIONS, *others], [*ANSWERS, "x", "y", "z"]))
    with pytest.raises(
        ValueError, match=r"3 of 7 rows answer questions .*line 5 \(question '100'\);.*another split, subset"
    ):
        read(path)


def test_a_row_said_twice_counts_once_and_a_contradiction_is_refused(tmp_path):
    rows = biomedgpt_rows(QUESTIONS, ANSWERS)
    answers, description = read(write_list(tmp_path / "a", [*rows, rows[0]]))
    assert answers == EXPECTED
    assert "1 rows repeat an answer word for word and were left out." in description["notes"]
    path = write_list(tmp_path / "a", [*rows, rows[0] | {"answer": "no"}])
    with pytest.raises(
        ValueError, match=r"row 4 answers 'no', but .*row 0 answers 'Assistant: Yes' \(question '30'\)"
    ):
        read(path)


# What was asked must be what the benchmark asks


@pytest.mark.parametrize(
    "hint",
    [
        ' (Answer with either "Yes" or "No").',
        ' (Answer with either "left" or "right (or both)").',
        " Please choose from the following two options: [yes, no]",
        " Please choose from the following two options: [yes,no]",
    ],
)
def test_option_hints_and_blanks_do_not_matter(hint, tmp_path):
    rows = release_rows(QUESTIONS, ANSWERS, hint=hint)
    rows[0]["prompt"] = "<image>\n### Human:  is there a MASS ?" + hint + " Assistant:"
    assert read(write_lines(tmp_path / "a", rows))[0] == EXPECTED


def test_a_shuffled_file_is_refused_with_both_texts(tmp_path):
    rows = release_rows(QUESTIONS, ANSWERS)
    for row, other in zip(rows, reversed(release_rows(QUESTIONS, ANSWERS)), strict=True):
        row["prompt"] = other["prompt"]
    texts = r"'How many\\n<image>' instead of 'Is there a mass\?'"
    with pytest.raises(ValueError, match=rf"line 1 has another question than .* '30': {texts}. 4 of 4 rows differ"):
        read(write_lines(tmp_path / "a", rows))


def test_another_right_answer_is_refused(tmp_path):
    rows = own_rows(QUESTIONS, ANSWERS)
    rows[1]["answer"] = "right lung"
    with pytest.raises(
        ValueError, match=r"line 2 has another right answer .*'right lung' instead of 'left lung'. 1 of 4 rows differ"
    ):
        read(write_lines(tmp_path / "a", rows))


def test_files_without_questions_say_so(tmp_path):
    notes = read(write_list(tmp_path / "a", biomedgpt_rows(QUESTIONS, ANSWERS)))[1]["notes"]
    assert notes == ["The file has no questions: only the ids show that its answers are to the benchmark's questions."]
    assert read(write_lines(tmp_path / "a", v15_rows(QUESTIONS, ANSWERS)))[1]["notes"] == []


def test_letters_and_words_that_only_look_like_roles_stay_in_questions():
    assert comparable_question("What is vitamin A?") == "whatisvitamina?"
    assert comparable_question("Question the user: which side?") == "questiontheuser:whichside?"


# PathVQA: the ids of the release are those of images


PATH_VQA = [
    make_question("test_0001-1", "what is present?", "liver", image="test_0001"),
    make_question("test_0001-2", "is a mass present?", "no", image="test_0001"),
    make_question("test_0002", "what is present?", "bone", image="test_0002"),
]


OFFICIAL = [question | {"question_id": str(number)} for number, question in enumerate(PATH_VQA)]


def write_path_vqa(path, order=(0, 1, 2), texts=("a", "b", "c"), ids=("test_0001", "test_0001", "test_0002")):
    rows = release_rows(PATH_VQA, texts, ids)
    return write_lines(path, [rows[number] for number in order])


def test_ids_of_images_are_joined_by_image_and_question(tmp_path):
    answers, description = read(write_path_vqa(tmp_path / "a", order=(2, 1, 0)), OFFICIAL)
    assert answers == {"0": "a", "1": "b", "2": "c"}
    assert description["joined_by"] == "image and question"
    assert description["notes"] == []


def test_ids_that_the_benchmark_numbers_are_joined_by_id_and_question(tmp_path):
    numbered = [question | {"image": f"/cache/{number}.png"} for number, question in enumerate(PATH_VQA)]
    answers, description = read(write_path_vqa(tmp_path / "a", order=(2, 1, 0)), numbered)
    assert answers == {"test_0001-1": "a", "test_0001-2": "b", "test_0002": "c"}
    assert description["joined_by"] == "question_id and question"


def test_ids_of_images_with_another_question_are_refused(tmp_path):
    rows = release_rows(PATH_VQA, "abc", ["test_0001", "test_0001", "test_0002"])
    rows[2]["prompt"] = "is there blood?"
    with pytest.raises(
        ValueError, match=r"1 of 3 rows .* joined by image and question: .*line 3 \(question 'test_0002'\)"
    ):
        read(write_lines(tmp_path / "a", rows), OFFICIAL)


# RadFM: no ids, Python lists in cells, shuffled


def test_radfm_right_answers_that_pandas_took_for_missing_are_joined(tmp_path):
    questions = [*QUESTIONS, make_question(50, "What is wrong?", "None"), make_question(60, "List them", "• a • b")]
    answers, description = read(
        write_radfm(tmp_path / "a.csv", radfm_rows(questions, [*ANSWERS, "x", "y"])), questions
    )
    assert answers == EXPECTED | {"50": "x", "60": "y"}
    assert description["joined_by"] == "question and right answer"
    assert description["notes"] == []


def test_radfm_repeated_questions_are_paired_in_order_and_noted(tmp_path):
    twins = [make_question(number, "Is there a mass?", "yes", answer_type="CLOSED") for number in (1, 2, 3)]
    rows = [*radfm_rows(QUESTIONS[1:], ANSWERS[1:]), *[radfm_rows([twins[0]], [text])[0] for text in ("a", "b", "b")]]
    answers, description = read(write_radfm(tmp_path / "a.csv", rows), [*QUESTIONS[1:], *twins])
    assert [answers[number] for number in "123"] == ["a", "b", "b"]
    (note,) = description["notes"]
    assert note.startswith("3 rows are ambiguous by question and right answer and were paired in file order")


def test_radfm_rows_with_another_right_answer_are_refused(tmp_path):
    rows = radfm_rows([QUESTIONS[0] | {"answer": "no"}, *QUESTIONS[1:]], ANSWERS)
    with pytest.raises(ValueError, match=r"1 of 4 rows .*line \d \('Is there a mass\?', right answer 'no'\)"):
        read(write_radfm(tmp_path / "a.csv", rows))


def test_radfm_cells_that_are_no_list_of_one_are_refused(tmp_path):
    rows = radfm_rows(QUESTIONS, ANSWERS)
    rows[1][2] = ["a", "b"]
    with pytest.raises(ValueError, match=r"line 3, `Pred`: expected a list of one text, got \"\['a', 'b'\]\""):
        read(write_radfm(tmp_path / "a.csv", rows))


def test_radfm_cells_without_lists_are_read_too(tmp_path):
    rows = [[cell[0] for cell in row] for row in radfm_rows(QUESTIONS, ["yes", "left", "quoted", "2"])]
    assert list(read(write_radfm(tmp_path / "a.csv", rows))[0].values()) == ["yes", "left", "quoted", "2"]


def test_radfm_answers_that_its_script_dropped_are_missing(tmp_path):
    path = write_radfm(tmp_path / "a.csv", radfm_rows(QUESTIONS[1:], ANSWERS[1:]))
    with pytest.raises(ValueError, match=r"answers 3 of 4 questions. It lacks 30"):
        read(path)


# Multiple choice, chat, reports


CHOICES = [
    make_question("X_0000", "What modality is shown?", "CT", options=["CT", "MRI"]),
    make_question("X_0001", "Which organ?", "liver", options=["lung", "liver"]),
]


def test_exgra_med_answers_to_omnimedvqa_are_read(tmp_path):
    rows = omnimedvqa_rows(CHOICES, ["B", "Assistant: liver"])
    answers, description = read(write_lines(tmp_path / "a", rows), CHOICES, "multiple_choice")
    assert answers == {"X_0000": "B", "X_0001": "Assistant: liver"}
    assert description["form"] == "ExGra-Med answers to OmniMedVQA"


def test_prompts_of_multiple_choice_may_hold_the_options_but_not_another_question(tmp_path):
    rows = release_rows(CHOICES, ["A", "B"], ["X_0000", "X_0001"], hint=" Choose: A) one B) two")
    path = write_lines(tmp_path / "a", rows)
    assert list(read(path, CHOICES, "multiple_choice")[0].values()) == ["A", "B"]
    with pytest.raises(ValueError, match="has another question"):
        read(path, CHOICES, "vqa")
    write_lines(path, [rows[0] | {"prompt": "Which organ? Choose: A) one"}, rows[1]])
    with pytest.raises(ValueError, match="has another question"):
        read(path, CHOICES, "multiple_choice")


REPORTS = [
    make_question("r1", "Describe the image.", "No effusion. Heart normal.", image="CXR1/0"),
    make_question("r2", "Describe the image.", "Left effusion.", image="CXR2/0"),
]


def test_prompts_of_reports_are_not_compared(tmp_path):
    rows = [{"question_id": question["question_id"], "prompt": "Write it.", "text": "x"} for question in REPORTS]
    assert set(read(write_lines(tmp_path / "a", rows), REPORTS, "report")[0].values()) == {"x"}
    prompted = [question | {"question": "What are the findings?"} for question in REPORTS]
    answers, description = read(write_radfm(tmp_path / "b", radfm_rows(prompted, ["one", "two"])), REPORTS, "report")
    assert answers == {"r1": "one", "r2": "two"}
    assert description["joined_by"] == "right answer"


def test_chat_questions_end_in_the_image(tmp_path):
    chat = [make_question(0, "What is the organ?", "The liver."), make_question(1, "Why?", "Colour.")]
    rows = release_rows(chat, ["A liver.", "By its colour."])
    assert list(read(write_lines(tmp_path / "a", rows), chat, "chat")[0].values()) == ["A liver.", "By its colour."]


# The field's test set in every form


@pytest.fixture(scope="module")
def vqa_rad():
    if not VQA_RAD.is_dir():
        pytest.skip(f"needs the VQA-RAD files in {VQA_RAD}")
    return load_questions(VQA_RAD)


def answer_all(questions, differ=False):
    """Right, wrong, odd and with role words: by the question and its right answer, or differing by question."""
    answers = []
    for number, question in enumerate(questions):
        texts = [question["answer"], f"Assistant: {question['answer']}", "no", "It is in the left lobe, normal.", ""]
        seed = question["question"] + question["answer"] + str(number if differ else "")
        answers.append(random.Random(seed.casefold()).choice(texts))
    return answers


def score(questions, answers, protocol):
    return evaluate_answers(
        list(answers.values()),
        [question["answer"] for question in questions],
        [question["answer_type"] for question in questions],
        protocol=protocol,
    )


VQA_RAD_FILES = {
    "release": lambda path, rows, texts: write_lines(
        path, release_rows(rows, texts, hint=' (Answer with either "a").')
    ),
    "v1.5": lambda path, rows, texts: write_lines(path, shuffled(v15_rows(rows, texts))),
    "biomedgpt": lambda path, rows, texts: write_list(path, shuffled(biomedgpt_rows(rows, texts))),
    "radfm": lambda path, rows, texts: write_radfm(path, radfm_rows(rows, texts)),
    "own": lambda path, rows, texts: write_lines(path, own_rows(rows, texts)),
    "csv": lambda path, rows, texts: write_table(path, table_rows(rows, [text or "-" for text in texts])),
}


@pytest.mark.parametrize("form", VQA_RAD_FILES)
def test_vqa_rad_scores_the_same_in_every_form(form, vqa_rad, tmp_path):
    texts = answer_all(vqa_rad)
    direct = {question["question_id"]: text for question, text in zip(vqa_rad, texts, strict=True)}
    answers, _ = read(VQA_RAD_FILES[form](tmp_path / "a", vqa_rad, texts), vqa_rad)
    for protocol in ("strict", "release"):
        assert score(vqa_rad, answers, protocol) == score(vqa_rad, direct, protocol)


def test_vqa_rad_overall_figures_do_not_depend_on_how_radfm_repeats_are_paired(vqa_rad, tmp_path):
    texts = answer_all(vqa_rad, differ=True)
    direct = {question["question_id"]: text for question, text in zip(vqa_rad, texts, strict=True)}
    answers, description = read(write_radfm(tmp_path / "a", radfm_rows(vqa_rad, texts)), vqa_rad)
    expected, found = (score(vqa_rad, given, "strict") for given in (direct, answers))
    figures = [name for name, value in expected.items() if isinstance(value, float)]
    assert {"open_recall", "closed_accuracy"} <= set(figures)
    assert {name: found[name] for name in figures} == pytest.approx(
        {name: expected[name] for name in figures}, abs=1e-9
    )
    assert "are ambiguous by question and right answer" in description["notes"][0]


def test_vqa_rad_training_answers_are_refused_for_the_test_split(vqa_rad, tmp_path):
    train = load_questions(VQA_RAD, "train")
    path = write_lines(tmp_path / "a", release_rows(train, ["no"] * len(train)))
    with pytest.raises(
        ValueError, match=r"of 3064 rows answer questions that the benchmark lacks, joined by question_id"
    ):
        read(path, vqa_rad)
