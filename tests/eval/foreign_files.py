"""Answers to question rows, written as other systems write them."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path


NUM_RADFM_TOKENS = 32  # an image in a RadFM prompt


def write_lines(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_list(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def release_rows(questions, answers, ids=None, hint=""):
    """Of LLaVA-Med's and ExGra-Med's `model_vqa_med.py`: the prompt ends in the image, ids are whole numbers."""
    ids = ids or [int(question["question_id"]) for question in questions]
    return [
        {
            "question_id": question_id,
            "prompt": question["question"] + hint + "\n<image>",
            "text": answer,
            "answer_id": f"xQ7Zk{number}",
            "model_id": "exgra-med",
            "metadata": {},
        }
        for number, (question, answer, question_id) in enumerate(zip(questions, answers, ids, strict=True))
    ]


def v15_rows(questions, answers):
    """Of LLaVA-Med v1.5's `model_vqa.py`: the prompt is without the image."""
    return [row | {"prompt": row["prompt"].replace("\n<image>", "")} for row in release_rows(questions, answers)]


def omnimedvqa_rows(questions, answers):
    """Of ExGra-Med's `model_omnimed_vqa_eval.py`: the data set's own row with the answer beside."""
    return [
        {
            "dataset": "X",
            "question_id": question["question_id"],
            "question_type": "Modality Recognition",
            "question": question["question"],
            "gt_answer": question["answer"],
            "image_path": "Images/X/1.png",
            **dict(zip(("option_A", "option_B"), question["options"], strict=True)),
            "modality_type": "CT(Computed Tomography)",
            "model_pred": answer,
            "prompt_question": f"{question['question']}Here are 2 candidate answers:{question['options']}\n<image>",
            "is_correct": "yes",
        }
        for question, answer in zip(questions, answers, strict=True)
    ]


def biomedgpt_rows(questions, answers):
    """Of BiomedGPT's `eval_vqa_gen`."""
    return [
        {"question_id": int(question["question_id"]), "answer": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]


def radfm_rows(questions, answers, dataset="vqarad_dataset", seed=0):
    """
    Of RadFM's `test.py`: batches of one as Python lists, shuffled; the image before the first or the last character of
    the question; right answers as pandas read them.
    """
    generator = random.Random(seed)
    tokens = "".join(f"<image{number}>" for number in range(NUM_RADFM_TOKENS))
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        text = question["question"]
        at = generator.choice((0, max(0, len(text) - 1)))
        reference = "nan" if question["answer"] in ("None", "NA", "null") else question["answer"]
        prompt = f"{text[:at]}<image>{tokens}</image>{text[at:]}"
        rows.append([[prompt], [reference.replace("•", "")], [answer], [dataset]])
    generator.shuffle(rows)
    return rows


def write_radfm(path: Path, rows: Sequence[Sequence]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["Question", "Ground Truth", "Pred", "belong_to"], *rows])
    return path


def table_rows(questions, answers):
    return [
        {"question_id": question["question_id"], "prediction": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]


def own_rows(questions, answers):
    """Of our own `predictions.jsonl`."""
    return [
        question | {"image": Path(question["image"]).name, "prediction": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]


def write_table(path: Path, rows: Sequence[dict], **options) -> Path:
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path
