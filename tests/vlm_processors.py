"""Tiny processors of transformers for other families than ours, with a chat template like each family's own."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    SmolVLMProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.tiny import WORDS


ROLES = ("user", "assistant", "system", "model", "User", "Assistant", "System")

LLAVA_TEMPLATE = """
{%- for message in messages -%}
    {{- message['role'] | upper + ': ' -}}
    {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}
        {%- if message['role'] == 'assistant' -%}
            {% generation %}{{ part['text'] + '</s>' }}{% endgeneration %}
        {%- else -%}
            {{ part['text'] + ' ' }}
        {%- endif -%}
    {%- endfor -%}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt else '' -}}
"""

QWEN_TEMPLATE = """
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- '<|im_start|>system\\nbe brief .<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- for part in message['content'] -%}
        {%- if part['type'] == 'image' -%}
            {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
        {%- else -%}
            {{- part['text'] -}}
        {%- endif -%}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""

GEMMA_TEMPLATE = """
{{- bos_token -}}
{%- set ns = namespace(prefix='') -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {%- set ns.prefix = message['content'][0]['text'] + '\\n\\n' -%}
    {%- else -%}
        {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
        {{- '<start_of_turn>' + role + '\\n' + ns.prefix -}}
        {%- set ns.prefix = '' -%}
        {%- for part in message['content'] -%}
            {{- '<start_of_image>' if part['type'] == 'image' else part['text'] | trim -}}
        {%- endfor -%}
        {{- '<end_of_turn>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<start_of_turn>model\\n' if add_generation_prompt else '' -}}
"""

SMOLVLM_TEMPLATE = """
{{- '<|im_start|>' -}}
{%- for message in messages -%}
    {{- message['role'] | capitalize + (':' if message['content'][0]['type'] == 'image' else ': ') -}}
    {%- for part in message['content'] -%}
        {{- '<image>' if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
    {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{{- 'Assistant:' if add_generation_prompt else '' -}}
"""


def word_tokenizer(special_tokens, bos_token, eos_token, adds_bos=False, **names):
    """
    A tokenizer of whole words, line breaks and punctuation.

    Args:
        special_tokens (`list[str]`): With the ids 4, 5, ..., beside `<pad>`, `bos_token`, `eos_token`, `<unk>`.
        adds_bos (`bool`): Whether every text begins with `bos_token`.
        names: Further special tokens by name, such as `image_token`.
    """
    first = ["<pad>", bos_token or "<s>", eos_token, "<unk>", *special_tokens]
    words = dict.fromkeys([*first, *WORDS.split(), *ROLES, "\n", "Here", "original", "crops"])
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
    )
    backend.decoder = decoders.WordPiece(prefix="@@", cleanup=True)
    if adds_bos:
        backend.post_processor = TemplateProcessing(single=f"{bos_token} $A", special_tokens=[(bos_token, 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=names,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens})
    return tokenizer


def tiny_llava_processor():
    """LLaVA: 4 tokens an image, a template with generation marks that writes no `<s>`, which the tokenizer adds."""
    tokenizer = word_tokenizer(["<image>"], "<s>", "</s>", adds_bos=True)
    return LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )


class ImageOnlyQwenProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its part for videos, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = (
            tokenizer.convert_tokens_to_ids(token) for token in (self.image_token, self.video_token)
        )
        super(Qwen2_5_VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


def tiny_qwen2_5_vl_processor():
    """Qwen2.5-VL: as many tokens as an image is large, no `<s>`, a system message of its own."""
    special_tokens = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>"]
    tokenizer = word_tokenizer(special_tokens, None, "<|im_end|>")
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    return ImageOnlyQwenProcessor(image_processor, tokenizer, chat_template=QWEN_TEMPLATE)


def tiny_gemma3_processor():
    """Gemma 3 (MedGemma): the placeholder is another token than those of an image; the template writes `<bos>`."""
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = word_tokenizer(
        [*names.values(), "<start_of_turn>", "<end_of_turn>", "\n\n"], "<bos>", "<eos>", adds_bos=True, **names
    )
    image_processor = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return Gemma3Processor(image_processor, tokenizer, chat_template=GEMMA_TEMPLATE, image_seq_length=4)


class ImageOnlySmolVLMProcessor(SmolVLMProcessor):
    """SmolVLM's processor without its part for videos, which needs torchvision and num2words."""

    def __init__(self, image_processor, tokenizer, image_seq_len=4, chat_template=None):
        self.image_token, self.fake_image_token = "<image>", "<fake_token_around_image>"
        self.global_image_token = "<global-img>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.image_seq_len = image_seq_len
        super(SmolVLMProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)

    apply_chat_template = ProcessorMixin.apply_chat_template


def tiny_smolvlm_processor():
    """SmolVLM: images go by sample, each is cut into parts, and a generation prompt without the blank of an answer."""
    parts = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    special_tokens = ["<image>", "<fake_token_around_image>", "<global-img>", "<|im_start|>", *parts]
    tokenizer = word_tokenizer(special_tokens, "<|im_start|>", "<end_of_utterance>")
    image_processor = SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return ImageOnlySmolVLMProcessor(image_processor, tokenizer, chat_template=SMOLVLM_TEMPLATE)
