"""What training and evaluation leave behind, without either: for tests of the table and of the runs."""

import json
from pathlib import Path


QUESTIONS = (("q1", "xmlab1", "CLOSED"), ("q2", "xmlab1", "OPEN"), ("q3", "xmlab2", "OPEN"))
CONTENT = {"q1": "Organ", "q2": "Size", "q3": "Organ"}


def write_training(folder: Path, num_steps: int = 4) -> None:
    log = [{"loss": 2.0, "alignment_gradient_ratio": 0.2, "step": 1}, {"loss": 1.0, "alignment_gradient_ratio": 0.4}]
    log.append({"train_runtime": 2.0, "step": num_steps})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "train_metrics.json").write_text(json.dumps({"metrics": {}, "log_history": log}))


def write_evaluation(folder: Path, scores=(100.0, 50.0, 25.0), blank_scores=(0.0, 50.0, 0.0)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for ending, values in (".jsonl", scores), (".blank_images.jsonl", blank_scores):
        lines = []
        for (question, _, kind), value in zip(QUESTIONS, values, strict=True):
            figure = {"CLOSED": "closed_accuracy", "OPEN": "open_recall"}[kind]
            groups = {"content_type": CONTENT[question]}
            lines.append({"question_id": question, "groups": groups, "answer_type": kind, "scores": {figure: value}})
        (folder / f"scores{ending}").write_text("".join(json.dumps(line) + "\n" for line in lines))
    images = {question: f"/anywhere/imgs/{image}/source.jpg" for question, image, _ in QUESTIONS}
    (folder / "local_paths.json").write_text(json.dumps({"images": images}))
