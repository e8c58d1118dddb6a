"""The processor of LoGra-Med: converts images and text to model inputs."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin, TextKwargs
from transformers.utils import logging
from transformers.utils.chat_template_utils import render_jinja_template

from .chat_templates_logramed import CHAT_TEMPLATES
from .remote_code_logramed import PROCESSOR_AUTO_MAP, copy_code_files


logger = logging.get_logger(__name__)

IMAGE_ARGUMENTS = {
    "size",
    "do_pad_to_square",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
    "input_data_format",
}
# Optional outputs of `__call__`, by argument. Callers may also pass these among the tokenizer's arguments.
EXTRA_OUTPUTS = {
    "return_mm_token_type_ids": "mm_token_type_ids",
    "return_text_replacement_offsets": "text_replacement_offsets",
}
# `return_tensors` belongs to both; `sanitize_control_tokens` of version 5 is not supported.
TEXT_ARGUMENTS = (set(TextKwargs.__annotations__) - {"sanitize_control_tokens", "return_tensors"}) | set(EXTRA_OUTPUTS)
# Keys that may hold the image of a content part of type image.
IMAGE_SOURCES = ("image", "url", "path", "base64")


def _images_by_text(images: Any, placeholder_counts: list[int]) -> list:
    """
    All images in the order of their placeholders, from a flat list or one list per text.

    Raises:
        ValueError: If a text, or with a flat list all texts together, has more or fewer placeholders than images.
    """
    if images is None:
        images = []
    elif getattr(images, "ndim", None) == 4:
        images = list(images)
    elif not isinstance(images, (list, tuple)):
        images = [images]
    if not any(entry is None or isinstance(entry, (list, tuple)) for entry in images):
        if len(images) != sum(placeholder_counts):
            raise ValueError(
                f"`text` has {sum(placeholder_counts)} image placeholders, but `images` holds {len(images)} images. "
                "Write the placeholder once for each image."
            )
        return list(images)
    images = [[] if entry is None else entry if isinstance(entry, (list, tuple)) else [entry] for entry in images]
    if len(images) != len(placeholder_counts):
        raise ValueError(
            f"`images` holds {len(images)} lists, one for each text, but there are {len(placeholder_counts)} texts."
        )
    for index, (count, entry) in enumerate(zip(placeholder_counts, images, strict=True)):
        if len(entry) != count:
            raise ValueError(
                f"`text[{index}]` has {count} image placeholders, but `images[{index}]` holds {len(entry)} images. "
                "Write the placeholder once for each image."
            )
    return [image for entry in images for image in entry]


def _image_source(part: dict) -> list:
    """The image of an image part, if it has one."""
    for key in IMAGE_SOURCES:
        if key in part:
            is_bare_base64 = key == "base64" and not part[key].startswith("data:")
            return ["data:;base64," + part[key] if is_bare_base64 else part[key]]
    return []


def _plain_messages(conversation: list[dict]) -> tuple[list[dict], list]:
    """
    The messages without image data and null values, and the images taken out of them.

    `datasets` gives each content part every key, with null for missing ones. `image_url` parts (the OpenAI format)
    become image parts.
    """
    messages, images = [], []
    for message in conversation:
        message = {key: value for key, value in message.items() if value is not None}
        if isinstance(message.get("content"), (list, tuple)):
            parts = []
            for part in message["content"]:
                part = {key: value for key, value in part.items() if value is not None}
                if part.get("type") == "image_url":
                    address = part["image_url"]
                    part = {"type": "image", "url": address["url"] if isinstance(address, dict) else address}
                if part.get("type") == "image":
                    images.extend(_image_source(part))
                    part = {key: value for key, value in part.items() if key not in IMAGE_SOURCES}
                parts.append(part)
            message["content"] = parts
        messages.append(message)
    return messages, images


def cut_at_stop_string(text: str, stop_string: str) -> str:
    """
    Cut an answer at `stop_string` and strip trailing whitespace.

    A partial `stop_string` at the end is cut off as well: generation may have ended within it.

    Example:
        >>> cut_at_stop_string("lung\\n### Human: what", "###"), cut_at_stop_string("lung\\n##", "###")
        ('lung', 'lung')
    """
    answer, found, _ = text.partition(stop_string)
    if not found:
        beginnings = (stop_string[:length] for length in range(len(stop_string) - 1, 0, -1))
        answer = answer.removesuffix(next(filter(answer.endswith, beginnings), ""))
    return answer.rstrip()


def write_shared_tokenizer_config(folder: Path, tokenizer) -> None:
    """
    Rewrite `tokenizer_config.json` so that transformers 4.57 and 5 read the same tokenizer from the folder.

    Version 5 names classes and lists extra tokens in ways that 4.57 does not know, and both have classes that rebuild
    the pre-tokenizer or the special tokens of a sequence from settings. Here only `tokenizer.json` decides.
    """
    config_file, backend_file = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not backend_file.is_file():
        return
    config = json.loads(config_file.read_text(encoding="utf-8"))
    extra_tokens = config.pop("extra_special_tokens", None) or []
    extra_tokens = list(extra_tokens.values()) if isinstance(extra_tokens, dict) else extra_tokens
    extra_tokens = [*config.pop("additional_special_tokens", []), *extra_tokens]
    for key in ("add_bos_token", "add_eos_token", "auto_map", "backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = [
        token for index, token in enumerate(extra_tokens) if token not in extra_tokens[:index]
    ]
    config["model_input_names"] = list(tokenizer.model_input_names)
    config["padding_side"] = tokenizer.padding_side
    config.setdefault("clean_up_tokenization_spaces", False)
    # 4.57 sets the pre-tokenizer's `add_prefix_space` to the value here, false if missing.
    pre_tokenizer = json.loads(backend_file.read_text(encoding="utf-8")).get("pre_tokenizer") or {}
    if "add_prefix_space" in pre_tokenizer:
        config["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    _write_json(config_file, config)
    # Written only by 4.57; it would repeat settings from above.
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


class LoGraMedProcessor(ProcessorMixin):
    """
    Combines the image processor, tokenizer and chat templates of LoGra-Med.

    Args:
        image_processor (`LoGraMedImageProcessor`):
            The image processor.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer, which must know `image_token`. It is set to left padding, which generation needs.
        num_image_tokens (`int`, *optional*):
            Number of tokens per image (`num_image_tokens` of the model's config). Required for images.
        image_token (`str`, defaults to `"<image>"`):
            Placeholder of an image in a text, and the token that is repeated for it.
        chat_template (`str` or `dict[str, str]`, *optional*):
            A chat template, or several by name; by default `CHAT_TEMPLATES`, whose names always work:
            `default`, `llava_med_v0` (as LLaVA-Med v1.0.0 was trained), `llava_med_v0_eval` (as it was evaluated),
            `llava_med_v1_5` and `llava_v1` (LLaVA v1 and v1.5).
        image_start_token, image_end_token (`str`, *optional*):
            Tokens written before and after those of an image, as in LLaVA-Med v1.0.0.
        stop_string (`str`, *optional*):
            Text with which the model ends its turns, if it was trained to write one instead of an end token: "###" for
            LLaVA-Med v1.0.0. `post_process_image_text_to_text` cuts answers there. To stop generation there, pass
            `stop_strings=processor.stop_string, tokenizer=processor.tokenizer` to `generate`.
    """

    # transformers 4.57 reads these three; 5 uses the arguments of `__init__` and warns about them.
    if not hasattr(ProcessorMixin, "get_attributes"):
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens=None,
        image_token="<image>",
        chat_template=None,
        image_start_token=None,
        image_end_token=None,
        stop_string=None,
        **kwargs,
    ):
        if image_processor is None or tokenizer is None:
            raise ValueError("`LoGraMedProcessor` needs an `image_processor` and a `tokenizer`.")
        for token in (image_token, image_start_token, image_end_token):
            if token is not None and token not in tokenizer.get_vocab():
                raise ValueError(
                    f"The tokenizer does not know the token {token}. Add it with `tokenizer.add_special_tokens("
                    f'{{"additional_special_tokens": ["{token}"]}})` and resize the embeddings of the language model.'
                )
        if stop_string == "":
            raise ValueError("`stop_string` must have at least one character. Leave it out if there is none.")
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.image_start_token = image_start_token
        self.image_end_token = image_end_token
        self.stop_string = stop_string
        # No language model here uses token types, and `generate` raises an error for what `forward` does not take.
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.padding_side = "left"
        if chat_template is None or chat_template == CHAT_TEMPLATES["default"]:
            chat_template = dict(CHAT_TEMPLATES)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        """
        Prepare texts, and images for the placeholders in them.

        Args:
            images (*optional*):
                One image, a list of images in the order of the placeholders, or one list of images per text.
            text (`str` or `list[str]`, *optional*):
                Texts, in which each `image_token` stands for one image.
            return_mm_token_type_ids (`bool`, *optional*):
                Add `mm_token_type_ids` with the shape of `input_ids`: 1 for image tokens, 0 for others. Start and end
                tokens of an image are 0, as in Gemma 3 (InternVL counts them): they hold no image features, so the
                number of ones per image is the `num_image_tokens` reported to servers.
            return_text_replacement_offsets (`bool`, *optional*):
                Add `text_replacement_offsets`: for each text, the positions of its placeholders before and after
                replacement, and what replaces them, as transformers' own processors do from 5.15 on.
            kwargs:
                Arguments of the image processor and the tokenizer, together or as `images_kwargs` and `text_kwargs`.
                Special tokens are not added if the texts start with the beginning-of-sequence token.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`, each
            placeholder repeated `num_image_tokens` times, and `pixel_values` of shape `(num_images, 3, height, width)`
            if there are images.

        Raises:
            ValueError: If the numbers of placeholders and images differ, or truncation would cut an image.
        """
        image_kwargs, text_kwargs, return_tensors = self._sort_arguments(kwargs)
        if text is None:
            if images is None:
                raise ValueError("`LoGraMedProcessor` needs `text`, `images` or both.")
            return self.image_processor(images, return_tensors=return_tensors, **image_kwargs)
        texts: Any = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not all(isinstance(entry, str) for entry in texts):
            raise TypeError("`text` must be a string or a list of strings.")
        wanted = {output for argument, output in EXTRA_OUTPUTS.items() if text_kwargs.pop(argument, False)}
        flat_images = _images_by_text(images, [entry.count(self.image_token) for entry in texts])
        inputs = self._tokenize(list(texts), text_kwargs)
        if "mm_token_type_ids" in wanted:
            inputs["mm_token_type_ids"] = [
                [int(token_id == self.image_token_id) for token_id in row] for row in inputs["input_ids"]
            ]
        if flat_images:
            inputs.update(self.image_processor(flat_images, return_tensors=return_tensors, **image_kwargs))
        features = BatchFeature(inputs, tensor_type=return_tensors)
        if "text_replacement_offsets" in wanted:  # no tensors
            features["text_replacement_offsets"] = [self._find_replacements(entry) for entry in texts]
        return features

    def _find_replacements(self, text: str) -> list[dict[str, Any]]:
        """Each placeholder in `text` and its replacement, with start and end before and after expansion."""
        replacement = self._expand(self.image_token) if self.image_token in text else ""
        found, gain = [], 0
        for match in re.finditer(re.escape(self.image_token), text):
            start = match.start() + gain
            found.append(
                {
                    "type": "image",
                    "span": match.span(),
                    "new_span": (start, start + len(replacement)),
                    "text": match.group(),
                    "replacement": replacement,
                }
            )
            gain += len(replacement) - len(self.image_token)
        return found

    def _sort_arguments(self, kwargs: dict[str, Any]) -> tuple[dict, dict, str | None]:
        """Split into arguments of the image processor, arguments of the tokenizer, and `return_tensors`."""
        common = {key: value for key, value in kwargs.items() if not key.endswith("_kwargs")}
        common.update(kwargs.get("common_kwargs") or {})
        # All processors in transformers have these arguments, and callers pass them even if empty.
        for name in ("videos", "audio"):
            if common.pop(name, None) is not None:
                raise ValueError(f"`LoGraMedProcessor` takes images and text, not `{name}`.")
        return_tensors = common.pop("return_tensors", None)
        image_kwargs = {key: common.pop(key) for key in IMAGE_ARGUMENTS & common.keys()}
        text_kwargs = {key: common.pop(key) for key in TEXT_ARGUMENTS & common.keys()}
        if common:
            # Not an error: pipelines of 4.57 pass on all their arguments.
            logger.warning_once(f"`LoGraMedProcessor` ignores {', '.join(sorted(common))}: it has no such arguments.")
        image_kwargs.update(kwargs.get("images_kwargs") or {})
        text_kwargs.update(kwargs.get("text_kwargs") or {})
        return_tensors = text_kwargs.pop("return_tensors", return_tensors)
        return_tensors = image_kwargs.pop("return_tensors", return_tensors)
        return image_kwargs, text_kwargs, return_tensors

    def _expand(self, text: str) -> str:
        """The text with each placeholder replaced by the tokens of an image."""
        if self.image_token not in text:
            return text
        if not self.num_image_tokens:
            raise ValueError("Images need `num_image_tokens`: give the processor the value of the model's config.")
        image_tokens = self.image_token * self.num_image_tokens
        return text.replace(
            self.image_token, (self.image_start_token or "") + image_tokens + (self.image_end_token or "")
        )

    def _tokenize(self, texts: list[str], text_kwargs: dict[str, Any]) -> dict[str, list]:
        """Expand and tokenize texts into lists. Raises `ValueError` if an image token would be lost."""
        expanded = [self._expand(text) for text in texts]
        bos_token = self.tokenizer.bos_token
        if bos_token and all(text.startswith(bos_token) for text in texts):
            text_kwargs = {"add_special_tokens": False, **text_kwargs}
        inputs = dict(self.tokenizer(expanded, **text_kwargs))
        for index, text in enumerate(expanded):
            expected = text.count(self.image_token)
            found = list(inputs["input_ids"][index]).count(self.image_token_id)
            if found != expected:
                raise ValueError(self._lost_image_tokens(index, text, expected, found, text_kwargs))
        return inputs

    def _lost_image_tokens(self, index: int, text: str, expected: int, found: int, text_kwargs: dict[str, Any]) -> str:
        """Error message for a text that has `expected` image tokens of which the tokenizer returned `found`."""
        add_special_tokens = text_kwargs.get("add_special_tokens", True)
        token_ids = self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        if token_ids.count(self.image_token_id) != expected:
            return (
                f"The tokenizer made {found} tokens {self.image_token} of the {expected} in `text[{index}]`. It must "
                "keep this token whole: add it as a special token."
            )
        if self.tokenizer.truncation_side == "left":
            needed = len(token_ids) - token_ids.index(self.image_token_id)
        else:
            needed = len(token_ids) - token_ids[::-1].index(self.image_token_id)
        max_length = text_kwargs.get("max_length") or self.tokenizer.model_max_length
        return (
            f"`text[{index}]` needs {needed} tokens to keep its {expected} image tokens, but `max_length` is "
            f"{max_length}. Raise `max_length` to at least {needed}."
        )

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        tools: list | None = None,
        documents: list | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        images: Any = None,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = False,
        **kwargs,
    ):
        """
        Convert conversations to text, or with `tokenize=True` to model inputs with their images.

        Works the same on transformers 4.57 and 5, whose own methods differ in arguments and the assistant mask.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`):
                Messages, or a batch of them, with `role` and `content`: a string or a list of parts
                `{"type": "text", "text": ...}` and `{"type": "image", ...}`. An image part may hold its image as
                `image`, `path`, `url` or `base64`.
            chat_template (`str`, *optional*):
                Name of a template of this processor or of `CHAT_TEMPLATES`, or the template itself.
            add_generation_prompt (`bool`, *optional*):
                End with the beginning of an assistant turn.
            continue_final_message (`bool`, *optional*):
                Leave the last message open.
            return_assistant_tokens_mask (`bool`, *optional*):
                Add `assistant_masks`, 1 for each token that the model has to write.
            tokenize, return_dict (`bool`, *optional*):
                Return `input_ids`, and with `return_dict` all model inputs, instead of text.
            images (*optional*):
                The images, as for `__call__`, if the image parts do not hold them.
            processor_kwargs (`dict`, *optional*), kwargs:
                Arguments of `__call__`. Unknown ones become variables of the template.

        Returns:
            `str` or `list[str]`; `BatchFeature` with `return_dict`; `input_ids` with `tokenize` only.
        """
        if sanitize_control_tokens:
            raise ValueError("`LoGraMedProcessor` does not support `sanitize_control_tokens`.")
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise ValueError(
                "`continue_final_message` cannot be combined with `add_generation_prompt` or "
                "`return_assistant_tokens_mask`."
            )
        known_arguments = IMAGE_ARGUMENTS | TEXT_ARGUMENTS
        known_arguments |= {"return_tensors", "images_kwargs", "text_kwargs", "common_kwargs"}
        call_kwargs = {key: kwargs.pop(key) for key in known_arguments & kwargs.keys()}
        call_kwargs.update(processor_kwargs or {})
        images = call_kwargs.pop("images", images)

        is_batch = bool(conversation) and not isinstance(conversation[0], dict)
        conversations: Any = conversation if is_batch else [conversation]
        plain = [_plain_messages(getattr(entry, "messages", entry)) for entry in conversations]
        template = self._resolve_template(chat_template)
        prompts, generation_spans = render_jinja_template(
            conversations=[messages for messages, _ in plain],
            tools=tools,
            documents=documents,
            chat_template=template,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            continue_final_message=continue_final_message,
            add_generation_prompt=add_generation_prompt,
            **{**self.tokenizer.special_tokens_map, "image_token": self.image_token, **kwargs},
        )
        if not tokenize:
            return prompts if is_batch else prompts[0]

        if images is None:
            images = [entry for _, entry in plain]
        elif any(entry for _, entry in plain):
            raise ValueError("Give the images in the messages or as `images`, not both.")
        if "bos_token" in template:
            # The template writes the special tokens itself.
            call_kwargs.setdefault("add_special_tokens", False)
        spans = generation_spans if return_assistant_tokens_mask else None
        inputs = self._process_prompts(prompts, images, spans, call_kwargs)
        return inputs if return_dict else inputs["input_ids"]

    def _resolve_template(self, chat_template: str | None) -> str | None:
        """The template with this name, or the text itself."""
        own = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        templates = {**CHAT_TEMPLATES, **own}
        return templates.get(chat_template or "default", chat_template)

    def _process_prompts(
        self, prompts: list[str], images: Any, generation_spans: list | None, call_kwargs: dict[str, Any]
    ) -> BatchFeature:
        """Call the processor; with `generation_spans` (positions in the prompts), add `assistant_masks`."""
        if generation_spans is None:
            return self(images=images, text=prompts, **call_kwargs)
        _, text_kwargs, return_tensors = self._sort_arguments(call_kwargs)
        # Convert to tensors last: the mask is built from lists.
        call_kwargs = {key: value for key, value in call_kwargs.items() if key != "return_tensors"}
        inputs = self(images=images, text=prompts, **{**call_kwargs, "return_offsets_mapping": True})
        inputs["assistant_masks"] = [
            self._assistant_mask(prompt, spans, offsets)
            for prompt, spans, offsets in zip(prompts, generation_spans, inputs["offset_mapping"], strict=True)
        ]
        if not text_kwargs.get("return_offsets_mapping"):
            del inputs["offset_mapping"]
        replacements = inputs.pop("text_replacement_offsets", None)
        inputs = inputs.convert_to_tensors(return_tensors)
        if replacements is not None:
            inputs["text_replacement_offsets"] = replacements
        return inputs

    def _assistant_mask(self, prompt: str, spans: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[int]:
        """1 for each token that overlaps a span; spans are positions in the prompt before expansion."""
        mask = [0] * len(offsets)
        for start, end in spans:
            start, end = len(self._expand(prompt[:start])), len(self._expand(prompt[:end]))
            for position, (token_start, token_end) in enumerate(offsets):
                if token_start < end and token_end > start:
                    mask[position] = 1
        return mask

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """Decode generated token ids, `(batch_size, sequence_length)` or one sequence, up to the stop string."""
        if getattr(generated_outputs, "ndim", 2) == 1:
            generated_outputs = generated_outputs[None]
        texts = self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        return [self.cut_answer(text) for text in texts]

    def cut_answer(self, text: str) -> str:
        """Cut a decoded answer at the stop string, if there is one (see `cut_at_stop_string`)."""
        return text if self.stop_string is None else cut_at_stop_string(text, self.stop_string)

    def _get_num_multimodal_tokens(self, image_sizes: list | None = None, **kwargs) -> MultiModalData:
        """Numbers of tokens and patches of images of these sizes: the same for every size."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def to_dict(self, legacy_serialization: bool = True) -> dict[str, Any]:
        """Content of `processor_config.json`; the image processor, tokenizer and templates have their own files."""
        # Left out if unset, so that older folders keep their bytes, and with them their evaluation fingerprint.
        stop_string = {} if self.stop_string is None else {"stop_string": self.stop_string}
        return {
            "processor_class": type(self).__name__,
            "auto_map": dict(PROCESSOR_AUTO_MAP),
            "num_image_tokens": self.num_image_tokens,
            "image_token": self.image_token,
            "image_start_token": self.image_start_token,
            "image_end_token": self.image_end_token,
            **stop_string,
        }

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """
        Save everything that the Auto classes of transformers 4.57 and 5 need to load the processor, including code.

        Args:
            save_directory (`str` or `Path`):
                Folder to save to, created if needed.
            push_to_hub (`bool`, *optional*):
                Also upload the files to the Hub repository `repo_id` (by default the folder's name), with `token`,
                `private`, `revision`, `create_pr` and `commit_message` as given.

        Returns:
            `list[str]`: the path of `processor_config.json`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        copy_code_files(folder)
        # The tokenizer writes the template files in 4.57 and 5, and must not overwrite ours.
        self.tokenizer.chat_template = self._templates_to_save()
        self.tokenizer._set_processor_class(type(self).__name__)
        if self.tokenizer.is_fast:
            # Otherwise padding and truncation of the last call would be saved as defaults of the tokenizer.
            self.tokenizer.backend_tokenizer.no_padding()
            self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(str(folder))
        write_shared_tokenizer_config(folder, self.tokenizer)
        self.image_processor.save_pretrained(str(folder))
        _write_json(folder / "processor_config.json", self.to_dict())
        if push_to_hub:
            written = [
                path for path in folder.rglob("*") if path.is_file() and before.get(path) != path.stat().st_mtime_ns
            ]
            self._push_files(folder, written, **kwargs)
        return [str(folder / "processor_config.json")]

    def _templates_to_save(self) -> str | dict[str, str]:
        """
        The templates that are not in the code: 4.57 cannot load a Hub repository with a folder of additional ones, as
        it appends the extension of their names twice.
        """
        if not isinstance(self.chat_template, dict):
            return self.chat_template
        own = {
            name: template
            for name, template in self.chat_template.items()
            if name == "default" or template != CHAT_TEMPLATES.get(name)
        }
        return own["default"] if list(own) == ["default"] else own

    def _push_files(self, folder: Path, files: list[Path], **kwargs) -> None:
        api = HfApi(token=kwargs.get("token"))
        repo_id = api.create_repo(
            kwargs.get("repo_id") or folder.resolve().name, private=kwargs.get("private"), exist_ok=True
        ).repo_id
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[str(path.relative_to(folder)) for path in files],
            revision=kwargs.get("revision"),
            create_pr=kwargs.get("create_pr"),
            commit_message=kwargs.get("commit_message") or "Upload processor",
        )


__all__ = ["LoGraMedProcessor"]
