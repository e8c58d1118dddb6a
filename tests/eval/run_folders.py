"""Run folders as `eval/run.py` writes them, with made-up questions, answers and noise for images."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


ORGANS = ("CHEST", "HEAD", "ABD")
MAIN_FIGURES = {
    "vqa": ("open_recall", "closed_accuracy"),
    "multiple_choice": ("accuracy",),
    "chat": ("relative_score",),
    "report": ("rouge_l",),
}
FINDINGS = ("effusion", "fracture", "nodule", "enlarged heart")


def make_questions(num_questions: int, task: str = "vqa", organs: Sequence[str] = ORGANS) -> list[dict]:
    """Question rows as they stand in `predictions.jsonl`, without `prediction`; two on each image."""
    rows = []
    for number in range(num_questions):
        finding = FINDINGS[number % len(FINDINGS)]
        row = {
            "question_id": f"q{number}",
            "image": f"image{number // 2}.png",
            "question": f"Is there any {finding} in image {number // 2}?",
            "answer": ("yes", "no")[number % 2],
            "groups": {"organ": organs[number % len(organs)]},
        }
        if task == "vqa":
            row["answer_type"] = "OPEN" if number % 5 < 2 else "CLOSED"
            if row["answer_type"] == "OPEN":
                row |= {"question": f"Where is the {finding}?", "answer": "left lower lobe"}
        if task == "multiple_choice":
            row["options"] = ["yes", "no"]
        rows.append(row)
    return rows


def make_scores(rows: Sequence[dict], ability: float, seed: int, task: str = "vqa") -> list[dict[str, float]]:
    """Scores of a system that is right with the chance `ability`; some questions are harder for all systems."""
    generator, hardness = np.random.default_rng(seed), np.random.default_rng(99).normal(scale=0.3, size=len(rows))
    scores = []
    for row, hard in zip(rows, hardness, strict=True):
        right = generator.random() < ability - hard
        if task == "vqa" and row["answer_type"] == "CLOSED":
            scores.append({"closed_accuracy": 100.0 * right})
        elif task == "vqa":
            recall = 100.0 if right else float(generator.choice([0.0, 100 / 3, 200 / 3]))
            scores.append({"open_recall": recall, "open_exact_match": 100.0 * right, "open_f1": recall / 2})
        elif task == "multiple_choice":
            scores.append({"accuracy": 100.0 * right})
        else:
            scores.append({figure: float(generator.uniform(0, 100 * ability)) for figure in MAIN_FIGURES[task]})
    return scores


def summarize(scores: Sequence[dict[str, float]], task: str) -> dict:
    """Means, counts and a rough interval of each figure: the form of `overall`."""
    figures = {}
    for name in dict.fromkeys(name for row in scores for name in row):
        figures[name] = np.array([row[name] for row in scores if name in row])
    spread = {name: 1.96 * values.std() / len(values) ** 0.5 for name, values in figures.items()}
    result = {name: float(values.mean()) for name, values in figures.items()}
    result["intervals"] = {
        name: [max(0.0, result[name] - spread[name]), min(100.0, result[name] + spread[name])] for name in figures
    }
    result["counts"] = {name: len(values) for name, values in figures.items()}
    if task != "vqa":
        return result | {"num_items": max(result["counts"].values(), default=0), "num_asked": len(scores)}
    if all(name in figures for name in MAIN_FIGURES["vqa"]):
        _add_average(result)
    return result | {
        "num_open": len(figures.get("open_recall", [])),
        "num_closed": len(figures.get("closed_accuracy", [])),
    }


def _add_average(result: dict) -> None:
    parts = MAIN_FIGURES["vqa"]
    mean = sum(result[name] for name in parts) / 2
    margin = sum((result["intervals"][name][1] - result[name]) ** 2 for name in parts) ** 0.5 / 2
    result["average"] = mean
    result["intervals"]["average"] = [max(0.0, mean - margin), min(100.0, mean + margin)]
    result["counts"]["average"] = sum(result["counts"][name] for name in parts)


def write_run_folder(
    folder: Path,
    *,
    task: str = "vqa",
    num_questions: int = 40,
    ability: float = 0.7,
    seed: int = 0,
    rows: Sequence[dict] | None = None,
    scores: Sequence[dict[str, float]] | None = None,
    answer: Callable[[dict, dict], str] | None = None,
    run: dict | None = None,
    blank: float | None = 0.5,
    leaked: int | None = 1,
    images: Path | None = None,
) -> Path:
    """
    Write a finished run.

    Args:
        folder: Where to.
        task, num_questions, ability, seed: Of the questions and scores, where they are not given.
        rows, scores: Question rows and the scores of each, in one order.
        answer: The prediction for a row and its scores.
        run: Settings that differ from the usual.
        blank: The ability without sight; `None` leaves that run out.
        leaked: How many questions stand in training; `None` leaves the leakage report out.
        images: Folder for the images that `local_paths.json` names; `None` names none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = make_questions(num_questions, task) if rows is None else list(rows)
    scores = make_scores(rows, ability, seed, task) if scores is None else list(scores)
    answer = answer or (lambda row, figures: row["answer"] if sum(figures.values()) else "unsure")
    predictions = [row | {"prediction": answer(row, figures)} for row, figures in zip(rows, scores, strict=True)]
    metrics = _metrics(folder, rows, scores, task, run or {}, blank, leaked)
    metrics["interval_unit"] = "report" if task == "report" else "image"
    if task != "report":
        rows = [row | {"image_id": f"id of {row['image']}"} for row in rows]
        metrics["overall"]["num_clusters"] = len({row["image"] for row in rows})
    if blank is not None:
        blank_scores = make_scores(rows, blank, seed + 1000, task)
        metrics["blank_images"] = {"overall": summarize(blank_scores, task)}
        write_lines(folder / "scores.blank_images.jsonl", _score_lines(rows, blank_scores))
    write_lines(folder / "predictions.jsonl", predictions)
    write_lines(folder / "scores.jsonl", _score_lines(rows, scores))
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if images is not None:
        _write_images(images, rows)
        paths = {row["question_id"]: str(images / row["image"]) for row in rows}
        (folder / "local_paths.json").write_text(json.dumps({"images": paths}), encoding="utf-8")
    return folder


def change_metrics(folder: Path, change: Callable[[dict], object]) -> None:
    """Let `change` alter the `metrics.json` of a run."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    change(metrics)
    path.write_text(json.dumps(metrics), encoding="utf-8")


def write_lines(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _score_lines(rows, scores):
    kept = ("question_id", "image_id", "groups", "answer_type")
    return [
        {name: row[name] for name in kept if name in row} | {"scores": figures}
        for row, figures in zip(rows, scores, strict=True)
    ]


def _metrics(folder, rows, scores, task, run, blank, leaked):
    settings = {
        "benchmark": {"vqa": "vqa_rad", "multiple_choice": "omnimedvqa"}.get(task, task),
        "split": "test",
        "subset": None,
        "model": f"/models/{folder.name}",
        "num_questions": len(rows),
        "limit": None,
        "max_new_tokens": 32,
        "data_fingerprint": "d" * 64,
        "model_fingerprint": "e" * 64,
        "versions": {"logramed": "0.1.0", "transformers": "5.23.0"},
    }
    metrics = {"run": settings | run, "task": task, "protocol": "strict", "overall": summarize(scores, task)}
    groups = {}
    for name in rows[0]["groups"]:
        values = sorted({row["groups"][name] for row in rows})
        groups[name] = {
            value: summarize([s for row, s in zip(rows, scores, strict=True) if row["groups"][name] == value], task)
            for value in values
        }
    metrics |= {"groups": groups, "differences": []}
    if task in ("vqa", "chat"):
        metrics["release_protocol"] = summarize(scores, task)
    if task == "chat":
        metrics |= _judged(rows, scores)
    if metrics["overall"].get("num_closed"):
        metrics["constant_answer"] = {"answer": "no", "closed_accuracy": 48.9}
    if blank is None:
        metrics["blank_images"] = {"missing": "`--no_blank_images` was given"}
    metrics["leakage"] = {"missing": "there is no training split"} if leaked is None else _leakage(rows, leaked)
    return metrics


def _judged(rows, scores):
    """What `judge_answers` says beside the figures; one reply is missing for each question without a score."""
    points = {"model_score": 5.25, "reference_score": 7.5}
    bias = {
        "first_place_advantage": 0.75,
        "relative_score_reference_first": 64.5,
        "relative_score_model_first": 77.5,
    }
    intervals = [{name: [value - 0.25, value + 0.25] for name, value in means.items()} for means in (points, bias)]
    unjudged = [row["question_id"] for row, figures in zip(rows, scores, strict=True) if not figures]
    return {
        "judge": {"model": "judge", "served_models": ["judge-7"], "prompt_fingerprint": "a" * 64},
        "mean_scores": points | {"intervals": intervals[0]},
        "position_bias": bias | {"intervals": intervals[1]},
        "not_judged": [{"question_id": key, "order": "model_first", "reason": "HTTP 503: busy"} for key in unjudged],
    }


def _leakage(rows, leaked):
    images = {row["image"] for row in rows}
    return {
        "num_test_images": len(images),
        "num_test_images_in_training": len(images) // 2,
        "num_questions_on_them": len(rows) // 2,
        "num_triplets_in_training": leaked,
        "triplet_question_ids": [row["question_id"] for row in rows[:leaked]],
        "compared_with": "train split, 3064 rows",
    }


def _write_images(folder: Path, rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name in dict.fromkeys(row["image"] for row in rows):
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 36)).save(folder / name)
