"""LoGra-Med: transformers' LLaVA with dense connectors."""

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


try:  # transformers 5 keeps the rules for renaming weights outside the classes
    from transformers.conversion_mapping import get_model_conversion_mapping
except ImportError:  # transformers 4.57 reads the class attribute `_checkpoint_conversion_mapping`
    get_model_conversion_mapping = None


# Weight names in files (LLaVA's, which transformers 4.57, 5 and other tools read) and in the model.
CHECKPOINT_KEY_MAPPING = {
    "^language_model.model": "model.language_model",
    "^language_model.lm_head": "lm_head",
    "^vision_tower": "model.vision_tower",
    "^multi_modal_projector": "model.multi_modal_projector",
}


class LoGraMedProjector(LlavaMultiModalProjector):
    """
    Projects vision features to the hidden size of the language model. First joins the hidden states of several layers
    if there is a dense connector, and pools patches if `image_token_pooling` is set.
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
        connected = connect_layers(selected, others, self.config.dense_connector)
        if self.config.image_token_pooling:
            connected = pool_patches(connected, self.config.patch_grid_size, self.config.image_token_pooling)
        return super().forward(connected)


def connect_layers(selected: torch.Tensor, others: list[torch.Tensor], dense_connector: str) -> torch.Tensor:
    """
    Join hidden states of a vision tower, each `(num_images, num_tokens, hidden_size)`.

    Returns:
        `torch.Tensor`: for `"none"` the selected one; for `"sti"` the others are pooled and appended as tokens; for
        `"sci"` all are channels; for `"dci"` the means of both halves of the others are appended as channels.

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
    """Average every `STI_POOLING` tokens; an incomplete last group is averaged over the tokens it has."""
    return F.avg_pool1d(hidden_state.transpose(1, 2), STI_POOLING, ceil_mode=True).transpose(1, 2)


def pool_patches(features: torch.Tensor, grid_size: int, pooled_size: int) -> torch.Tensor:
    """
    Average-pool the patches of each image, in row order from the top, to a coarser grid.

    Args:
        features (`torch.Tensor` of shape `(num_images, grid_size**2, hidden_size)`): Patch features.
        grid_size, pooled_size (`int`): Rows and columns before and after. Regions overlap if one does not divide
            the other.

    Returns:
        `torch.Tensor` of shape `(num_images, pooled_size**2, hidden_size)`.
    """
    grid = features.transpose(1, 2).unflatten(2, (grid_size, grid_size))
    return F.adaptive_avg_pool2d(grid, pooled_size).flatten(2).transpose(1, 2)


class LoGraMedModel(LlavaModel):
    """LLaVA's model without the head, with the configured vision features."""

    config_class = LoGraMedConfig
    config: LoGraMedConfig

    def __init__(self, config: LoGraMedConfig):
        config.refuse_bad_values()  # `from_pretrained(folder, image_token_pooling=...)` sets values unchecked
        super(LlavaModel, self).__init__(config)  # the same parts as LLaVA's, with our projector
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LoGraMedProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids: torch.Tensor | None = None, pixel_values: torch.Tensor | None = None, **kwargs):
        """
        Same as LLaVA's `forward`.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                All images of the batch, in the order of their placeholders.

        Raises:
            ValueError: If the numbers of image tokens and images differ.
        """
        self._refuse_image_tokens_without_images(input_ids, pixel_values, kwargs)
        return super().forward(input_ids=input_ids, pixel_values=pixel_values, return_dict=True, **kwargs)

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs,
    ):
        """Same as in LLaVA: projected features of `(num_images, num_channels, height, width)` pixels."""
        if self.config.projector_selects_features:
            self._refuse_another_selection("vision_feature_layer", vision_feature_layer)
            self._refuse_another_selection("vision_feature_select_strategy", vision_feature_select_strategy)
            num_states = self.config.vision_config.num_hidden_layers + 1
            vision_feature_layer = [self.config.vision_feature_layer % num_states, *self.config.connected_layers]
            vision_feature_select_strategy = "full"  # the projector drops the tokens before the patches
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
        Mask of the positions of image features, same as in LLaVA.

        Args:
            image_features (`torch.Tensor` of shape `(num_images * num_image_tokens, hidden_size)`): All images.

        Raises:
            ValueError: If the numbers of image tokens and image features differ; the message has both.
        """
        try:
            return super().get_placeholder_mask(input_ids, inputs_embeds=inputs_embeds, image_features=image_features)
        except ValueError:  # LLaVA has checked already; count again only for the message
            if input_ids is None:
                raise
            num_text_tokens = int((input_ids == self.config.image_token_id).sum())
            raise ValueError(
                f"The text holds {num_text_tokens} image tokens, but `pixel_values` gives {len(image_features)}, "
                f"{self.config.num_image_tokens} for each image. Write one placeholder for each image and let the "
                "processor expand it."
            ) from None

    def _refuse_image_tokens_without_images(self, input_ids, pixel_values, kwargs):
        has_images = pixel_values is not None or kwargs.get("mm_encoder_outputs")
        # A one-token generation step has no image tokens, and counting them would synchronize with the device.
        if input_ids is None or input_ids.shape[1] == 1 or has_images or is_torchdynamo_compiling():
            return
        num_text_tokens = int((input_ids == self.config.image_token_id).sum())
        if num_text_tokens:
            raise ValueError(
                f"The text holds {num_text_tokens} image tokens, but without `pixel_values` there are 0 of images. "
                "Pass the images, or leave their placeholders out of the text."
            )


class LoGraMedForConditionalGeneration(LlavaForConditionalGeneration):
    """
    Generates text from text and images.

    Inherits `forward` from transformers' LLaVA: with equal weights and no dense connector, its logits equal LLaVA's.
    Files have LLaVA's weight names, and both transformers 4.57 and 5 read them.
    """

    _checkpoint_conversion_mapping = CHECKPOINT_KEY_MAPPING
    config_class = LoGraMedConfig
    config: LoGraMedConfig

    def __init__(self, config: LoGraMedConfig):
        super(LlavaForConditionalGeneration, self).__init__(config)  # the same parts as LLaVA's, with our model
        self.model = LoGraMedModel(config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=config.lm_head_bias
        )
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        Same as in transformers, except that a weight that is missing, unknown or of another shape raises an error.

        Raises:
            ValueError: If a weight is missing in the checkpoint, or unknown to the model. Graph networks, which
                folders of earlier versions hold, are ignored.
        """
        kwargs.setdefault("key_mapping", CHECKPOINT_KEY_MAPPING)
        model, loading_info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        missing = sorted(loading_info["missing_keys"])
        unknown = sorted(key for key in loading_info["unexpected_keys"] if "graph_network." not in key)
        if missing or unknown:
            raise ValueError(
                f"{len(missing)} weights of the model are missing in {pretrained_model_name_or_path} "
                f"({', '.join(missing[:3])}), and {len(unknown)} weights there are unknown to the model "
                f"({', '.join(unknown[:3])}). The checkpoint does not fit its configuration."
            )
        return (model, loading_info) if output_loading_info else model

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Same as in transformers, but repeats all images of a prompt together: 4.57 repeats each separately."""
        pixel_values = model_kwargs.get("pixel_values")
        if expand_size > 1 and pixel_values is not None and input_ids is not None:
            counts = (input_ids == self.config.image_token_id).sum(dim=1) // self.config.num_image_tokens
            by_prompt = pixel_values.split(counts.tolist())
            pixel_values = torch.cat([images for images in by_prompt for _ in range(expand_size)])
            del model_kwargs["pixel_values"]
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | ({} if pixel_values is None else {"pixel_values": pixel_values})

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Same as in transformers, with LLaVA's weight names and the code files for the Auto classes."""
        if get_model_conversion_mapping is not None:
            # Transformers 5 undoes these renamings on saving. By default it undoes what loading did, which gives a
            # model that was never loaded names that 4.57 does not read.
            self._weight_conversions = get_model_conversion_mapping(self, CHECKPOINT_KEY_MAPPING, add_legacy=False)
        return super().save_pretrained(save_directory, *args, **kwargs)


__all__ = ["LoGraMedForConditionalGeneration", "LoGraMedModel"]
