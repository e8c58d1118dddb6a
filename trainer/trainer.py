"""`LoGraMedTrainer`: TRL's supervised fine-tuning with an alignment loss beside the language-modeling loss."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from huggingface_hub import HfApi
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from logramed.trainer.alignment import AlignmentObjective, AlignmentOutput, GraphNetwork
from logramed.trainer.alignment.aligned_model import AlignedModel, AlignedOutput, refuse_unalignable
from logramed.trainer.alignment.alignment_head import AlignmentHead
from logramed.trainer.alignment.gradient_caching import StepGraph, cached_loss
from logramed.trainer.alignment.gradient_ratio import GradientRatio, GradientRatioCallback
from logramed.trainer.alignment.graph_nodes import Nodes, gather_nodes, same_randomness, seeded
from logramed.trainer.alignment.retrieval import retrieval_metrics
from logramed.trainer.alignment.text_encoder import TextEncoder
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.checkpoints.interruption import TerminationCallback, check_gradient_norm, check_loss
from logramed.trainer.checkpoints.saving import LoggedSums, ResumingCallback, WholeCheckpoints
from logramed.trainer.data.collator import LoGraMedDataCollator, prepare_texts
from logramed.trainer.data.image_cache import CachedTower
from logramed.trainer.data.records import EXTENDED_KEYS
from logramed.trainer.engines.devices import check_engine, gather_own_weights, name_units
from logramed.trainer.engines.parts import unwrap_model
from logramed.trainer.engines.trained_weights import freeze_unused_weights, load_weights, train_in_float32
from logramed.trainer.watching.callbacks import LoggedMeans
from logramed.trainer.watching.validation import score_answers


logger = logging.getLogger(__name__)
GROUPS, ANSWER_KEYS = "groups", "answer_keys"


class LoGraMedTrainer(WholeCheckpoints, SFTTrainer):
    """
    [`trl.SFTTrainer`] with an alignment loss beside the language-modeling loss, for any image-text-to-text model of
    transformers 5 that turns images into tokens. With `alignment_weight=0` it is plain `SFTTrainer`.

    It logs `loss` (total), `language_modeling_loss`, `alignment_loss` and `matching_accuracy` (share of nodes matched
    to themselves), and with answer states `alignment_weight` and `gradient_ratio` of each step. An evaluation gives
    the losses without dropout and noise (`eval_loss` with `args.alignment_weight`, whatever schedule and ratio say),
    and recall at 1 and 5 between the modalities of all evaluation nodes, such as `eval_recall_at_1_image_to_answer`:
    the share of images whose own answer is the nearest. With `validation_questions` it also answers those. Neither
    a low alignment loss nor recall shows that answers gain, see trainer/README.md.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            As for `SFTTrainer`. `trainer.model` is an `AlignedModel` around it.
        args (`LoGraMedTrainingArguments`, *optional*):
            Arguments of another class (`SFTConfig`, `TrainingArguments`) are converted.
        data_collator (`Callable`, *optional*):
            By default a `LoGraMedDataCollator` for `processing_class`.
        validation_questions (`Sequence[dict]`, *optional*):
            Question rows (see `logramed.eval`) that are answered at each evaluation, at most
            `args.max_validation_questions` of them, for `eval_closed_accuracy` and `eval_open_recall`.
        train_dataset, eval_dataset, processing_class, peft_config, ...:
            As for `SFTTrainer`; the data sets hold training rows (see `logramed.trainer.data`).

    Attributes:
        stateful (`dict[str, Any]`):
            Objects with `state_dict` and `load_state_dict`, by name, that a checkpoint holds in addition to what
            `Trainer` saves, so that a resumed run continues exactly.

    Raises:
        ValueError: If the model cannot be aligned and `alignment_weight` is not 0, or an argument does not go with
            another.
    """

    _tag_names = ["logramed", "trl", "sft"]  # noqa: RUF012 (transformers reads a plain class attribute)

    def __init__(
        self,
        model: str | nn.Module,
        args: TrainingArguments | None = None,
        data_collator=None,
        validation_questions: Sequence[dict] | None = None,
        **kwargs,
    ):
        args = as_training_arguments(args, model)
        if kwargs.get("formatting_func") is not None:
            raise ValueError("`formatting_func` makes text without images: give rows of `messages` instead.")
        self.stateful: dict[str, Any] = {}
        if args.alignment_weight > 0 and data_collator is None:
            _align_without_extended_answers(args, kwargs.get("train_dataset"))
        super().__init__(model, args, data_collator=data_collator, **kwargs)
        self.objective = self._build_objective()
        self.text_encoder = self._build_text_encoder(data_collator)
        if data_collator is None:
            self.data_collator = self._build_collator(kwargs)
            prepare_texts(self.data_collator, self.train_dataset, self.eval_dataset)
        self._wrap_for_alignment()
        self._watch()
        self.image_cache = None
        if args.cache_image_features:
            self.image_cache = CachedTower(self.model.base, args.cache_image_features)
        self.validation_questions = _draw(validation_questions or [], args.max_validation_questions, args.seed)
        self._step_graph: StepGraph | None = None
        self._noise_step, self._num_micro_batches = -1, 0
        self._kept_nodes: list[dict[str, torch.Tensor]] = []

    def _build_objective(self) -> AlignmentObjective | None:
        if self.args.alignment_weight == 0:
            return None
        refuse_unalignable(self.model)
        return AlignmentObjective(self.args)

    def _build_text_encoder(self, data_collator) -> TextEncoder | None:
        if data_collator is not None:
            return getattr(data_collator, "text_encoder", None)
        if self.args.alignment_text_encoder == "self" or self.args.alignment_weight == 0:
            return None
        device = "cpu" if self.args.use_cpu else None
        return TextEncoder(self.args.alignment_text_encoder, device)

    def _build_collator(self, data: dict[str, Any]) -> LoGraMedDataCollator:
        # Without the alignment loss the texts of the nodes still serve to measure retrieval, where there are any.
        evaluated = data.get("eval_dataset")
        evaluated = list(evaluated.values()) if isinstance(evaluated, dict) else [evaluated]
        # Features in another space would need a head, which only exists in aligned training.
        measurable = all(_have_extended_answers(rows) for rows in [data.get("train_dataset"), *evaluated])
        text_config = self.model.config.get_text_config()
        return LoGraMedDataCollator(
            self.processing_class,
            max_length=self.args.max_length,
            alignment=self.args.alignment_weight > 0 or (measurable and not self._needs_head()),
            config=self.args.alignment_config(),
            text_encoder=self.text_encoder,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
            completion_only_loss=self.args.completion_only_loss,
            text_hidden_size=text_config.hidden_size,
            nodes_optional=self.args.alignment_weight == 0,
            packs_in_one_row="flash" in (getattr(text_config, "_attn_implementation", None) or ""),
        )

    def _needs_head(self) -> bool:
        return self.args.uses_head or self.args.alignment_text_encoder != "self"

    def _wrap_for_alignment(self) -> None:
        """Put the model, which `SFTTrainer` has prepared, into the wrapper that the engines get."""
        objective = self.objective
        train_in_float32(self.model, self.args)
        freeze_unused_weights(unwrap_model(self.model))
        hidden_size = self.model.config.get_text_config().hidden_size
        text_size = hidden_size if self.text_encoder is None else self.text_encoder.size
        has_mlp = self.args.uses_head
        network = head = self.gradient_ratio = None
        if objective is not None:
            if has_mlp or text_size != hidden_size:
                head = AlignmentHead(hidden_size, text_size, has_mlp, self.args.alignment_regions, self.args.seed)
                embeddings = self.model.get_input_embeddings().weight
                head.to(embeddings.device, torch.promote_types(embeddings.dtype, torch.float32))
            if objective.uses_graph_network:
                network = build_graph_network(self.args, self.model, text_size if has_mlp else hidden_size)
            if self.args.alignment_image_node == "answer_state":
                self.gradient_ratio = GradientRatio(self.args.alignment_gradient_ratio, self.args.alignment_weight)
                if self.args.alignment_gradient_ratio is not None and self.args.alignment_weight != 1:
                    logger.warning(
                        "`alignment_gradient_ratio` sets the weight after the first step: `alignment_weight` "
                        f"{self.args.alignment_weight} holds for the first step alone. Leave out one of them."
                    )
        norms = None if self.gradient_ratio is None else self.gradient_ratio.norms
        self.model = self.model_wrapped = AlignedModel(self.model, network, self.args.alignment_config(), head, norms)
        self.callback_handler.model = self.model
        name_units(self.model, self.accelerator)
        check_engine(self.args, self.accelerator)

    def _watch(self) -> None:
        if self.gradient_ratio is not None:
            self.stateful["gradient_ratio"] = self.gradient_ratio
        self.means = self.stateful["logged_means"] = LoggedMeans()
        self.stateful["logged_sums"] = LoggedSums(self)
        self.termination = TerminationCallback()
        for callback in (GradientRatioCallback(self), ResumingCallback(self.load_stateful), self.termination):
            self.add_callback(callback)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """`SFTTrainer`'s loss plus, for a batch with graph nodes, the weighted alignment loss."""
        inputs = dict(inputs)
        nodes = inputs.pop("nodes", None)
        objective = self.objective
        self._check_nodes(objective, nodes)
        if nodes is None or (self.model.training and objective is None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        graph = self._open_graph(model, nodes)
        with graph.replay() if graph else nullcontext():
            outputs = self._pass(model, inputs, nodes, with_logits=self._needs_logits(return_outputs))
        # A stand-in for the model gives TRL the output of the one pass.
        loss = super().compute_loss(lambda **_: outputs, inputs, return_outputs, num_items_in_batch)
        loss, outputs = loss if return_outputs else (loss, outputs)
        if not self.model.training:
            features = {name: values.detach().float() for name, values in outputs.node_features.items()}
            keys = {name: nodes[name] for name in (GROUPS, ANSWER_KEYS)}
            self._kept_nodes.append({name: values.cpu() for name, values in (features | keys).items()})
        if objective is not None:
            alignment_loss, alignment = self._align(objective, outputs.node_features, nodes, graph)
            self._log_losses(loss, alignment, num_items_in_batch)
            loss = loss + self._weighted(alignment_loss, num_items_in_batch)
            if graph is not None:
                graph.finish(alignment_loss)
        return (loss, outputs) if return_outputs else loss

    def _check_nodes(self, objective, nodes) -> None:
        if objective is not None and nodes is None and self.args.rows_without_image == "refuse":
            raise ValueError(
                f"`alignment_weight` is {self.args.alignment_weight}, but the batch has no `nodes`: the data collator "
                "must give them, as `LoGraMedDataCollator(alignment=True)` does."
            )
        if nodes is None:
            return
        expected = {
            "alignment_granularity": ("turn_places", self.args.alignment_granularity != "sample"),
            "alignment_text_encoder": ("text_input_ids", self.text_encoder is None),
        }
        for name, (entry, is_expected) in expected.items():
            if (entry in nodes) != is_expected:
                raise ValueError(
                    f"`{name}` is {getattr(self.args, name)!r}, but the batch was built for other nodes: the data "
                    f"collator must be made for them, with `config=AlignmentConfig({name}=...)`."
                )

    def _needs_logits(self, return_outputs: bool) -> bool:
        smooths = self.label_smoother is not None and self.args.loss_type == "nll"
        return return_outputs or smooths or self.compute_loss_func is not None

    def _pass(self, model, inputs, nodes, with_logits: bool = False) -> AlignedOutput:
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        return model(nodes=nodes, output_logits=with_logits, **router, **inputs)

    def _align(
        self, objective: AlignmentObjective, features: dict[str, torch.Tensor], nodes, graph: StepGraph | None
    ) -> tuple[torch.Tensor, AlignmentOutput | None]:
        """The alignment loss of a batch, and the objective's output (None for a step's later micro-batches)."""
        groups = nodes[GROUPS]
        if not self.model.training:
            output = objective(features, self.model.graph_network, training=False, groups=groups)
            return output.loss, output
        if graph is not None and graph.position > 0:
            return cached_loss(features, graph.cached_gradients(), self.model.graph_network), None
        if graph is not None:
            features, groups = graph.join(features, groups)
        if self.args.gather_graph:
            features, groups = gather_nodes(features, groups)
        generator = self._noise(groups.device)
        with same_randomness(generator, self.args.gather_graph):
            output = objective(features, self.model.graph_network, generator=generator, groups=groups)
        return output.loss, output

    def _open_graph(self, model, nodes) -> StepGraph | None:
        """The graph over a step's micro-batches; its nodes are computed at the first of these."""
        graph = self._step_graph if self.model.training else None
        if graph is not None and graph.position == 0:
            graph.compute_nodes(lambda inputs: self._compute_nodes(model, inputs), nodes[GROUPS].device)
        return graph

    def _compute_nodes(self, model, inputs) -> Nodes:
        inputs = dict(self._prepare_inputs(inputs))
        nodes = inputs.pop("nodes")
        # With the same logits as in training, so that dropout draws the same random numbers.
        outputs = self._pass(model, inputs, nodes, with_logits=self._needs_logits(return_outputs=False))
        return outputs.node_features, nodes[GROUPS]

    def create_model_card(self, *args, **kwargs):
        """Does nothing: `logramed.hub_cards` writes the card from the results of the run."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As `Trainer`'s, before training begins; raises `ValueError` for a public repository unless asked for."""
        super().init_hf_repo(token, private)
        if self.is_world_process_zero() and self.args.hub_private_repo is not False:
            found = HfApi(token=token or self.args.hub_token).repo_info(self.hub_model_id)
            if not found.private:
                raise ValueError(
                    f"{self.hub_model_id} is public already, so everybody would see this model. Give "
                    "`--hub_private_repo false` if you want that, or another name."
                )

    def push_to_hub(self, commit_message: str = "Trained with LoGra-Med", token: str | None = None, **kwargs):
        """Publish what is in `output_dir` with its card, in one commit: see `logramed.trainer.train.publish`."""
        from logramed.trainer.train import publish

        return publish(self, commit_message, token)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        As `Trainer`'s: the model with its processor. A checkpoint also has the weights of the alignment, in
        `alignment.safetensors`.
        """
        output_dir = output_dir or self.args.output_dir
        if not self._saves_shards():
            state_dict = self._gather_state_dict()
            if self.args.should_save:
                self.model.save_pretrained(output_dir, state_dict)
                self.processing_class.save_pretrained(output_dir)
                torch.save(self.args, Path(output_dir) / TRAINING_ARGS_NAME)
                if self._staged:  # a checkpoint
                    self.model.save_alignment(output_dir, state_dict or self.model.state_dict())
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _saves_shards(self) -> bool:
        """Whether FSDP saves the model as sharded checkpoint only."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        return plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type)

    def _gather_state_dict(self) -> dict[str, torch.Tensor] | None:
        """The wrapper's state, gathered from all processes (a collective call); None if each process has all of it."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.model_wrapped)
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """As `Trainer`'s, but through the model's own `from_pretrained`; FSDP and DeepSpeed load in their own way."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        if isinstance(self.model.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, self.model.model)
        else:
            load_weights(self.model.model, resume_from_checkpoint)
        self.model.load_alignment(resume_from_checkpoint)

    def _load_best_model(self):
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        return self._load_from_checkpoint(self.state.best_model_checkpoint)

    def train(self, *args, **kwargs):
        """As `WholeCheckpoints`'s; adds the step to errors, and restores the handler of SIGTERM at the end."""
        try:
            return super().train(*args, **kwargs)
        except BaseException as error:
            error.add_note(f"{self.state.global_step} steps of training had been taken.")
            raise
        finally:
            self.termination.restore()

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As `Trainer`'s, but raises `FloatingPointError` for a non-finite loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        check_loss(loss, self.means, self.state.global_step, inputs, self._tokenizer)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # there the gradient scaler leaves such a step out, and lowers its scale
            check_gradient_norm(norm, self.state.global_step)
        return norm

    def get_batch_samples(self, *args, **kwargs):
        """As `Trainer`'s; with `accumulate_graph` the returned micro-batches make one graph."""
        micro_batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        spans = self.args.accumulate_graph and self.objective is not None and len(micro_batches) > 1
        self._step_graph = StepGraph(micro_batches) if spans else None
        return micro_batches, num_items_in_batch

    def _accumulation_steps(self, num_items_in_batch):
        return 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps

    def _weighted(self, alignment_loss, num_items_in_batch):
        # `num_items_in_batch` averages the language-modeling loss over the whole accumulated batch, but this loss is a
        # mean over one micro-batch: undivided, its weight would grow with `gradient_accumulation_steps`. Over devices
        # DDP takes the mean of the gradients, which is right for it as it stands.
        weighted = self.alignment_weight_at(self.state.global_step) * alignment_loss
        if self.model.training and self._step_graph is not None:
            # One loss per step, not a mean over micro-batches: undo the division by `Trainer`.
            return weighted * (self.current_gradient_accumulation_steps if num_items_in_batch is None else 1)
        return weighted / self._accumulation_steps(num_items_in_batch)

    def alignment_weight_at(self, step: int) -> float | torch.Tensor:
        """
        The weight of the alignment loss after `step` steps. In an evaluation it is `args.alignment_weight` at any
        step, so that evaluations of a run can be compared.
        """
        if not self.model.training:
            return self.args.alignment_weight
        weight = self.args.alignment_weight if self.gradient_ratio is None else self.gradient_ratio.weight
        if self.args.alignment_schedule == "constant":
            return weight
        progress = step / max(self.state.max_steps, 1)
        left = 1 - progress if self.args.alignment_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return left * weight

    def follow_gradient_ratio(self, step: int) -> None:
        """Update the weight from the gradients measured in the step after `step` others, and log both."""
        if self.gradient_ratio is not None:
            weight = self.alignment_weight_at(step)
            self.gradient_ratio.update(weight, self.accelerator)
            self.means.add("train", {"alignment_weight": weight, "gradient_ratio": self.gradient_ratio.measured})

    def _log_losses(self, loss, alignment: AlignmentOutput | None, num_items_in_batch):
        values = {"language_modeling_loss": loss.detach() * self._accumulation_steps(num_items_in_batch)}
        if alignment is not None:
            values["alignment_loss"] = alignment.loss.detach()
            if self._is_logged_step():
                values["matching_accuracy"] = alignment.matching_accuracy
        self.means.add("train" if self.model.training else "eval", values)

    def _is_logged_step(self) -> bool:
        step = self.state.global_step + 1
        if not self.model.training or self.args.logging_strategy != "steps":
            return True
        first = step == 1 and self.args.logging_first_step
        return first or step == self.state.max_steps or step % self.state.logging_steps == 0

    def log(self, logs, start_time=None):
        """As `SFTTrainer`'s, with the parts of the loss."""
        mode = "train" if self.model.training else "eval"
        prefix = "" if mode == "train" else "eval_"
        logs |= {f"{prefix}{name}": value for name, value in self.means.read(mode, self.accelerator).items()}
        super().log(logs, start_time)

    def _noise(self, device):
        """
        The generator of the noise in the matching, on the features' device. Its seed depends on run, step, micro-batch
        and process only, so that a resumed run draws the same noise as an uninterrupted one. For a graph that all
        processes compute, it is the same on each.
        """
        if self._noise_step != self.state.global_step:
            self._noise_step, self._num_micro_batches = self.state.global_step, 0
        process_index = 0 if self.args.gather_graph else self.args.process_index
        place = (self.args.seed, self._noise_step, self._num_micro_batches, process_index)
        self._num_micro_batches += 1
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """As `Trainer`'s, with recall between the modalities and accuracy on the validation questions."""
        self._kept_nodes.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = self._measure_retrieval()
        if self.validation_questions:
            model = self.accelerator.unwrap_model(self.model)
            gather_own_weights(model)
            metrics |= score_answers(
                model.model,
                self.processing_class,
                self.validation_questions,
                batch_size=self.args.per_device_eval_batch_size,
                max_new_tokens=self.args.max_new_tokens,
            )
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _measure_retrieval(self) -> dict[str, float]:
        """Recall over the nodes of all processes."""
        kept = gather_object(self._kept_nodes)
        self._kept_nodes = []
        if not kept:
            return {}
        nodes = {name: torch.cat([batch[name] for batch in kept]) for name in kept[0]}
        groups, answer_keys = nodes.pop(GROUPS), nodes.pop(ANSWER_KEYS)
        return retrieval_metrics(nodes, groups, answer_keys)


def as_training_arguments(args: TrainingArguments | None, model: str | nn.Module) -> LoGraMedTrainingArguments:
    """`args` as `LoGraMedTrainingArguments`, with the settings that this trainer needs."""
    if args is None:
        name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", None)
        args = LoGraMedTrainingArguments(f"{Path(name or 'model').name}-LoGraMed")
    elif not isinstance(args, LoGraMedTrainingArguments):
        known = {field.name for field in dataclasses.fields(LoGraMedTrainingArguments) if field.init}
        values = {name: value for name, value in args.to_dict().items() if name in known}
        args = LoGraMedTrainingArguments(**{**values, "hub_token": args.hub_token})  # `to_dict` hides it
    if args.dataset_text_field != "text" or args.packing or args.padding_free:
        raise ValueError(
            "`dataset_text_field`, `packing` and `padding_free` are for text without images: leave them out, and give "
            "rows of `messages`."
        )
    if args.train_sampling_strategy == "group_by_length":
        raise ValueError(
            "`train_sampling_strategy` 'group_by_length' needs tokenized rows, but the collator tokenizes later."
        )
    args.remove_unused_columns = False  # the collator reads columns that the model does not take
    args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}  # the collator tokenizes
    args.assistant_only_loss = False  # the collator masks all but answers already; TRL would change the chat template
    return args


def build_graph_network(args: LoGraMedTrainingArguments, model: nn.Module, node_size: int) -> GraphNetwork:
    """A graph network initialized with the run's seed, in float32 or higher, on the model's device."""
    embeddings = model.get_input_embeddings().weight
    with seeded(args.seed):  # leaves the global generator as a run without alignment has it
        network = GraphNetwork(node_size, args.graph_dropout)
    return network.to(embeddings.device, torch.promote_types(embeddings.dtype, torch.float32))


def _have_extended_answers(rows) -> bool:
    """Whether the first row with an image has extended answers; False for a stream."""
    row = _first_with_image(rows)
    return row is not None and row.get("extended_answers") is not None


def _first_with_image(rows) -> dict[str, Any] | None:
    """The first row with an image, or else the first row; None for a stream or no rows."""
    if not hasattr(rows, "__len__") or len(rows) == 0:
        return None
    names = [name for name in ("images", "image") if name in rows[0]]
    return next((row for row in rows if any(row[name] for name in names)), rows[0]) if names else rows[0]


def _align_without_extended_answers(args: LoGraMedTrainingArguments, rows) -> None:
    """Drop extended answers from the nodes, with a warning, if the first row with an image has none."""
    others, row = args.texts_without_extended, _first_with_image(rows)
    if args.alignment_texts == others or args.alignment_granularity == "span" or row is None:
        return
    if not any(row.get(field) for field in (*EXTENDED_KEYS, "extended_answers")):
        logger.warning("The rows have no extended answers: images are aligned with answers alone.")
        args.alignment_texts = others


def _draw(questions: Sequence[dict], num_questions: int, seed: int) -> list[dict[str, Any]]:
    """At most `num_questions` of `questions`, drawn with `seed`, in the original order."""
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed))[:num_questions]
    return [questions[index] for index in sorted(order.tolist())]
