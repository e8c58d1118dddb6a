"""
Answering with what questions about the same images have in common read once: these, and the prompt up to their last
token.

For LLaVA models (transformers' own and ours), whose language model reads a prompt from left to right, so that what
follows an image cannot change how it was read.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer

from logramed.eval.prompts import get_tokenizer, load_question_image, template_begins


# Settings of a generation config that change greedy answers: `generate` has to see to them.
SETTINGS_BEYOND_GREEDY = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "stop_strings": None,
    "remove_invalid_values": False,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
}
# Rotary positions that turn further in longer texts: a beginning read by itself would be read as that of a short one.
ROPE_TYPES_BY_LENGTH = ("dynamic", "longrope")
# Projected features of so many images are kept, for questions about an image that fall into two batches.
NUM_KEPT_IMAGES = 64
# Tokens that a cache layer has room for beyond those it holds. More costs memory, fewer more copies of the whole.
ROOM = 64


@dataclass(frozen=True)
class EncodedRow:
    """
    A prompt as token ids: `prefix` up to the last token of its images, and `suffix`, what comes after, if anything.

    `pixel_keys` tell the pixels that the tokens of each image stand for, in their order.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pixel_keys: tuple[bytes, ...]

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The whole prompt."""
        return self.prefix + self.suffix

    @property
    def key(self) -> bytes:
        """The same for two rows only if they are the same, and short."""
        return hashlib.sha256(repr((self.prefix, self.suffix, self.pixel_keys)).encode()).digest()


@dataclass(frozen=True)
class _OpenImages:
    paths: tuple[str, ...]
    pixel_keys: tuple[bytes, ...]
    tokens: list[int] | None  # what stands for each image in a prompt, if that is the same in every prompt


@dataclass
class ReadPrefixes:
    """
    Rows whose prefixes are read already.

    `cache` holds the prefixes, padded on the left to `(num_rows, prefix_length)` as `attention_mask` says; `suffixes`
    are the tokens of each row that come after.
    """

    cache: Cache
    attention_mask: torch.Tensor
    suffixes: list[tuple[int, ...]]


class RoomyLayer(DynamicLayer):
    """
    A cache layer with room for tokens to come: a step writes its token, where `DynamicLayer` copies all before it.

    On a CPU that copy takes more than half the time of a step of 32 rows with 200 tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """As `DynamicLayer.update`: takes `(num_rows, num_heads, num_tokens, head_size)`, returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < end:
            self._room = tuple(
                new.new_empty(*new.shape[:-2], end + ROOM, new.shape[-1]) for new in (key_states, value_states)
            )
            if start:
                self._room[0][..., :start, :], self._room[1][..., :start, :] = self.keys, self.values
        self._room[0][..., start:end, :], self._room[1][..., start:end, :] = key_states, value_states
        self.keys, self.values = (room[..., :end, :] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only, or several times over."""
        self.keep(indices, first=0)

    def keep(self, rows: torch.Tensor, first: int) -> None:
        """Keep these rows only, without the tokens before place `first`."""
        end = self.get_seq_length() - first
        self._room = tuple(room[rows, :, first:] for room in self._room)
        self.keys, self.values = (room[..., :end, :] for room in self._room)

    def join(self, other: "RoomyLayer") -> None:
        """Add the rows of `other` after these. Where one of the two is shorter, it gets zeros before its tokens."""
        end = max(self.get_seq_length(), other.get_seq_length())
        rooms = []
        for parts in ((self.keys, other.keys), (self.values, other.values)):
            num_rows = sum(len(part) for part in parts)
            # Zeros: what no row attends to must still be a number.
            room = parts[0].new_zeros(num_rows, parts[0].shape[1], end + ROOM, parts[0].shape[-1])
            room[: len(parts[0]), :, end - parts[0].shape[-2] : end] = parts[0]
            room[len(parts[0]) :, :, end - parts[1].shape[-2] : end] = parts[1]
            rooms.append(room)
        self._room = tuple(rooms)
        self.keys, self.values = (room[..., :end, :] for room in self._room)


def keep_rows(cache: Cache, rows: torch.Tensor, first: int) -> None:
    """Keep these rows of a cache of `RoomyLayer`s only, without the tokens before place `first`."""
    for layer in cache.layers:
        layer.keep(rows, first)


def join_caches(cache: Cache, other: Cache) -> None:
    """Add the rows of `other` to a cache of `RoomyLayer`s, both ending at the same place."""
    for layer, other_layer in zip(cache.layers, other.layers, strict=True):
        layer.join(other_layer)


def base_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside a PEFT wrapper, adapters and all, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def can_share_prefixes(model: torch.nn.Module) -> bool:
    """
    Whether a model reads strictly from left to right and decodes greedily as `PrefixReader` and `GreedyRows` do.

    Not so for models other than LLaVA's, for adapters that put tokens of their own before a prompt, for language
    models that look back over a window only (padding between a prefix and what follows would count in its reach) or
    whose positions depend on the length of the text, and where the model's own settings change greedy answers.
    """
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        return False
    model = base_model(model)
    # A class of other code that builds on LLaVA's may read otherwise; ours is loaded from its own code, too.
    if not isinstance(model, LlavaForConditionalGeneration) or model.config.model_type not in ("llava", "logramed"):
        return False
    if model.config.vision_config.model_type == "pixtral":  # images of many sizes, each with tokens of its own
        return False
    text_config = model.config.get_text_config()
    layer_types = getattr(text_config, "layer_types", None) or ()
    if getattr(text_config, "sliding_window", None) or any(kind != "full_attention" for kind in layer_types):
        return False
    if (getattr(text_config, "rope_parameters", None) or {}).get("rope_type") in ROPE_TYPES_BY_LENGTH:
        return False
    settings = model.generation_config
    return all(getattr(settings, name, None) in (None, plain) for name, plain in SETTINGS_BEYOND_GREEDY.items())


class PrefixReader:
    """
    Reads images and prompts for a LLaVA model, each image and each beginning of prompts once.

    Args:
        model: transformers' LLaVA or ours, possibly inside a PEFT wrapper; see `can_share_prefixes`.
        processor: Its processor, with a chat template.
        blank_images (`bool`): Show evenly grey images (see `load_question_image`).
    """

    def __init__(self, model: torch.nn.Module, processor: Any, blank_images: bool = False):
        self.model = base_model(model)
        self.processor = processor
        self.tokenizer = get_tokenizer(processor)
        self.blank_images = blank_images
        self.image_token_id = self.model.config.image_token_id
        self._opened: _OpenImages | None = None
        self._pixel_values: dict[bytes, torch.Tensor] = {}
        self._image_features: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def encode(self, images: Sequence[str], prompt: str) -> EncodedRow:
        """
        The tokens of a prompt about the images at these paths, as the processor makes them.

        The images are opened once for prompts that come one after the other.
        """
        add_special_tokens = not template_begins(self.processor, prompt)
        written = self.tokenizer(prompt, add_special_tokens=add_special_tokens)["input_ids"]
        opened, paths = self._opened, tuple(images)
        is_open = opened is not None and opened.paths == paths and all(map(self._holds, opened.pixel_keys))
        # Another number of placeholders than of images is the processor's to refuse.
        if not is_open or opened.tokens is None or written.count(self.image_token_id) != len(paths):
            return self._encode_with_images(paths, prompt, written, add_special_tokens)
        return self._split_row(self._fill_in(written, opened.tokens), opened.pixel_keys)

    def _holds(self, pixel_key: bytes) -> bool:
        return pixel_key in self._image_features or pixel_key in self._pixel_values

    def _encode_with_images(self, paths, prompt, written, add_special_tokens) -> EncodedRow:
        images = [load_question_image(path, self.processor, self.blank_images) for path in paths]
        inputs = self.processor(
            text=[prompt], images=[images], return_tensors="pt", add_special_tokens=add_special_tokens
        )
        input_ids, pixel_keys = inputs["input_ids"][0].tolist(), []
        for pixel_values in inputs["pixel_values"].split(1):
            pixel_keys.append(hashlib.sha256(pixel_values.numpy().tobytes()).digest())
            if pixel_keys[-1] not in self._image_features:
                self._pixel_values[pixel_keys[-1]] = pixel_values
        tokens = self._find_image_tokens(written, input_ids, len(paths))
        self._opened = _OpenImages(paths, tuple(pixel_keys), tokens)
        return self._split_row(input_ids, tuple(pixel_keys))

    def _find_image_tokens(self, written: list[int], input_ids: list[int], num_images: int) -> list[int] | None:
        """What the processor wrote in place of each placeholder: image tokens and, for some, tokens around them."""
        first = written.index(self.image_token_id)
        num_tokens = (len(input_ids) - len(written)) // num_images + 1
        tokens = input_ids[first : first + num_tokens]
        # A processor that rewrites the text around an image must do so for each prompt.
        return tokens if self._fill_in(written, tokens) == input_ids else None

    def _fill_in(self, written: list[int], tokens: list[int]) -> list[int]:
        return [new for token in written for new in (tokens if token == self.image_token_id else (token,))]

    def read(self, rows: Sequence[EncodedRow]) -> ReadPrefixes:
        """Let the model read each distinct prefix of `rows` once."""
        keys = [(row.pixel_keys, row.prefix) for row in rows]
        prefixes = list(dict.fromkeys(keys))
        input_ids, attention_mask = pad_on_the_left([prefix for _, prefix in prefixes], self.model.device)
        inputs_embeds = self.model.get_input_embeddings()(input_ids)
        features = self._features([key for pixel_keys, _ in prefixes for key in pixel_keys]).to(inputs_embeds.dtype)
        inputs_embeds = inputs_embeds.masked_scatter((input_ids == self.image_token_id).unsqueeze(-1), features)
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        self.model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask),
            past_key_values=cache,
            use_cache=True,
        )
        place = {prefix: i for i, prefix in enumerate(prefixes)}
        chosen = torch.tensor([place[key] for key in keys], device=self.model.device)
        cache.batch_select_indices(chosen)
        return ReadPrefixes(cache, attention_mask[chosen], [row.suffix for row in rows])

    def _split_row(self, input_ids: Sequence[int], pixel_keys: tuple[bytes, ...]) -> EncodedRow:
        end = len(input_ids) - input_ids[::-1].index(self.image_token_id)
        return EncodedRow(tuple(input_ids[:end]), tuple(input_ids[end:]), pixel_keys)

    def _features(self, pixel_keys: list[bytes]) -> torch.Tensor:
        """Projected features `(num_all_image_tokens, hidden_size)` of the images, one after the other."""
        new = [key for key in dict.fromkeys(pixel_keys) if key not in self._image_features]
        if new:
            pixel_values = torch.cat([self._pixel_values.pop(key) for key in new])
            pixel_values = pixel_values.to(self.model.device, self.model.dtype)
            outputs = self.model.get_image_features(pixel_values=pixel_values, return_dict=True)
            self._image_features.update(zip(new, outputs.pooler_output, strict=True))
        features = torch.cat([self._image_features[key] for key in pixel_keys])
        self._pixel_values.clear()
        while len(self._image_features) > NUM_KEPT_IMAGES:
            self._image_features.popitem(last=False)
        return features


def pad_on_the_left(
    rows: Sequence[Sequence[int]], device: torch.device, pad_token_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Token ids and attention mask, `(num_rows, longest)` each, of rows of ids.

    Example:
        >>> pad_on_the_left([[5, 6], [7]], torch.device("cpu"))
        (tensor([[5, 6],
                [0, 7]]), tensor([[1, 1],
                [0, 1]]))
    """
    longest = max(len(row) for row in rows)
    padded = [[pad_token_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """
    The place of each token among those that its row attends to, from 0, as `generate` counts them.

    Example:
        >>> positions(torch.tensor([[0, 1, 1, 0, 1]]))
        tensor([[0, 0, 1, 1, 2]])
    """
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
