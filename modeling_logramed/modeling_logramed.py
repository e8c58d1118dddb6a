"""LoGra-Med: transformers' LLaVA with dense connectors, a graph network, and node features for graph alignment."""

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import AutoModel
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaMultiModalProjector,
)
from transformers.utils import can_return_tuple, is_torchdynamo_compiling

from .configuration_logramed import STI_POOLING, LoGraMedConfig
from .graph_network_logramed import GraphNetwork
from .node_features_logramed import (
    GRANULARITIES,
    count_spans,
    first_places,
    mean_over_tokens,
    pool_regions,
    pool_spans,
)
from .packing_logramed import encode_packed


try:  # transformers 5 converts weight names by rules it keeps apart from the classes
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming
except ImportError:  # transformers 4.57 reads the class attribute `_checkpoint_conversion_mapping`
    get_model_conversion_mapping = None


# Weight names in files (LLaVA's, which both lines of transformers and other tools read) and in the model.
CHECKPOINT_KEY_MAPPING = {
    "^language_model.model": "model.language_model",
    "^language_model.lm_head": "lm_head",
    "^vision_tower": "model.vision_tower",
    "^multi_modal_projector": "model.multi_modal_projector",
    "^graph_network": "model.graph_network",
}


class LoGraMedProjector(LlavaMultiModalProjector):
    """
    Maps vision features to the language model's size, joining the hidden states of several layers first where the
    configuration has a dense connector.
    """

    def __init__(self, config: LoGraMedConfig):
        super().__init__(config)
        self.config = config
        if config.dense_connector in ("sci", "dci"):
            self.linear_1 = nn.Linear(
                3 * config.vision_config.hidden_size,
                config.text_config.hidden_size,
                bias=config.multimodal_projector_bias,
            )
        if config.projector_type == "linear":
            self.linear_2 = nn.Identity()

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image_features (`torch.Tensor` of shape `(num_images, num_tokens, num_layers * vision_hidden_size)`):
                The selected hidden state, followed by `config.connected_layers`.

        Returns:
            `torch.Tensor` of shape `(num_images, num_image_tokens, text_hidden_size)`.
        """
        if self.config.projector_selects_features and self.config.vision_feature_select_strategy == "default":
            image_features = image_features[:, self.config.num_prefix_tokens :]
        selected, *others = image_features.split(self.config.vision_config.hidden_size, dim=-1)
        return super().forward(connect_layers(selected, others, self.config.dense_connector))


def connect_layers(selected: torch.Tensor, others: list[torch.Tensor], dense_connector: str) -> torch.Tensor:
    """
    Join hidden states of a vision tower, each `(num_images, num_tokens, hidden_size)`.

    Returns:
        `torch.Tensor`: for `"none"` the selected one; for `"sti"` it and the others, pooled, as further tokens; for
        `"sci"` all as channels; for `"dci"` it and the means of both halves of the others as channels.

    Source: arXiv:2405.13800, sections 3.1 to 3.3.
    """
    if dense_connector == "sti":
        return torch.cat([selected, *(_pool_tokens(hidden_state) for hidden_state in others)], dim=1)
    if dense_connector == "sci":
        return torch.cat([selected, *others], dim=-1)
    if dense_connector == "dci":
        half = len(others) // 2
        lower, upper = (torch.stack(part).mean(dim=0) for part in (others[:half], others[half:]))
        return torch.cat([selected, lower, upper], dim=-1)
    return selected


def _pool_tokens(hidden_state: torch.Tensor) -> torch.Tensor:
    """Average every `STI_POOLING` tokens; a last, incomplete group is averaged over what it has."""
    return F.avg_pool1d(hidden_state.transpose(1, 2), STI_POOLING, ceil_mode=True).transpose(1, 2)


class LoGraMedModel(LlavaModel):
    """
    LLaVA's model without the head, with the vision features that the configuration asks for, and a graph network for
    training with alignment.
    """

    config_class = LoGraMedConfig
    config: LoGraMedConfig

    def __init__(self, config: LoGraMedConfig):
        super(LlavaModel, self).__init__(config)  # the same parts as LLaVA's, with our projector
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LoGraMedProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.graph_network = None
        if config.use_graph_network:
            self.graph_network = GraphNetwork(
                config.text_config.hidden_size,
                num_layers=config.graph_num_layers,
                aggregation=config.graph_aggregation,
                dropout=config.graph_dropout,
                graph_hidden_size=config.graph_hidden_size,
            )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        num_images: torch.Tensor | None = None,
        num_turns: torch.Tensor | None = None,
        question_input_ids: torch.Tensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        answer_input_ids: torch.Tensor | None = None,
        answer_attention_mask: torch.Tensor | None = None,
        extended_input_ids: torch.Tensor | None = None,
        extended_attention_mask: torch.Tensor | None = None,
        extended_span_ids: torch.Tensor | None = None,
        alignment_objective: Callable | None = None,
        alignment_granularity: str = "sample",
        **kwargs,
    ):
        """
        As LLaVA's `forward`, and given an alignment objective, calls that with the features of the graph nodes. All of
        it happens in this one call, so that DDP and FSDP see every parameter used, and the vision tower runs once.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                All images of the batch, in the order of their placeholders.
            num_images (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*):
                Images of each sample; one each if not given.
            num_turns (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*):
                Turns of each sample, where the nodes are turns or spans.
            answer_input_ids, extended_input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                A sample's answers, and its extended answers, each as one text. Where the nodes are turns or spans, one
                row for each turn, in the order of the samples; `question_input_ids` too.
            answer_attention_mask, extended_attention_mask, question_attention_mask (`torch.Tensor`, *optional*):
                1 for tokens, 0 for padding; all ones if not given.
            extended_span_ids (`torch.Tensor` of the shape of `extended_input_ids`, int64, *optional*):
                The span (sentence) of each token, counted from 0 in each turn; -1 for tokens outside all spans.
            alignment_objective (`Callable`, *optional*):
                Called with the node features (see `get_node_features`) and the graph network, or None in its place;
                where the nodes are turns or spans (see `get_turn_features`), also with `attention`. What it returns is
                not used: it keeps what its owner, the trainer, asks it for.
            alignment_granularity (`str`, *optional*, defaults to `"sample"`):
                What a node is: a `"sample"`, a `"turn"`, or a `"span"` of an extended answer.

        Raises:
            ValueError: If the numbers of image tokens and images differ, a sample has no image to align, or the inputs
                that a granularity needs are missing.
        """
        self._refuse_image_tokens_without_images(input_ids, pixel_values, kwargs)
        outputs = super().forward(input_ids=input_ids, pixel_values=pixel_values, return_dict=True, **kwargs)
        if alignment_objective is None:
            return outputs
        texts = {"answer": (answer_input_ids, answer_attention_mask)}
        if extended_input_ids is not None:
            texts["extended"] = (extended_input_ids, extended_attention_mask)
        if alignment_granularity == "sample":
            node_features = self.get_node_features(outputs.image_hidden_states, num_images, texts)
            alignment_objective(node_features, self.graph_network)
        else:
            question = (question_input_ids, question_attention_mask)
            node_features, attention = self.get_turn_features(
                outputs.image_hidden_states,
                num_images,
                num_turns,
                {"question": question, **texts},
                extended_span_ids,
                alignment_granularity,
            )
            alignment_objective(node_features, self.graph_network, attention=attention)
        return outputs

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs,
    ):
        """As LLaVA's: the projected features of `(num_images, num_channels, height, width)` pixels."""
        if self.config.projector_selects_features:
            self._refuse_another_selection("vision_feature_layer", vision_feature_layer)
            self._refuse_another_selection("vision_feature_select_strategy", vision_feature_select_strategy)
            num_states = self.config.vision_config.num_hidden_layers + 1
            vision_feature_layer = [self.config.vision_feature_layer % num_states, *self.config.connected_layers]
            vision_feature_select_strategy = "full"  # the projector leaves out the tokens before the patches
        return super().get_image_features(
            pixel_values,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            **kwargs,
        )

    def _refuse_another_selection(self, name, value):
        if value not in (None, getattr(self.config, name)):
            raise ValueError(
                f"`{name}={value!r}` was passed, but the projector was built for {getattr(self.config, name)!r} and "
                f"the dense connector {self.config.dense_connector!r}: leave it out."
            )

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """
        Where image features go, as LLaVA's mask.

        Args:
            image_features (`torch.Tensor` of shape `(num_images * num_image_tokens, hidden_size)`): Of all images.

        Raises:
            ValueError: If the text has not exactly one image token for each image feature, naming both counts.
        """
        if input_ids is not None and not is_torchdynamo_compiling():
            num_text_tokens = int((input_ids == self.config.image_token_id).sum())
            num_image_tokens = len(image_features)
            if num_text_tokens != num_image_tokens:
                raise ValueError(
                    f"The text holds {num_text_tokens} image tokens, but `pixel_values` gives {num_image_tokens}, "
                    f"{self.config.num_image_tokens} for each image. Write one placeholder for each image and let the "
                    "processor expand it."
                )
        return super().get_placeholder_mask(input_ids, inputs_embeds=inputs_embeds, image_features=image_features)

    def _refuse_image_tokens_without_images(self, input_ids, pixel_values, kwargs):
        # A one-token step of generation holds no image, and looking would wait for the device.
        if input_ids is None or input_ids.shape[1] == 1 or pixel_values is not None or is_torchdynamo_compiling():
            return
        num_text_tokens = int((input_ids == self.config.image_token_id).sum())
        if num_text_tokens and kwargs.get("mm_encoder_outputs") is None:
            raise ValueError(
                f"The text holds {num_text_tokens} image tokens, but without `pixel_values` there are 0 of images. "
                "Pass the images, or leave their placeholders out of the text."
            )

    def get_node_features(
        self,
        image_hidden_states: torch.Tensor,
        num_images: torch.Tensor | None,
        texts: dict[str, tuple[torch.Tensor, torch.Tensor | None]],
    ) -> dict[str, torch.Tensor]:
        """
        One feature for each sample and modality: the mean of its projected image features, and for each text the mean
        of the language model's last hidden states, padding left out.

        Args:
            image_hidden_states (`torch.Tensor` of shape `(num_images * num_image_tokens, hidden_size)`):
                As `forward` returns them, so that the vision tower runs once.
            num_images (`torch.Tensor` of shape `(batch_size,)`, int64, or None):
                Images of each sample; None for one each.
            texts (`dict`):
                Token ids and attention mask of each text modality.

        Returns:
            `dict[str, torch.Tensor]`: `(batch_size, hidden_size)` for `"image"` and each key of `texts`.

        Source: arXiv:2410.02615, section 3; where the release averages over padding too, this does not.
        """
        batch_size = len(next(iter(texts.values()))[0])
        features = {"image": self._pool_images(image_hidden_states, num_images, batch_size)}
        for name, (hidden_states, attention_mask) in encode_packed(self.language_model, texts).items():
            features[name] = mean_over_tokens(hidden_states, attention_mask)
        return features

    def get_turn_features(
        self,
        image_hidden_states: torch.Tensor,
        num_images: torch.Tensor | None,
        num_turns: torch.Tensor,
        texts: dict[str, tuple[torch.Tensor, torch.Tensor | None]],
        extended_span_ids: torch.Tensor | None = None,
        granularity: str = "turn",
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """
        One feature for each turn, or for each span of the extended answers, and modality. Of a turn

        - `"answer"` is the mean over its answer's tokens, the answer encoded as a text of its own;
        - `"image"` is its sample's image regions, pooled by attention with the *question* as query;
        - `"extended"` is its extended answer's spans, pooled by attention with that answer's own mean as query.

        So no modality is a function of another one's text, nor of a text that another one is a function of: what the
        three have in common has to come from the image and the two texts (see `pool_by_attention`). A span has its own
        mean as `"extended"`, and its turn's `"image"` and `"answer"`.

        Args:
            image_hidden_states, num_images: As in `get_node_features`.
            num_turns (`torch.Tensor` of shape `(batch_size,)`, int64): Turns of each sample.
            texts (`dict`): Token ids and attention mask of `"question"`, `"answer"` and, if there are any,
                `"extended"`, `(num_all_turns, sequence_length)` each: one row a turn, in the order of the samples.
            extended_span_ids (`torch.Tensor`, *optional*): As in `forward`; goes with `"extended"`.
            granularity (`str`, *optional*, defaults to `"turn"`): What a node is, `"turn"` or `"span"`.

        Returns:
            `tuple[dict, dict]`: the features `(num_nodes, hidden_size)` of each modality, and the attention:
            `"regions"` `(num_all_turns, num_regions)`, the regions of a sample's images one after the other, and with
            extended answers `"spans"` `(num_all_turns, num_spans)`; 0 where a turn has fewer.

        Raises:
            ValueError: If a sample has no image, or what `granularity` needs is missing.
        """
        self._check_turn_inputs(num_turns, texts, extended_span_ids, granularity)
        regions, region_mask = self._split_regions(image_hidden_states, num_images, len(num_turns))
        encoded = encode_packed(self.language_model, texts)
        questions, answers = (mean_over_tokens(*encoded[name]) for name in ("question", "answer"))
        image, region_weights = pool_regions(questions, num_turns, regions, region_mask)
        features, attention = {"image": image, "answer": answers}, {"regions": region_weights}
        if "extended" in texts:
            features["extended"], attention["spans"], spans = pool_spans(encoded["extended"][0], extended_span_ids)
        if granularity == "span":
            turn_of_span = torch.repeat_interleave(count_spans(extended_span_ids))
            features = {"image": image[turn_of_span], "answer": answers[turn_of_span], "extended": spans}
        return features, attention

    def _check_turn_inputs(self, num_turns, texts, extended_span_ids, granularity):
        if granularity not in GRANULARITIES[1:]:
            raise ValueError(
                f"`alignment_granularity` must be one of {', '.join(GRANULARITIES)}; got {granularity!r}."
            )
        if num_turns is None or texts["question"][0] is None:
            raise ValueError(f"Nodes that are {granularity}s need `num_turns` and `question_input_ids`.")
        if granularity == "span" and "extended" not in texts:
            raise ValueError("Nodes that are spans need extended answers, whose sentences they are.")
        if "extended" in texts and extended_span_ids is None:
            raise ValueError("`extended_input_ids` need their `extended_span_ids` where the nodes are not samples.")

    def _pool_images(self, image_hidden_states, num_images, batch_size):
        counts = _count_images(image_hidden_states, num_images, batch_size)
        image_means = image_hidden_states.reshape(sum(counts), -1, image_hidden_states.shape[-1]).mean(dim=1)
        return torch.stack([means.mean(dim=0) for means in image_means.split(counts)])

    def _split_regions(self, image_hidden_states, num_images, batch_size):
        """The image features of each sample `(batch_size, num_regions, hidden_size)`, and a mask of those it has."""
        counts = _count_images(image_hidden_states, num_images, batch_size)
        num_regions = [len(image_hidden_states) // sum(counts) * count for count in counts]
        regions = torch.nn.utils.rnn.pad_sequence(image_hidden_states.split(num_regions), batch_first=True)
        return regions, first_places(torch.tensor(num_regions, device=regions.device), regions.shape[1])


def _count_images(image_hidden_states, num_images, batch_size) -> list[int]:
    counts = [1] * batch_size if num_images is None else num_images.tolist()
    if image_hidden_states is None or 0 in counts:
        first = 0 if image_hidden_states is None else counts.index(0)
        raise ValueError(f"Alignment needs an image in every sample, but sample {first} of the batch has none.")
    return counts


class LoGraMedForConditionalGeneration(LlavaForConditionalGeneration):
    """
    Answers in text to text and images.

    Built on transformers' LLaVA: with no dense connector and equal weights its logits equal LLaVA's. `forward` takes
    what LLaVA's takes and, for training, what `LoGraMedModel.forward` does. Files are written under LLaVA's weight
    names and read by transformers 4.57 and 5 alike.
    """

    _checkpoint_conversion_mapping = CHECKPOINT_KEY_MAPPING
    config_class = LoGraMedConfig
    config: LoGraMedConfig

    def __init__(self, config: LoGraMedConfig):
        super(LlavaForConditionalGeneration, self).__init__(config)  # the same parts as LLaVA's, with our model
        self.model = LoGraMedModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(_take_checkpoint_names)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As transformers' `from_pretrained`, but a weight that is missing, or of another shape, is an error.

        Raises:
            ValueError: If a weight other than the graph network's is not in the checkpoint.
        """
        kwargs.setdefault("key_mapping", CHECKPOINT_KEY_MAPPING)
        model, loading_info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        missing = sorted(key for key in loading_info["missing_keys"] if "graph_network." not in key)
        if missing:
            raise ValueError(
                f"{len(missing)} weights of the model are missing in {pretrained_model_name_or_path}, among them "
                f"{', '.join(missing[:3])}; {len(loading_info['unexpected_keys'])} weights there are unknown to the "
                "model. The checkpoint does not fit its configuration."
            )
        return (model, loading_info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As transformers' `save_pretrained`, under LLaVA's weight names, with the code files for the Auto classes."""
        if get_model_conversion_mapping is not None:
            # What transformers 5 undoes on saving: by default what loading did, which leaves a model that was never
            # loaded under names that 4.57 does not read.
            self._weight_conversions = _weight_conversions(self)
        return super().save_pretrained(save_directory, *args, **kwargs)


def _weight_conversions(model):
    """Transforms from the names in files to those in the model, ours and those of transformers for the parts."""
    return get_model_conversion_mapping(model, CHECKPOINT_KEY_MAPPING, add_legacy=False)


def _take_checkpoint_names(model, state_dict, prefix, *args):
    """Let `load_state_dict`, by which `Trainer` loads its checkpoints, take weights under their names in files."""
    if any(key.startswith(f"{prefix}model.language_model.") for key in state_dict):
        return
    renamings = _weight_renamings(model)
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        for rename in renamings:
            name = rename(name)
        state_dict[prefix + name] = state_dict.pop(key)


def _weight_renamings(model):
    """Functions that, one after the other, make of a weight's name in files its name in the model."""
    if get_model_conversion_mapping is None:
        return [partial(re.sub, pattern, replacement) for pattern, replacement in CHECKPOINT_KEY_MAPPING.items()]
    renamings = [transform for transform in _weight_conversions(model) if isinstance(transform, WeightRenaming)]
    return [lambda name, renaming=renaming: renaming.rename_source_key(name)[0] for renaming in renamings]


__all__ = ["LoGraMedForConditionalGeneration", "LoGraMedModel"]
