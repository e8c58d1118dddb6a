"""`LoGraMedTrainer`: TRL's supervised fine-tuning with an alignment loss beside the language-modeling loss."""

import hashlib
import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import HfApi
from torch.utils.data import SequentialSampler
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from logramed.hub_cards.publications import prepare
from logramed.hub_cards.push import Push, PushError, refuse_public
from logramed.node_features_logramed import count_spans
from logramed.trainer.alignment import AlignmentObjective, AlignmentOutput, recall_at_k
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.checkpoints import LoggedSums, ResumingCallback, WholeCheckpoints
from logramed.trainer.collator import LoGraMedDataCollator
from logramed.trainer.devices import check_engine, gather_language_head, gather_own_weights, name_existing_units
from logramed.trainer.gradient_caching import CachedGradientRecorder, StepGraph
from logramed.trainer.graph_nodes import AlignmentMemory, BeyondBatch, ExtraNodes, Nodes, same_randomness
from logramed.trainer.image_cache import CachedTower
from logramed.trainer.interruption import (
    EvaluationTerminatedError,
    TerminationCallback,
    check_gradient_norm,
    check_loss,
)
from logramed.trainer.length_grouping import SeededLengthSampler, count_tokens
from logramed.trainer.parts import keep_dtypes, unwrap_adapters
from logramed.trainer.unused_weights import freeze_unused_weights
from logramed.trainer.validation import score_answers
from logramed.trainer.watching import Speedometer, compare_gradients


ANSWER_KEYS = "answer_keys"
GROUPS = "groups"
RETRIEVAL_RANKS = (1, 5)


class LoGraMedTrainer(WholeCheckpoints, SFTTrainer):
    """
    [`trl.SFTTrainer`] that adds `alignment_weight` times an alignment loss; with weight 0 it is plain `SFTTrainer`.

    The nodes that are aligned are the samples of a batch, their turns, or the sentences of their extended answers
    (`alignment_granularity`).

    In each step it logs `loss` (total), `language_modeling_loss`, `alignment_loss` and `matching_accuracy` (share of
    nodes matched to themselves). An evaluation gives these too, without noise in the matching, and recall at 1 and 5
    between the modalities of all evaluation nodes, such as `eval_recall_at_1_image_to_answer`: the share of images
    whose own answer is the nearest (nodes with identical answers count as one). A low alignment loss is no evidence
    of alignment (the loss can be met without it); recall is. With `validation_questions` it also answers those.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, ...:
            As for `SFTTrainer`; the data sets hold training rows (see `logramed.trainer.data`).
        data_collator (`Callable`, *optional*):
            By default a `LoGraMedDataCollator` for `processing_class`.
        validation_questions (`Sequence[dict]`, *optional*):
            Question rows (see `logramed.eval`) that are answered at each evaluation, at most
            `args.max_validation_questions` of them, for `eval_closed_accuracy` and `eval_open_recall`.

    Attributes:
        stateful (`dict[str, Any]`):
            What a checkpoint must hold for a resumed run to go on as the uninterrupted one, beside what `Trainer`
            saves: objects with `state_dict` and `load_state_dict`, by name.
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
        self.stateful: dict[str, Any] = {}
        if args.alignment_weight > 0:
            self.objectives["train"] = build_objective(args, model.config, args.small_batch)
            # The last batch of an evaluation may well be small, which is no reason to end a run.
            self.objectives["eval"] = build_objective(args, model.config, "shrink")
        if data_collator is None:
            # Without the alignment loss the texts of the nodes still serve to measure retrieval, where there are any.
            evaluated = kwargs.get("eval_dataset")
            evaluated = list(evaluated.values()) if isinstance(evaluated, dict) else [evaluated]
            measurable = all(_have_extended_answers(rows) for rows in [kwargs.get("train_dataset"), *evaluated])
            data_collator = LoGraMedDataCollator(
                kwargs.get("processing_class"),
                max_length=args.max_length,
                alignment=args.alignment_weight > 0 or measurable,
                extended=args.use_extended_answers,
                granularity=args.alignment_granularity,
            )
        args.remove_unused_columns = False  # the collator reads columns that are no arguments of the model
        dtypes = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
        super().__init__(model, args, data_collator=data_collator, **kwargs)
        keep_dtypes(model, dtypes)
        name_existing_units(self.model)
        self.model.register_forward_pre_hook(gather_language_head)
        self.model.register_forward_hook(_link_alignment_loss, with_kwargs=True)
        trained = self.objectives["train"]
        freeze_unused_weights(self.model, trained is not None and trained.uses_graph_network)
        self.image_cache = (
            CachedTower(unwrap_adapters(self.model), args.cache_image_features)
            if (args.cache_image_features)
            else None
        )
        self._step_graph: StepGraph | None = None
        if args.alignment_memory > 0 and args.alignment_weight > 0:
            self.stateful["alignment_memory"] = AlignmentMemory(args.alignment_memory)
        check_engine(args, self.accelerator)
        self._noise_step, self._num_micro_batches = -1, 0
        self._kept_nodes: list[dict[str, torch.Tensor]] = []
        self.validation_questions = _draw(validation_questions or [], args.max_validation_questions, args.seed)
        self.stateful["logged_sums"] = LoggedSums(self)
        self.termination = self.stateful["termination"] = TerminationCallback()
        self.speedometer = Speedometer()
        for callback in (ResumingCallback(self._begin, self._make_up_evaluation), self.termination, self.speedometer):
            self.add_callback(callback)

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
        granularity = self.args.alignment_granularity
        groups, answer_keys = node_keys(inputs, granularity, self._tokenizer)
        recorder = (
            self._training_recorder(model, groups) if training else AlignmentRecorder(objective, False, None, groups)
        )
        inputs = {**inputs, "alignment_objective": recorder, "alignment_granularity": granularity}
        with self._step_graph.replay() if training and self._step_graph else nullcontext():
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = loss if return_outputs else (loss, None)
        if not training:
            self._kept_nodes.append({**recorder.node_features, GROUPS: groups, ANSWER_KEYS: answer_keys})
        if recorder.loss is not None:
            self._log_losses(loss, recorder.output, num_items_in_batch)
            alignment_loss = self._weighted(recorder.loss, num_items_in_batch)
            if recorder.output is not None:  # not so in later micro-batches of a graph over all of a step
                self._log_gradients(loss, alignment_loss)
            loss = loss + alignment_loss
        if training and self._step_graph is not None:
            self._step_graph.finish(recorder.loss)
        return (loss, outputs) if return_outputs else loss

    def create_model_card(self, *args, **kwargs):
        """Nothing: the card is written from the results of the run, when there are some (`logramed.hub_cards`)."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As `Trainer`'s, before training begins; a public repository is refused then, unless that is meant."""
        super().init_hf_repo(token, private)
        if self.is_world_process_zero() and self.args.hub_private_repo is not False:
            found = HfApi(token=token or self.args.hub_token).repo_info(self.hub_model_id)
            refuse_public(self.hub_model_id, found.private)

    def push_to_hub(self, commit_message: str = "Trained with LoGra-Med", token: str | None = None, **kwargs):
        """
        Publish what is in `output_dir` with its card, in one commit (see `logramed.hub_cards.push`). Nobody is asked:
        `args.push_to_hub`, or this call, is the consent. Private unless `args.hub_private_repo` is false.

        Returns:
            `str`: the name of the commit, on the main process; None on others.

        Raises:
            PushError: If it could not be published, or holds what must not be.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        publication = prepare(self.args.output_dir, self.hub_model_id, license=self.args.hub_license)
        push = Push(
            publication,
            self.hub_model_id,
            private=self.args.hub_private_repo is not False,
            revision=self.args.hub_revision,
            message=commit_message,
            token=token or self.args.hub_token,
        )
        try:
            return push.run(lambda question: True)
        except PushError as error:
            folder = self.args.output_dir
            error.add_note(
                f"The run is complete in {folder}. Publish it with `logramed-push {folder} --repo {self.hub_model_id} "
                f"--license {self.args.hub_license}`."
            )
            raise

    def train(self, *args, **kwargs):
        """As `WholeCheckpoints`'s; an error is told its step, and SIGTERM has its former handler back in the end."""
        try:
            return super().train(*args, **kwargs)
        except BaseException as error:
            error.add_note(f"{self.state.global_step} steps of training had been taken.")
            raise
        finally:
            self.termination.restore()

    def _begin(self):
        self.load_stateful()
        if self.state.global_step >= self.state.max_steps:  # no step will come to do it before
            self._make_up_evaluation()

    def _make_up_evaluation(self):
        """The evaluation that SIGTERM kept the run from, of the checkpoint that it now goes on from."""
        if not self.termination.has_left_out_evaluation:
            return
        self.termination.has_left_out_evaluation = False
        metrics = self._evaluate(None, None)
        if self._determine_best_metric(metrics, None):
            self.state.best_model_checkpoint = self._resumed_from

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """As `Trainer`'s; SIGTERM ends an evaluation, and the step is saved without it."""
        randomness = torch.get_rng_state()
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationTerminatedError:
            torch.set_rng_state(randomness)  # what the evaluation drew of it, it will draw when it is made up for
            self._metrics["eval"].clear()
            self.termination.stop(self.state, self.control, leaves_out_evaluation=True)
            super()._maybe_log_save_evaluate(*args, **kwargs)  # logged already; saves

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As `Trainer`'s, but a loss that is not finite ends the run, with the last checkpoint as it is."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        check_loss(loss, self._metrics["train"], self.state.global_step, inputs, self._tokenizer)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # there the gradient scaler leaves such a step out, and lowers its scale
            check_gradient_norm(norm, self.state.global_step)
        return norm

    def get_batch_samples(self, *args, **kwargs):
        """As `Trainer`'s; with `accumulate_graph` the micro-batches that it returns make one graph."""
        micro_batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        self.restore_randomness()
        spans = self.args.accumulate_graph and self.objectives["train"] is not None and len(micro_batches) > 1
        self._step_graph = StepGraph(micro_batches) if spans else None
        return micro_batches, num_items_in_batch

    def _training_recorder(self, model, groups):
        """What the model calls with the nodes of a training batch: the objective, or their share of its gradient."""
        objective, graph = self.objectives["train"], self._step_graph
        if graph is not None and graph.position > 0:
            return CachedGradientRecorder(graph.cached_gradients(), objective.uses_graph_network)
        if graph is not None:
            graph.compute_nodes(lambda inputs: self._compute_nodes(model, inputs), groups.device)
        beyond = BeyondBatch(
            self.args.gather_graph, self.stateful.get("alignment_memory"), graph.join if graph else None
        )
        return AlignmentRecorder(
            objective, True, self._noise(groups.device), groups, beyond, shared=self.args.gather_graph
        )

    def _compute_nodes(self, model, inputs) -> Nodes:
        inputs = self._prepare_inputs(inputs)
        granularity = self.args.alignment_granularity
        groups, _ = node_keys(inputs, granularity, self._tokenizer)
        recorder = AlignmentRecorder(None, True, None, keep_dtype=True)
        inputs = {**inputs, "alignment_objective": recorder, "alignment_granularity": granularity}
        model(**inputs, use_cache=False, fused_lm_head=True)  # as in training, for the same random numbers
        return recorder.node_features, groups

    def _get_train_sampler(self, train_dataset=None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(rows, Dataset):
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededLengthSampler(batch_size, count_tokens(rows, self.data_collator), seed)

    def _get_eval_sampler(self, eval_dataset):
        if self.args.train_sampling_strategy == "group_by_length":
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def _accumulation_steps(self, num_items_in_batch):
        return 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps

    def _weighted(self, alignment_loss, num_items_in_batch):
        # `num_items_in_batch` averages the language-modeling loss over the whole accumulated batch, but this loss is a
        # mean over one micro-batch: undivided, its weight would grow with `gradient_accumulation_steps`. Over devices
        # DDP takes the mean of the gradients, which is right for it as it stands.
        if self.model.training and self._step_graph is not None:
            # One loss a step, not a mean over micro-batches. What `Trainer` divides by is made up for.
            divided_by = self.current_gradient_accumulation_steps if num_items_in_batch is None else 1
            return self.args.alignment_weight * alignment_loss * divided_by
        return self.args.alignment_weight * alignment_loss / self._accumulation_steps(num_items_in_batch)

    def _log_losses(self, loss, alignment: AlignmentOutput | None, num_items_in_batch):
        values = {"language_modeling_loss": loss.detach() * self._accumulation_steps(num_items_in_batch)}
        if alignment is not None:
            values["alignment_loss"] = alignment.loss.detach()
            values["matching_accuracy"] = alignment.matching_accuracy
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float32, device=loss.device)
            metrics[name].append(self.accelerator.gather_for_metrics(value.reshape(1)).mean().item())

    def _log_gradients(self, language_modeling_loss, alignment_loss):
        """Of the first micro-batch of every `gradient_norm_steps`-th step, of this process."""
        every = self.args.gradient_norm_steps
        first = self._num_micro_batches == 1 and self._noise_step == self.state.global_step
        if self.model.training and every and first and (self.state.global_step + 1) % every == 0:
            compared = compare_gradients(self.model, language_modeling_loss, alignment_loss)
            for name, value in compared.items():
                self._metrics["train"][name].append(value)

    def log(self, logs, start_time=None):
        """As `SFTTrainer`'s, with speed and memory beside the losses of training."""
        if "loss" in logs:
            logs |= self.speedometer.read(int(self._total_train_tokens))
        super().log(logs, start_time)

    def _noise(self, device):
        """
        The generator of the noise in the matching: on the features' device, seeded by run, step, micro-batch and
        process alone, so that a resumed run draws what the uninterrupted one does. Of a graph that all processes
        compute it is the same on each.
        """
        if self._noise_step != self.state.global_step:
            self._noise_step, self._num_micro_batches = self.state.global_step, 0
        process_index = 0 if self.args.gather_graph else self.args.process_index
        place = (self.args.seed, self._noise_step, self._num_micro_batches, process_index)
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
            groups, answer_keys = nodes.pop(GROUPS), nodes.pop(ANSWER_KEYS)
            metrics |= retrieval_metrics(nodes, groups, answer_keys)
            self._kept_nodes.clear()
        if self.validation_questions:
            model = self.accelerator.unwrap_model(self.model)
            gather_own_weights(model)
            metrics |= score_answers(
                model,
                self.processing_class,
                self.validation_questions,
                batch_size=self.args.per_device_eval_batch_size,
                max_new_tokens=self.args.max_new_tokens,
                on_answer=lambda: self.termination.check_evaluation(self.args),
            )
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _gather(self, name):
        """
        All kept values of `name`, on every process, whose batches may hold different numbers of nodes; a sampler that
        repeats samples to even out is allowed for.
        """
        return torch.cat([part for batch in self._kept_nodes for part in self._gather_batch(batch[name])])

    def _gather_batch(self, values):
        count = torch.tensor([len(values)], device=values.device)
        counts = self.accelerator.gather(count).tolist()
        gathered = self.accelerator.gather(self.accelerator.pad_across_processes(values)).cpu()
        return [part[:count] for part, count in zip(gathered.split(max(counts)), counts, strict=True)]

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

    Args:
        objective (`AlignmentObjective`, *optional*): None keeps the features only.
        training (`bool`): Whether there is noise in the matching.
        generator (`torch.Generator`, *optional*): Its source.
        groups (`torch.Tensor` of shape `(num_nodes,)`, *optional*): Equal for nodes that are one and the same.
        extra_nodes (`Callable`, *optional*): Called with the nodes `(num_nodes, hidden_size)` of each modality and
            their groups, and returns those that the objective gets in their place: these, and further ones from other
            devices or earlier micro-batches, with or without gradient, in the same order in every modality.
        keep_attention (`bool`, *optional*, defaults to `False`): Keep what the pooling attended to, for pictures.
        shared (`bool`, *optional*, defaults to `False`): All processes compute this graph: they then draw the same
            dropout masks in it.
        keep_dtype (`bool`, *optional*, defaults to `False`): Keep features in the dtype they have.

    Attributes:
        loss (`torch.Tensor`, scalar, or None): What is added, weighted, to the language-modeling loss.
        output (`AlignmentOutput` or None): What the objective returned; None without an objective.
        node_features (`dict[str, torch.Tensor]`): `(num_nodes, hidden_size)` float32 each, without gradient; those of
            the batch alone.
        attention (`dict[str, torch.Tensor]`): With `keep_attention`, where nodes are turns or spans: the weights of
            `"regions"` `(num_turns, num_regions)` and of `"spans"` `(num_turns, num_spans)`, without gradient.
    """

    def __init__(
        self,
        objective: AlignmentObjective | None,
        training: bool,
        generator: torch.Generator | None,
        groups: torch.Tensor | None = None,
        extra_nodes: ExtraNodes | None = None,
        keep_attention: bool = False,
        shared: bool = False,
        keep_dtype: bool = False,
    ):
        self.objective, self.training, self.generator, self.groups = objective, training, generator, groups
        self.extra_nodes, self.keep_attention = extra_nodes, keep_attention
        self.shared, self.keep_dtype = shared, keep_dtype
        self.loss: torch.Tensor | None = None
        self.output: AlignmentOutput | None = None
        self.node_features: dict[str, torch.Tensor] = {}
        self.attention: dict[str, torch.Tensor] = {}

    def __call__(
        self,
        node_features: dict[str, torch.Tensor],
        graph_network: torch.nn.Module | None,
        attention: dict[str, torch.Tensor] | None = None,
    ) -> None:
        detached = {name: features.detach() for name, features in node_features.items()}
        self.node_features = detached if self.keep_dtype else {name: value.float() for name, value in detached.items()}
        if self.keep_attention and attention is not None:
            self.attention = {name: weights.detach() for name, weights in attention.items()}
        if self.objective is None:
            return
        groups = self.groups
        if self.extra_nodes is not None:
            node_features, groups = self.extra_nodes(node_features, groups)
        with same_randomness(self.generator, self.shared):
            self.output = self.objective(
                node_features, graph_network, generator=self.generator, training=self.training, groups=groups
            )
        self.loss = self.output.loss


def build_objective(args: LoGraMedTrainingArguments, config, small_batch: str) -> AlignmentObjective:
    """The alignment objective that the arguments ask for, with the graph settings of the model's configuration."""
    return AlignmentObjective(
        args.alignment_loss,
        targets=args.alignment_targets,
        num_neighbors=config.graph_num_neighbors,
        edge_weight=args.edge_weight,
        edge_matching=args.edge_matching,
        message_weight=args.message_weight,
        margin=args.alignment_margin,
        temperature=args.alignment_temperature,
        edge_temperature=args.edge_temperature,
        gradient_estimator=args.gradient_estimator,
        noise_scale=args.noise_scale,
        num_samples=args.num_noise_samples,
        small_batch=small_batch,
    )


def retrieval_metrics(
    node_features: dict[str, torch.Tensor], groups: torch.Tensor, answer_keys: torch.Tensor | None = None
) -> dict[str, float]:
    """
    Recall at 1 and 5 for each ordered pair of modalities, in 0 to 1; a rank that no node could miss is left out.

    Args:
        node_features (`dict[str, torch.Tensor]`): `(num_nodes, hidden_size)` each.
        groups (`torch.Tensor` of shape `(num_nodes,)`): Equal for nodes that count as one.
        answer_keys (`torch.Tensor` of shape `(num_nodes,)`, *optional*): The groups of pairs with `"answer"`, where
            they are others: equal answers cannot be told apart, whatever their extended answers say.
    """
    metrics = {}
    for source, target in itertools.permutations(node_features, 2):
        pair_groups = groups if answer_keys is None or "answer" not in (source, target) else answer_keys
        for k in RETRIEVAL_RANKS:
            if k < len(pair_groups.unique()):
                recall = recall_at_k(node_features[source], node_features[target], k, pair_groups)
                metrics[f"recall_at_{k}_{source}_to_{target}"] = recall
    return metrics


def _link_alignment_loss(module, args, kwargs, output):
    """
    Make the alignment loss, times 0, a part of what `forward` returns under DDP, which waits only for the gradients of
    parameters that it finds behind the output.
    """
    recorder = kwargs.get("alignment_objective")
    if recorder is not None and recorder.loss is not None and torch.distributed.is_initialized():
        name = "log_probs" if "log_probs" in output else "logits"
        output[name] = output[name] + 0 * recorder.loss


def node_keys(inputs: dict[str, torch.Tensor], granularity: str, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Which nodes of a batch are one and the same: two int64 `(num_nodes,)`, equal for equal nodes.

    The first is the groups of the objective. Samples are one if their answers are; turns if their answers and extended
    answers are, for then no text tells them apart; spans if their turns are, for they share image and answer. (That
    many a "yes" is the same answer node costs a loss that no alignment can avoid, but no gradient: it cancels over
    equal nodes.) The second is equal for equal answers: what retrieval of answers can be right about.

    Raises:
        ValueError: If the batch was not built for `granularity`.
    """
    if ("num_turns" in inputs) != (granularity != "sample"):
        raise ValueError(
            f"`alignment_granularity` is {granularity!r}, but the batch was built for other nodes: the data collator "
            f"must be made for them, as `LoGraMedDataCollator(granularity={granularity!r})` is."
        )
    answer_keys = text_keys(inputs["answer_input_ids"], tokenizer)
    if granularity == "sample" or "extended_input_ids" not in inputs:
        return answer_keys, answer_keys
    between = torch.full_like(inputs["answer_input_ids"][:, :1], -1)  # no token, so that both texts stay apart
    both = torch.cat([inputs["answer_input_ids"], between, inputs["extended_input_ids"]], dim=1)
    groups = text_keys(both, tokenizer)
    if granularity == "span":
        num_spans = count_spans(inputs["extended_span_ids"])
        return groups.repeat_interleave(num_spans), answer_keys.repeat_interleave(num_spans)
    return groups, answer_keys


def text_keys(input_ids: torch.Tensor, tokenizer) -> torch.Tensor:
    """For each row of `(batch_size, sequence_length)` an int64, equal for equal texts whatever their padding."""
    keys = []
    for row in input_ids.tolist():
        text = ",".join(str(token_id) for token_id in row if token_id != tokenizer.pad_token_id)
        keys.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1)
    return torch.tensor(keys, device=input_ids.device)


def _have_extended_answers(rows) -> bool:
    """Whether rows that can be looked at, not a stream, have them, going by the first."""
    return hasattr(rows, "__len__") and len(rows) > 0 and rows[0].get("extended_answers") is not None


def _draw(questions: Sequence[dict], num_questions: int, seed: int) -> list[dict[str, Any]]:
    """At most `num_questions` of `questions`, drawn with `seed`, in their order."""
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed))[:num_questions]
    return [questions[index] for index in sorted(order.tolist())]
