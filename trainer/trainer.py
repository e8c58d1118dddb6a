"""`LoGraMedTrainer`: TRL's supervised fine-tuning with an alignment loss beside the language-modeling loss."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from logramed.trainer.alignment import AlignmentObjective, AlignmentOutput, recall_at_k
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.collator import LoGraMedDataCollator
from logramed.trainer.validation import score_answers


GROUPS = "groups"
RETRIEVAL_RANKS = (1, 5)


class LoGraMedTrainer(SFTTrainer):
    """
    [`trl.SFTTrainer`] that adds `alignment_weight` times an alignment loss; with weight 0 it is plain `SFTTrainer`.

    In each step it logs `loss` (total), `language_modeling_loss`, `alignment_loss` and `matching_accuracy` (share of
    nodes matched to themselves). An evaluation gives these too, without noise in the matching, and recall at 1 and 5
    between the modalities of all evaluation samples, such as `eval_recall_at_1_image_to_answer`: the share of images
    whose own answer is the nearest (samples with identical answers count as one). A low alignment loss is no evidence
    of alignment (the loss can be met without it); recall is. With `validation_questions` it also answers those.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, ...:
            As for `SFTTrainer`; the data sets hold training rows (see `logramed.trainer.data`).
        data_collator (`Callable`, *optional*):
            By default a `LoGraMedDataCollator` for `processing_class`.
        validation_questions (`Sequence[dict]`, *optional*):
            Question rows (see `logramed.eval`) that are answered at each evaluation, at most
            `args.max_validation_questions` of them, for `eval_closed_accuracy` and `eval_open_recall`.
    """

    _tag_names = ["logramed", "trl", "sft"]  # noqa: RUF012 (transformers reads a plain class attribute)

    def __init__(
        self,
        model,
        args: LoGraMedTrainingArguments,
        data_collator=None,
        validation_questions: Sequence[dict] | None = None,
        **kwargs,
    ):
        self.objectives = {"train": None, "eval": None}
        if args.alignment_weight > 0:
            self.objectives["train"] = build_objective(args, model.config, args.small_batch)
            # The last batch of an evaluation may well be small, which is no reason to end a run.
            self.objectives["eval"] = build_objective(args, model.config, "shrink")
        if data_collator is None:
            # Without the alignment loss the texts of the nodes still serve to measure retrieval, where there are any.
            measurable = all(_have_extended_answers(kwargs.get(name)) for name in ("train_dataset", "eval_dataset"))
            data_collator = LoGraMedDataCollator(
                kwargs.get("processing_class"),
                max_length=args.max_length,
                alignment=args.alignment_weight > 0 or measurable,
                extended=args.use_extended_answers,
            )
        args.remove_unused_columns = False  # the collator reads columns that are no arguments of the model
        super().__init__(model, args, data_collator=data_collator, **kwargs)
        self.model.register_forward_hook(_link_alignment_loss, with_kwargs=True)
        self._noise_step, self._num_micro_batches = -1, 0
        self._kept_nodes: list[dict[str, torch.Tensor]] = []
        self.validation_questions = _draw(validation_questions or [], args.max_validation_questions, args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """`SFTTrainer`'s loss and, in a batch that brings the texts of graph nodes, the weighted alignment loss."""
        training = self.model.training
        objective = self.objectives["train" if training else "eval"]
        if objective is not None and "answer_input_ids" not in inputs:
            raise ValueError(
                f"`alignment_weight` is {self.args.alignment_weight}, but the batch has no `answer_input_ids`: the "
                "data collator must give the texts of the nodes, as `LoGraMedDataCollator(alignment=True)` does."
            )
        if "answer_input_ids" not in inputs or (training and objective is None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        groups = text_keys(inputs["answer_input_ids"], self._tokenizer)
        generator = self._noise(groups.device) if training else None
        recorder = AlignmentRecorder(objective, training, generator, groups)
        inputs = {**inputs, "alignment_objective": recorder}
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = loss if return_outputs else (loss, None)
        if not training:
            self._kept_nodes.append({**recorder.node_features, GROUPS: groups})
        if recorder.output is not None:
            self._log_losses(loss, recorder.output, num_items_in_batch)
            loss = loss + self._weighted(recorder.output.loss, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _accumulation_steps(self, num_items_in_batch):
        return 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps

    def _weighted(self, alignment_loss, num_items_in_batch):
        # `num_items_in_batch` averages the language-modeling loss over the whole accumulated batch, but this loss is a
        # mean over one micro-batch: undivided, its weight would grow with `gradient_accumulation_steps`. Over devices
        # DDP takes the mean of the gradients, which is right for it as it stands.
        return self.args.alignment_weight * alignment_loss / self._accumulation_steps(num_items_in_batch)

    def _log_losses(self, loss, alignment: AlignmentOutput, num_items_in_batch):
        values = {
            "language_modeling_loss": loss.detach() * self._accumulation_steps(num_items_in_batch),
            "alignment_loss": alignment.loss.detach(),
            "matching_accuracy": alignment.matching_accuracy,
        }
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=loss.device)
            metrics[name].append(self.accelerator.gather_for_metrics(value.reshape(1)).mean().item())

    def _noise(self, device):
        """
        The generator of the noise in the matching: on the features' device, seeded by run, step, micro-batch and
        process alone, so that a resumed run draws what the uninterrupted one does.
        """
        if self._noise_step != self.state.global_step:
            self._noise_step, self._num_micro_batches = self.state.global_step, 0
        place = (self.args.seed, self._noise_step, self._num_micro_batches, self.args.process_index)
        self._num_micro_batches += 1
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """As `Trainer`'s, with retrieval between the modalities and the answers to the validation questions."""
        self._kept_nodes.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = {}
        if self._kept_nodes:
            nodes = {name: self._gather(name) for name in self._kept_nodes[0]}
            groups = nodes.pop(GROUPS)
            metrics |= retrieval_metrics(nodes, groups)
        if self.validation_questions:
            metrics |= score_answers(
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                self.validation_questions,
                batch_size=self.args.per_device_eval_batch_size,
                max_new_tokens=self.args.max_new_tokens,
            )
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _gather(self, name):
        """All kept values of `name`, on every process; a sampler that repeats samples to even out is allowed for."""
        return torch.cat([self.accelerator.gather(batch[name]).cpu() for batch in self._kept_nodes])

    def _issue_warnings_after_load(self, load_result):
        """A checkpoint that lacks a weight would be resumed, or kept as the best, with a random one."""
        tied = set(self.model.all_tied_weights_keys or {})
        missing = [key for key in load_result.missing_keys if key not in tied]
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint lacks {len(missing)} weights of the model ({', '.join(missing[:3])}) and has "
                f"{len(load_result.unexpected_keys)} unknown ones ({', '.join(load_result.unexpected_keys[:3])})."
            )


class AlignmentRecorder:
    """
    What the model's `forward` calls with the node features: applies the objective and keeps its output.

    Attributes:
        output (`AlignmentOutput` or None): What the objective returned; None without an objective.
        node_features (`dict[str, torch.Tensor]`): `(batch_size, hidden_size)` float32 each, without gradient.
    """

    def __init__(
        self,
        objective: AlignmentObjective | None,
        training: bool,
        generator: torch.Generator | None,
        groups: torch.Tensor | None = None,
    ):
        self.objective, self.training, self.generator, self.groups = objective, training, generator, groups
        self.output: AlignmentOutput | None = None
        self.node_features: dict[str, torch.Tensor] = {}

    def __call__(self, node_features: dict[str, torch.Tensor], graph_network: torch.nn.Module | None) -> None:
        self.node_features = {name: features.detach().float() for name, features in node_features.items()}
        if self.objective is None:
            return
        self.output = self.objective(
            node_features, graph_network, generator=self.generator, training=self.training, groups=self.groups
        )


def build_objective(args: LoGraMedTrainingArguments, config, small_batch: str) -> AlignmentObjective:
    """The alignment objective that the arguments ask for, with the graph settings of the model's configuration."""
    return AlignmentObjective(
        args.alignment_loss,
        num_neighbors=config.graph_num_neighbors,
        gradient_estimator=args.gradient_estimator,
        noise_scale=args.noise_scale,
        num_samples=args.num_noise_samples,
        small_batch=small_batch,
    )


def retrieval_metrics(node_features: dict[str, torch.Tensor], groups: torch.Tensor) -> dict[str, float]:
    """
    Recall at 1 and 5 for each ordered pair of modalities, in 0 to 1; a rank that no sample could miss is left out.

    Args:
        node_features (`dict[str, torch.Tensor]`): `(num_samples, hidden_size)` each.
        groups (`torch.Tensor` of shape `(num_samples,)`): Equal for samples that count as one.
    """
    ranks = [k for k in RETRIEVAL_RANKS if k < len(groups.unique())]
    return {
        f"recall_at_{k}_{source}_to_{target}": recall_at_k(node_features[source], node_features[target], k, groups)
        for source in node_features
        for target in node_features
        if source != target
        for k in ranks
    }


def _link_alignment_loss(module, args, kwargs, output):
    """
    Make the alignment loss, times 0, a part of what `forward` returns under DDP, which waits only for the gradients of
    parameters that it finds behind the output.
    """
    recorder = kwargs.get("alignment_objective")
    if recorder is not None and recorder.output is not None and torch.distributed.is_initialized():
        name = "log_probs" if "log_probs" in output else "logits"
        output[name] = output[name] + 0 * recorder.output.loss


def text_keys(input_ids: torch.Tensor, tokenizer) -> torch.Tensor:
    """For each row of `(batch_size, sequence_length)` an int64, equal for equal texts whatever their padding."""
    keys = []
    for row in input_ids.tolist():
        text = ",".join(str(token_id) for token_id in row if token_id != tokenizer.pad_token_id)
        keys.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1)
    return torch.tensor(keys, device=input_ids.device)


def _have_extended_answers(rows) -> bool:
    return rows is not None and len(rows) > 0 and rows[0].get("extended_answers") is not None


def _draw(questions: Sequence[dict], num_questions: int, seed: int) -> list[dict[str, Any]]:
    """At most `num_questions` of `questions`, drawn with `seed`, in their order."""
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed))[:num_questions]
    return [questions[index] for index in sorted(order.tolist())]
