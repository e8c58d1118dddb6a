"""
A vision-language model with its alignment modules: one backbone pass computes the language-modeling figures and the
features of the graph nodes. For any model of transformers 5 whose images become tokens of the language model.
"""

import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel
from torch import nn
from transformers.utils import ModelOutput
from trl.trainer.utils import add_fused_lm_head

from logramed.trainer.alignment.alignment_head import AlignmentHead
from logramed.trainer.alignment.config import AlignmentConfig
from logramed.trainer.alignment.gradient_ratio import GradientNorms
from logramed.trainer.alignment.graph_network import GraphNetwork
from logramed.trainer.alignment.node_features import NodeFeatures, pool_images, pool_regions, text_features
from logramed.trainer.engines.devices import gather_language_head
from logramed.trainer.engines.parts import unwrap_model


logger = logging.getLogger(__name__)

ALIGNMENT_FILE = "alignment.safetensors"
TOKEN_FIGURES = ("log_probs", "entropy", "is_top1")
TOKENS_AT_ONCE = 128  # labelled tokens per chunk in the language-model head on a CPU
# Layouts of the node texts, in the order in which they are tried: several texts per row, kept apart by positions of
# one axis or (Qwen2-VL) four, or one text per row, with causal or (PaliGemma) bidirectional attention.
TEXT_LAYOUTS = ("packed", "packed_four_axes", "padded", "padded_both_ways")


@dataclass
class AlignedOutput(ModelOutput):
    """
    Outputs of one forward pass.

    Attributes:
        log_probs, entropy (`torch.Tensor` of shape `(batch_size, sequence_length - 1)`):
            For each next token, log-probability of its label and entropy of its distribution; 0 without a label.
        is_top1, label_mask (`torch.Tensor` of that shape, bool):
            Whether the label is the likeliest token, and whether there is one.
        logits (`torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*):
            Only if requested.
        last_hidden_state (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Input of the language model's head.
        node_features, attention (`dict[str, torch.Tensor]`):
            As in `logramed.trainer.alignment.node_features.NodeFeatures`.
        graph_weights (`tuple[torch.Tensor, ...]`):
            Views of the graph network's weights, which the loss uses after this pass: DDP only waits for gradients of
            weights that it can reach from the output of the forward pass.
        aux_loss (`torch.Tensor`, scalar, *optional*):
            Load-balancing loss of a mixture of experts, if router logits were requested.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    label_mask: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    node_features: dict[str, torch.Tensor] | None = None
    attention: dict[str, torch.Tensor] | None = None
    graph_weights: tuple[torch.Tensor, ...] | None = None
    aux_loss: torch.Tensor | None = None


class AlignedModel(nn.Module):
    """
    Wraps a `PreTrainedModel` or `PeftModel` together with the graph network and head for alignment, as configured by
    `config`; DDP, FSDP2 and DeepSpeed wrap this module. Other attributes are looked up on the model, and
    `save_pretrained` saves only the model, as PEFT's wrapper does. `gradient_norms` records the gradients at the
    answer states during the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        graph_network: GraphNetwork | None = None,
        config: AlignmentConfig | None = None,
        head: AlignmentHead | None = None,
        gradient_norms: GradientNorms | None = None,
    ):
        super().__init__()
        self.model = model
        self.graph_network, self.head = graph_network, head
        self.alignment = config or AlignmentConfig()
        self.gradient_norms = gradient_norms
        self._text_layout: str | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not yet set
                raise
            return getattr(self.model, name)

    @property
    def base(self) -> nn.Module:
        """The model without adapters around it."""
        return unwrap_model(self.model)

    def forward(
        self,
        nodes: dict[str, torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        output_logits: bool = False,
        **inputs: Any,
    ) -> ModelOutput:
        """
        Without `nodes`, the model's own `forward`. With `nodes` (see `logramed.trainer.alignment.node_inputs`), one
        pass whose `AlignedOutput` has the inputs of both losses: language modeling, with `labels` `(batch_size,
        sequence_length)`, and alignment. `output_logits` adds the logits of all tokens.
        """
        gather_language_head(self.base)
        if nodes is None:
            return self.model(**inputs) if labels is None else self.model(labels=labels, **inputs)
        image_outputs = encode_images(self.base.base_model, inputs)
        inputs = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
        inputs |= {"mm_encoder_outputs": {"image": image_outputs}, "use_cache": False}
        output = self._pass_with_logits(labels, inputs) if output_logits else self._pass(labels, inputs)
        texts, questions = self._read_texts(nodes)
        image = self._read_image_nodes(image_outputs, output, nodes, questions)
        output.node_features = self._finish_nodes({**image.features, **texts.features}, nodes)
        output.attention = {**image.attention, **texts.attention}
        # A view of a weight that DeepSpeed has partitioned would give its gradient the shape of the partition.
        whole = [weight for weight in self._graph_weights() if not hasattr(weight, "ds_id")]
        output.graph_weights = tuple(weight.view_as(weight) for weight in whole)
        return output

    def _pass(self, labels, inputs) -> AlignedOutput:
        outputs = self.base.base_model(**inputs)
        figures = LanguageHead(self.base).score(outputs, labels, **inputs)
        return AlignedOutput(
            **{name: figures.get(name) for name in (*TOKEN_FIGURES, "label_mask", "aux_loss")},
            last_hidden_state=outputs.last_hidden_state,
        )

    def _pass_with_logits(self, labels, inputs) -> AlignedOutput:
        outputs = self.base(**inputs, output_hidden_states=True)
        return AlignedOutput(
            **score_logits(outputs.logits, labels),
            logits=outputs.logits,
            last_hidden_state=outputs.hidden_states[-1],
            aux_loss=outputs.get("aux_loss"),
        )

    def _read_texts(self, nodes) -> tuple[NodeFeatures, torch.Tensor | None]:
        """Features of the nodes' texts, and of the questions if image regions are pooled by them."""
        config = self.alignment
        if config.alignment_text_encoder != "self":
            return NodeFeatures({kind: nodes[f"{kind}_embeddings"] for kind in config.text_kinds}, {}), None
        kinds = ("question", *config.text_kinds) if config.needs_questions else config.text_kinds
        texts = text_features(self._encode_texts(nodes), nodes, config.alignment_granularity, kinds)
        return texts, texts.features.pop("question", None)

    def _read_image_nodes(self, image_outputs, output, nodes, questions) -> NodeFeatures:
        config = self.alignment
        if config.alignment_image_node == "answer_state":
            states = self._read_answer_states(output, nodes)
            if not config.alignment_regions:
                return NodeFeatures({"image": states}, {})
            # The query may depend on image and question, but on no text that the regions are matched with.
            pooled = pool_regions(join_image_features(image_outputs), nodes, states)
            return NodeFeatures({"image": states, "region": pooled.features["image"]}, pooled.attention)
        if config.alignment_image_node == "projector":
            image_tokens = join_image_features(image_outputs)
        else:
            image_tokens = take_tokens(output.last_hidden_state, nodes["image_places"])
        if config.alignment_granularity == "sample":
            return pool_images(image_tokens, nodes, len(nodes["groups"]))
        # If questions are not encoded as texts, the hidden state at the question's end is the query.
        queries = take_tokens(output.last_hidden_state, nodes["answer_places"]) if questions is None else questions
        return pool_regions(image_tokens, nodes, queries)

    def _read_answer_states(self, output, nodes) -> torch.Tensor:
        hidden_states, places = output.last_hidden_state, nodes["answer_places"]
        states = take_tokens(hidden_states, places)
        if self.gradient_norms is not None and states.requires_grad:
            self.gradient_norms.watch(hidden_states, states, places)
        return states.to(torch.promote_types(states.dtype, torch.float32))

    def _finish_nodes(self, features, nodes) -> dict[str, torch.Tensor]:
        """One feature per node, in a shared space; a span takes its turn's features, an image its sample's texts."""
        if self.alignment.alignment_granularity == "span":
            turns = {name: values for name, values in features.items() if name != "extended"}
            features |= {name: values.index_select(0, nodes["turn_of_span"]) for name, values in turns.items()}
        if "sample_of_image" in nodes:
            texts = {name: values for name, values in features.items() if name != "image"}
            features |= {name: values.index_select(0, nodes["sample_of_image"]) for name, values in texts.items()}
        return features if self.head is None else self.head(features)

    def _encode_texts(self, nodes) -> torch.Tensor:
        """The last hidden states of the texts' content tokens, each text as if it were encoded alone."""
        if self._text_layout is None:
            self._text_layout = choose_text_layout(self.base.get_decoder())
        return encode_texts(self.base.get_decoder(), nodes, self._text_layout)

    def _graph_weights(self) -> Iterator[nn.Parameter]:
        return iter(()) if self.graph_network is None else self.graph_network.parameters()

    def save_pretrained(self, save_directory: str | Path, state_dict: dict | None = None, **kwargs: Any) -> None:
        """Save the model for inference, without the graph network; `state_dict` is this wrapper's."""
        prefix = "model."
        if state_dict is not None:
            kept = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
            state_dict = {name.removeprefix(prefix): value for name, value in kept.items()}
        self.model.save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def save_alignment(self, folder: str | Path, state_dict: dict[str, torch.Tensor]) -> None:
        """Save the alignment weights in this wrapper's `state_dict`, if any, so that training can resume."""
        own = {name: value.contiguous() for name, value in state_dict.items() if not name.startswith("model.")}
        if own:
            safetensors.torch.save_file(own, Path(folder) / ALIGNMENT_FILE)

    def load_alignment(self, folder: str | Path) -> None:
        """
        Load the file that `save_alignment` wrote; raises `ValueError` if it is missing or holds other weights.
        """
        if self.graph_network is None and self.head is None:
            return
        path = Path(folder) / ALIGNMENT_FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no {ALIGNMENT_FILE}: it was not saved by a run with alignment.")
        try:
            found = self.load_state_dict(safetensors.torch.load_file(path), strict=False)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit this run's arguments: {error}") from error
        missing = [name for name in found.missing_keys if not name.startswith("model.")]
        if missing or found.unexpected_keys:
            raise ValueError(
                f"{path} does not fit this run's arguments: it lacks {missing[:3]} and has "
                f"{found.unexpected_keys[:3]}, which this run does not have."
            )


class LanguageHead:
    """
    A language-model head computed with TRL's fused head: in chunks, for labelled tokens, never all logits at once.

    TRL's fused head calls the model's backbone itself; this stands in for a model whose backbone has already run.
    """

    def __init__(self, model: nn.Module):
        self.config, self.get_output_embeddings = model.config, model.get_output_embeddings
        add_fused_lm_head(self, outputs=TOKEN_FIGURES)

    def forward(self, outputs: ModelOutput, **options: Any) -> ModelOutput:
        """TRL replaces this method."""
        raise NotImplementedError

    def base_model(self, outputs: ModelOutput, **kwargs: Any) -> ModelOutput:
        return outputs

    def score(self, outputs: ModelOutput, labels: torch.Tensor, **inputs: Any) -> ModelOutput:
        """TRL's `FusedCausalLMOutput` for the backbone's `outputs`; on a CPU only the fields that depend on labels."""
        passed_on = {name: inputs[name] for name in ("attention_mask", "output_router_logits") if name in inputs}
        routes = passed_on.get("output_router_logits") or getattr(
            self.config.get_text_config(), "output_router_logits", False
        )
        if outputs.last_hidden_state.device.type == "cpu" and not routes:
            return self._score_in_pieces(outputs.last_hidden_state[:, :-1], labels[:, 1:])
        return self.forward(outputs, labels=labels, fused_lm_head=True, **passed_on)

    def _score_in_pieces(self, hidden_states: torch.Tensor, targets: torch.Tensor) -> ModelOutput:
        # On a CPU, TRL's head also scores unlabelled tokens, and keeps the logits of eight tiles of 4,096 tokens.
        mask = targets != -100
        pieces = zip(hidden_states[mask].split(TOKENS_AT_ONCE), targets[mask].split(TOKENS_AT_ONCE), strict=True)
        scored = [
            self.forward(ModelOutput(last_hidden_state=kept[None]), shift_labels=own[None], fused_lm_head=True)
            for kept, own in pieces
        ]
        figures = {name: torch.cat([piece[name][0] for piece in scored]) for name in TOKEN_FIGURES}
        figures = {name: values.new_zeros(mask.shape).masked_scatter(mask, values) for name, values in figures.items()}
        return ModelOutput(label_mask=mask, **figures)


def score_logits(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Computes the fused head's fields of `AlignedOutput` from logits `(batch_size, sequence_length, vocab_size)`,
    without gradient: a loss that needs the logits uses them directly.
    """
    targets = labels[:, 1:]
    mask = targets != -100
    with torch.no_grad():
        log_probs = logits[:, :-1].float().log_softmax(dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        is_top1 = log_probs.argmax(dim=-1) == targets
        log_probs = log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    figures = {"log_probs": log_probs, "entropy": entropy, "is_top1": is_top1}
    return {"label_mask": mask, **{name: value.masked_fill(~mask, 0) for name, value in figures.items()}}


def encode_images(backbone: nn.Module, inputs: dict[str, Any]) -> ModelOutput:
    """
    Runs a batch's images through vision tower and projector: `pooler_output` holds the features that replace the image
    tokens, a tensor or a list of tensors, in the order of the tokens.
    """
    names = inspect.signature(backbone.get_image_features).parameters
    taken = {name: inputs[name] for name in names if name in inputs}
    return backbone.get_image_features(**taken, return_dict=True)


def take_tokens(hidden_states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Selects `hidden_states` `(batch_size, sequence_length, hidden_size)` at `places` in the flattened batch."""
    return hidden_states.flatten(0, 1).index_select(0, places)


def join_image_features(image_outputs: ModelOutput) -> torch.Tensor:
    """Concatenates the features of all images: `(num_image_tokens, hidden_size)`."""
    features = image_outputs.pooler_output
    return features.flatten(0, -2) if torch.is_tensor(features) else torch.cat(list(features))


def encode_texts(decoder: nn.Module, nodes: dict[str, torch.Tensor], layout: str) -> torch.Tensor:
    """
    The last hidden states of the content tokens of all texts, `(num_content_tokens, hidden_size)`, from one pass of a
    language model without its head; `nodes` come from `node_inputs`, `layout` is one of `TEXT_LAYOUTS`.
    """
    if layout.startswith("packed"):
        positions = nodes["packed_position_ids"]
        positions = positions.expand(4, -1, -1) if layout == "packed_four_axes" else positions
        inputs = {"input_ids": nodes["packed_input_ids"], "position_ids": positions}
    else:
        mask = nodes["text_attention_mask"]
        if layout == "padded_both_ways":
            dtype = decoder.get_input_embeddings().weight.dtype
            mask = (1 - mask.to(dtype)) * torch.finfo(dtype).min
            mask = mask[:, None, None].expand(-1, 1, mask.shape[1], -1)
        inputs = {"input_ids": nodes["text_input_ids"], "attention_mask": mask}
    places = nodes["packed_places" if layout.startswith("packed") else "padded_places"]
    hidden_states = decoder(**inputs, use_cache=False, return_dict=True).last_hidden_state
    return hidden_states.flatten(0, 1).index_select(0, places)


@torch.no_grad()
def choose_text_layout(decoder: nn.Module) -> str:
    """
    The first of `TEXT_LAYOUTS` in which `decoder` encodes each text as it would alone; `ValueError` if there is none.
    Most models of transformers take position ids that restart at 0 as the start of a new text, and mask accordingly.
    With other positions (ALiBi), a recurrent state or bidirectional attention, texts in one row influence each other:
    such models get one row per text, with one warning.
    """
    modes = {module: module.training for module in decoder.modules()}
    for module in modes:
        # bitsandbytes permanently repacks 4-bit weights if a layer runs in evaluation mode on a CPU.
        module.training = hasattr(getattr(module, "weight", None), "quant_state")
    try:
        device, vocab_size = decoder.get_input_embeddings().weight.device, decoder.config.vocab_size
        texts = [(torch.arange(length, device=device) * 7 + 11 * length) % vocab_size for length in (5, 3, 4)]
        alone = torch.cat(
            [decoder(input_ids=text.unsqueeze(0), use_cache=False).last_hidden_state[0] for text in texts]
        )
        probe = _lay_out_probe(texts)
        layout = next((layout for layout in TEXT_LAYOUTS if _is_as_alone(decoder, probe, layout, alone)), None)
    finally:
        for module, mode in modes.items():
            module.training = mode
    name = type(decoder).__name__
    if layout is None:
        raise ValueError(f"{name} encodes texts differently in a batch than alone, so texts cannot be graph nodes.")
    if layout.startswith("padded"):
        logger.warning(
            f"{name} does not keep texts in one row apart, so each text of a graph node is encoded in a row of its "
            "own: correct, but slower."
        )
    return layout


def _lay_out_probe(texts):
    """All layouts of a few texts; every token counts as content."""
    pad = torch.nn.utils.rnn.pad_sequence
    numbers = pad([torch.arange(len(text), device=text.device) for text in texts], batch_first=True, padding_value=-1)
    return {
        "packed_input_ids": torch.cat(texts).unsqueeze(0),
        "packed_position_ids": numbers[numbers >= 0].unsqueeze(0),
        "packed_places": torch.arange(sum(map(len, texts)), device=numbers.device),
        "text_input_ids": pad(texts, batch_first=True),
        "text_attention_mask": (numbers >= 0).long(),
        "padded_places": (numbers >= 0).flatten().nonzero().squeeze(1),
    }


def _is_as_alone(decoder, probe, layout, alone) -> bool:
    try:
        found = encode_texts(decoder, probe, layout)
    except (RuntimeError, ValueError, IndexError, TypeError):  # the model does not accept such positions
        return False
    rounding = 16 * torch.finfo(alone.dtype).eps if alone.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return bool((found - alone).abs().max() <= rounding * alone.square().mean().sqrt())


def refuse_unalignable(model: nn.Module) -> None:
    """Raises `ValueError` with the reason if images do not become tokens of the model's language model."""
    base = unwrap_model(model)
    backbone, name = base.base_model, type(base).__name__
    config = base.config
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        reason = "its adapter puts virtual tokens before the text, which the alignment pass does not"
    elif not hasattr(backbone, "get_image_features"):
        reason = "it has no `get_image_features`: its images do not become tokens of the language model"
    elif "mm_encoder_outputs" not in inspect.signature(type(base).forward).parameters:
        reason = "its `forward` takes no image features (`mm_encoder_outputs`)"
    elif getattr(config, "image_token_id", None) is None:
        reason = "its configuration has no `image_token_id`"
    else:
        return
    raise ValueError(
        f"{name} cannot be aligned: {reason}. Set `alignment_weight` to 0 to train without alignment, or use a model "
        "whose images become tokens (LLaVA, Qwen2.5-VL, Gemma3, SmolVLM, ...)."
    )
