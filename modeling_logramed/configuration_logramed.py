"""Configuration of a LoGra-Med model."""

from transformers import AutoConfig, PretrainedConfig

from .remote_code_logramed import MODEL_AUTO_MAP, copy_code_files


DENSE_CONNECTORS = ("none", "sti", "sci", "dci")
PROJECTOR_TYPES = ("mlp2x_gelu", "linear")
STI_POOLING = 8  # tokens averaged into one by the `sti` connector (arXiv:2405.13800; the release's value)

# Configurations do not say whether hidden states begin with a class token. Towers that are not listed are assumed to
# have one, as in transformers' LLaVA.
TOWERS_WITHOUT_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model")


class LoGraMedConfig(PretrainedConfig):
    r"""
    Architecture of a [`LoGraMedForConditionalGeneration`]: a vision tower, a projector and a causal language model.

    Args:
        vision_config (`PretrainedConfig` or `dict`, *optional*, defaults to CLIP ViT-L/14 at 224 pixels):
            Any transformers vision tower that returns hidden states (CLIP, SigLIP, DINOv2, ...). From a configuration
            with both towers (`CLIPConfig`), the vision part is used.
        text_config (`PretrainedConfig` or `dict`, *optional*, defaults to Llama 7B):
            Any transformers causal language model (Llama, Mistral, Qwen2, ...).
        image_token_index (`int`, *optional*):
            Id of the token that stands for one image feature; the last id of the vocabulary if not given. Also
            readable as `image_token_id`.
        vision_feature_layer (`int`, *optional*, defaults to -2):
            Which hidden state of the tower is projected; 0 is the embedding output.
        vision_feature_select_strategy (`str`, *optional*):
            `"default"` leaves out the tokens before the patches (class and register tokens), `"full"` keeps them. By
            default `"default"` if the tower has such tokens, else `"full"`.
        projector_type (`str`, *optional*, defaults to `"mlp2x_gelu"`):
            `"mlp2x_gelu"` (two layers, GELU between) or `"linear"`.
        dense_connector (`str`, *optional*, defaults to `"none"`):
            How layers are added (arXiv:2405.13800): `"sti"` appends two earlier hidden states, pooled by 8, as
            tokens; `"sci"` appends them as channels; `"dci"` appends the means of the lower and the upper half of
            the hidden states as channels. For a tower of 24 layers they are the hidden states of the research
            release: 7 and 15 (`sti`, `sci`), 0 to 11 and 12 to 23 (`dci`); for others, at the same relative depth.
        image_token_pooling (`int`, *optional*):
            Side of the grid of image tokens: the square grid of patches is average-pooled to this many rows and
            columns, after `"sci"` and `"dci"` join layers and before the projector. Regions overlap if it does not
            divide the patches per side (`torch.nn.functional.adaptive_avg_pool2d`). By default each patch is a token.
        multimodal_projector_bias (`bool`, *optional*, defaults to `True`):
            Whether the projector has biases.
        lm_head_bias (`bool`, *optional*, defaults to `False`):
            Whether the head has biases, as in Phi.

    Raises:
        ValueError: If a value is not one of those named, the select strategy does not fit the tower, or
            `image_token_pooling` exceeds the number of patches per side or is combined with tokens that are not
            patches (from `"sti"` or `"full"`).

    Example:
        >>> from logramed import LoGraMedConfig
        >>> LoGraMedConfig(dense_connector="sti").num_image_tokens
        320
        >>> LoGraMedConfig(image_token_pooling=8).num_image_tokens
        64
    """

    model_type = "logramed"
    attribute_map = {"image_token_id": "image_token_index"}  # noqa: RUF012 (transformers reads a plain class attribute)
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        vision_config=None,
        text_config=None,
        image_token_index=None,
        vision_feature_layer=-2,
        vision_feature_select_strategy=None,
        projector_type="mlp2x_gelu",
        dense_connector="none",
        multimodal_projector_bias=True,
        lm_head_bias=False,
        image_token_pooling=None,
        **kwargs,
    ):
        self.vision_config = _sub_config(vision_config, CLIP_VIT_L_14_224)
        self.vision_config = getattr(self.vision_config, "vision_config", self.vision_config)
        self.text_config = _sub_config(text_config, {"model_type": "llama"})
        if image_token_index is None:
            image_token_index = self.text_config.vocab_size - 1
        self.image_token_index = image_token_index
        self.vision_feature_layer = vision_feature_layer
        if vision_feature_select_strategy is None:
            vision_feature_select_strategy = "default" if self.num_prefix_tokens else "full"
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.projector_type = projector_type
        self.dense_connector = dense_connector
        self.multimodal_projector_bias = multimodal_projector_bias
        self.lm_head_bias = lm_head_bias
        self.image_token_pooling = image_token_pooling
        self.refuse_bad_values()
        # The head belongs to this model, not to its language model, so `tie_word_embeddings` is read from here.
        kwargs["tie_word_embeddings"] = bool(
            kwargs.get("tie_word_embeddings") or getattr(self.text_config, "tie_word_embeddings", False)
        )
        super().__init__(**kwargs)

    def refuse_bad_values(self) -> None:
        """Raise `ValueError` if a value is invalid; also checks values set after `__init__`."""
        for name, allowed in (
            ("projector_type", PROJECTOR_TYPES),
            ("dense_connector", DENSE_CONNECTORS),
            ("vision_feature_select_strategy", ("default", "full")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        if not isinstance(self.vision_feature_layer, int):
            raise ValueError(
                f"`vision_feature_layer` must be one integer; got {self.vision_feature_layer!r}. To use several "
                "layers, choose a `dense_connector`."
            )
        num_layers = self.vision_config.num_hidden_layers
        if not -num_layers - 1 <= self.vision_feature_layer <= num_layers:
            raise ValueError(
                f"`vision_feature_layer={self.vision_feature_layer}` is not among the hidden states 0 to {num_layers} "
                "of the vision tower."
            )
        if self.vision_feature_select_strategy == "default" and self.num_prefix_tokens == 0:
            raise ValueError(
                f"`vision_feature_select_strategy='default'` leaves out the class token, but the tower "
                f"{self.vision_config.model_type!r} has none: use 'full'."
            )
        if self.image_token_pooling is not None:
            self._refuse_bad_pooling()

    def _refuse_bad_pooling(self):
        pooling, side = self.image_token_pooling, self.patch_grid_size
        if isinstance(pooling, bool) or not isinstance(pooling, int) or not 1 <= pooling <= side:
            raise ValueError(
                f"`image_token_pooling` must be None or an integer from 1 to {side}, the number of patches on a side "
                f"of an image; got {pooling!r}."
            )
        if self.dense_connector == "sti":
            raise ValueError(
                "`image_token_pooling` does not go with `dense_connector='sti'`, which adds tokens that are not "
                "patches: use 'none', 'sci' or 'dci'."
            )
        if self.vision_feature_select_strategy == "full" and self.num_prefix_tokens:
            raise ValueError(
                "`image_token_pooling` does not go with `vision_feature_select_strategy='full'`, which keeps tokens "
                "that are not patches: use 'default'."
            )

    @property
    def patch_grid_size(self) -> int:
        """Patches of an image per side, in the vision tower."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def projector_hidden_act(self) -> str:
        """Activation of the projector, under the name that LLaVA's projector reads."""
        return "gelu" if self.projector_type == "mlp2x_gelu" else "linear"

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches in a hidden state of the vision tower."""
        if self.vision_config.model_type in TOWERS_WITHOUT_CLASS_TOKEN:
            return 0
        return 1 + getattr(self.vision_config, "num_register_tokens", 0)

    @property
    def connected_layers(self) -> tuple[int, ...]:
        """Hidden states that the dense connector adds to the selected one, in its order."""
        num_layers = self.vision_config.num_hidden_layers
        if self.dense_connector in ("sti", "sci"):
            return (max(num_layers // 3 - 1, 0), max(2 * num_layers // 3 - 1, 0))
        if self.dense_connector == "dci":
            return tuple(range(num_layers))
        return ()

    @property
    def projector_selects_features(self) -> bool:
        """Whether the projector, instead of LLaVA's code, joins layers and drops the tokens before the patches."""
        return bool(self.connected_layers or self.image_token_pooling) or self.num_prefix_tokens > 1

    @property
    def num_image_tokens(self) -> int:
        """Number of tokens per image in the text."""
        num_tokens = (self.image_token_pooling or self.patch_grid_size) ** 2
        if self.vision_feature_select_strategy == "full":
            num_tokens += self.num_prefix_tokens
        if self.dense_connector == "sti":
            num_tokens += 2 * -(-num_tokens // STI_POOLING)
        return num_tokens

    @property
    def image_seq_length(self) -> int:
        """`num_image_tokens`, under LLaVA's name."""
        return self.num_image_tokens

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """
        Same as in transformers.

        Raises:
            ValueError: If the configuration belongs to another model, such as a checkpoint of LLaVA's own code.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This configuration has the model type {model_type!r}, not {cls.model_type!r}. `logramed-convert` "
                "converts checkpoints of LLaVA-Med, ExGra-Med and LLaVA."
            )
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self):
        """Same as in transformers, with rotary parameters under the names of both 4.57 and 5."""
        content = super().to_dict()
        for name in self.sub_configs:
            content[name] = with_former_rope_names(content[name])
        return content

    def save_pretrained(self, save_directory, **kwargs):
        """Save the configuration, the code files and the `auto_map` that lets the Auto classes load the folder."""
        self.auto_map = dict(MODEL_AUTO_MAP)
        copy_code_files(save_directory)
        super().save_pretrained(save_directory, **kwargs)


CLIP_VIT_L_14_224 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


def with_former_rope_names(config):
    """
    Copy `rope_parameters` of a configuration dict (transformers 5) to the names that 4.57 reads.

    4.57 ignores `rope_parameters` and would rotate by 10000, its default, whatever the model has.

    Example:
        >>> with_former_rope_names({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})["rope_theta"]
        1000000.0
    """
    parameters = config.get("rope_parameters") or {}
    if "full_attention" in parameters:  # per layer type, as in Gemma 3
        local = parameters.get("sliding_attention") or {}
        former = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
        parameters = parameters["full_attention"] or {}
    else:
        former = {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in parameters:
            former[name] = parameters[name]
    if parameters.get("rope_type", "default") != "default":
        former["rope_scaling"] = {name: value for name, value in parameters.items() if name not in former}
    return {**config, **former}


def _sub_config(config, default):
    """A configuration object from an object, a dict that names its `model_type`, or None for the default."""
    if isinstance(config, PretrainedConfig):
        return config
    values = dict(default if config is None else config)
    return AutoConfig.for_model(values.pop("model_type", default["model_type"]), **values)


__all__ = ["LoGraMedConfig"]
