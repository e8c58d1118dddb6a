"""The accuracy of a model's answers during training."""

from collections.abc import Sequence
from typing import Any

import torch

from logramed.eval.answering import in_batches
from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers
from logramed.eval.prompts import evaluation_mode, padding_on_the_left
from logramed.eval.question_images import question_content
from logramed.trainer.data.collator import open_image


def score_answers(
    model: torch.nn.Module,
    processor: Any,
    questions: Sequence[dict],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> dict[str, float]:
    """
    `closed_accuracy` and `open_recall`, in percent, of the model's answers to `questions`, by the strict protocol of
    the `medical_vqa` metric; each only if there are questions of that type.
    """
    rows: list[dict] = []
    answers: list[str] = []
    with evaluation_mode(model):
        for batch in in_batches(questions, batch_size, "Validation", progress=False):
            answers += answer_batch(model, processor, batch, max_new_tokens)
            rows += batch
    scores = evaluate_answers(
        predictions=answers,
        references=[row["answer"] for row in rows],
        answer_types=[row["answer_type"] for row in rows],
    )
    return {name: scores[name] for name in ("closed_accuracy", "open_recall") if name in scores}


@torch.no_grad()
def answer_batch(model: torch.nn.Module, processor: Any, rows: Sequence[dict], max_new_tokens: int) -> list[str]:
    """Answer question rows, in their order, by greedy decoding; for any image-text-to-text model."""
    conversations = []
    for row in rows:
        content = [
            {"type": "image", "image": open_image(part["path"], row["question"])} if part["type"] == "image" else part
            for part in question_content(row)
        ]
        conversations.append([{"role": "user", "content": content}])
    tokenizer = processor.tokenizer
    with padding_on_the_left(tokenizer):
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )
    sequences = model.generate(
        **inputs.to(model.device, model.dtype),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        use_cache=True,  # activation checkpointing turns it off in the configuration
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    cut = getattr(processor, "cut_answer", str)  # cuts at the stop string
    return [cut(text).strip() for text in texts]
