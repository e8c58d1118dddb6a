import base64
import collections
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

import logramed.processing_logramed as processing_module
from logramed.chat_templates_logramed import CHAT_TEMPLATES
from logramed.image_processing_logramed import LoGraMedImageProcessor
from logramed.processing_logramed import LoGraMedProcessor, cut_at_stop_string
from tests.tiny import tiny_processor, tiny_tokenizer


SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
TRAINED_TEXT = "the quick brown fox jumps over the lazy dog. USER: ASSISTANT: What organ is shown? lung. Yes, 12 no!"


def gray_image(level=100, width=6, height=4):
    return Image.new("L", (width, height), level)


def image_part(image=None):
    return {"type": "image"} if image is None else {"type": "image", "image": image}


def text_part(text):
    return {"type": "text", "text": text}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def assistant(text):
    return {"role": "assistant", "content": [text_part(text)]}


@pytest.fixture
def processor():
    return tiny_processor()


@pytest.fixture
def conversation():
    return [user(image_part(gray_image()), text_part("What organ is shown?")), assistant("lung.")]


# ---- calling ----


def test_each_placeholder_becomes_the_tokens_of_an_image(processor):
    texts = ["<image> what", "lung <image> left <image>"]
    inputs = processor(images=[gray_image()] * 3, text=texts, padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [4, 8]
    assert inputs["pixel_values"].shape == (3, 3, 8, 8)
    first = processor.tokenizer("<image><image><image><image> what")["input_ids"]
    assert inputs["input_ids"][0, -len(first) :].tolist() == first


def test_nested_images_are_the_same_as_flat_ones(processor):
    images = [gray_image(level) for level in (10, 90, 200)]
    texts = ["<image> what", "no", "lung <image> left <image>"]
    flat = processor(images=images, text=texts)
    for nested in ([images[:1], [], images[1:]], [images[:1], None, images[1:]], [images[0], [], images[1:]]):
        inputs = processor(images=nested, text=texts)
        assert inputs["input_ids"] == flat["input_ids"]
        assert np.array_equal(inputs["pixel_values"], flat["pixel_values"])


@pytest.mark.parametrize(
    ("images", "text", "words"),
    [
        ([gray_image()], "what", r"0 image placeholders, but `images` holds 1 images"),
        (None, ["<image> <image>"], r"2 image placeholders, but `images` holds 0 images"),
        ([gray_image()] * 2, ["<image>", "<image> <image>"], r"3 image placeholders, but `images` holds 2 images"),
        ([[gray_image()] * 2, []], ["<image>", "<image>"], r"`text\[0\]` has 1 .* `images\[0\]` holds 2 images"),
        ([[gray_image()]], ["<image>", "<image>"], r"1 lists, one for each text, but there are 2 texts"),
    ],
)
def test_wrong_counts_of_placeholders_and_images_are_refused(processor, images, text, words):
    with pytest.raises(ValueError, match=words):
        processor(images=images, text=text)


def test_text_alone_and_images_alone(processor):
    assert set(processor(text="what organ")) == {"input_ids", "attention_mask"}
    assert set(processor(images=gray_image())) == {"pixel_values"}
    with pytest.raises(ValueError, match="needs `text`, `images` or both"):
        processor()
    with pytest.raises(TypeError, match="`text` must be a string"):
        processor(text=[["what"]])
    with pytest.raises(ValueError, match="not `videos`"):
        processor(text="what", videos=[1])


def test_padding_is_on_the_left_unless_told(processor):
    texts = ["what", "what organ is shown"]
    left = processor(text=texts, padding=True, return_tensors="pt")["attention_mask"][0].tolist()
    right = processor(text=texts, padding=True, padding_side="right", return_tensors="pt")["attention_mask"][
        0
    ].tolist()
    assert left == [0, 0, 0, 1]
    assert right == [1, 0, 0, 0]


def test_arguments_reach_the_tokenizer_and_the_image_processor(processor):
    inputs = processor(
        images=gray_image(), text="<image> what", size=4, do_normalize=False, return_offsets_mapping=True
    )
    assert inputs["pixel_values"].shape == (1, 3, 4, 4)
    assert inputs["pixel_values"].min() >= 0
    assert inputs["offset_mapping"][0][-1] == (4 * len("<image>") + 1, 4 * len("<image>") + 5)
    structured = processor(
        images=gray_image(),
        text="<image> what",
        images_kwargs={"size": 4},
        text_kwargs={"padding": "max_length", "max_length": 12},
        common_kwargs={"return_tensors": "pt"},
    )
    assert structured["pixel_values"].shape == (1, 3, 4, 4)
    assert structured["input_ids"].shape == (1, 12)


def test_arguments_of_others_are_ignored_with_a_warning(processor, monkeypatch):
    warnings = []
    monkeypatch.setattr(processing_module.logger, "warning_once", warnings.append)
    assert processor(text="what", do_sample=False)["input_ids"] == processor(text="what")["input_ids"]
    assert warnings == ["`LoGraMedProcessor` ignores do_sample: it has no such arguments."]
    with pytest.raises(ValueError, match="does not support `sanitize_control_tokens`"):
        processor.apply_chat_template(ONE_QUESTION, sanitize_control_tokens=True)


def test_truncation_cuts_the_text_after_the_images(processor):
    text = "<image> what organ is shown"
    whole = processor(images=gray_image(), text=text)["input_ids"][0]
    cut = processor(images=gray_image(), text=text, truncation=True, max_length=6)["input_ids"][0]
    assert cut == whole[:6]
    assert cut.count(processor.image_token_id) == 4


def test_truncation_that_would_cut_an_image_says_what_is_needed(processor):
    text = "what <image> organ <image> is shown"
    with pytest.raises(ValueError, match=r"needs 10 tokens to keep its 8 image tokens, but `max_length` is 7"):
        processor(images=[gray_image()] * 2, text=text, truncation=True, max_length=7)
    processor(images=[gray_image()] * 2, text=text, truncation=True, max_length=10)


def test_truncation_from_the_left_says_what_is_needed(processor):
    processor.tokenizer.truncation_side = "left"
    with pytest.raises(ValueError, match=r"needs 6 tokens to keep its 4 image tokens, but `max_length` is 5"):
        processor(images=[gray_image()], text="what <image> is shown", truncation=True, max_length=5)


def test_a_start_token_of_the_text_is_not_doubled():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    processor = LoGraMedProcessor(LoGraMedImageProcessor(size=8), tokenizer, num_image_tokens=4)
    alike = [processor(text=text)["input_ids"] for text in ("lung left", "<s>lung left", ["<s>lung left"])]
    assert alike[0] == alike[1] == alike[2]
    messages = [user(text_part("what"))]
    default = processor.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][0]
    assert default.count(tokenizer.bos_token_id) == 1
    llava_med = processor.apply_chat_template(messages, "llava_med_v0", tokenize=True, return_dict=True)
    assert llava_med["input_ids"][0].count(tokenizer.bos_token_id) == 1


def wrapping_processor():
    """Encloses each image in `<im_start>` and `<im_end>`."""
    tokenizer = tiny_tokenizer(extra_words=["<im_start>", "<im_end>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<im_start>", "<im_end>"]})
    return LoGraMedProcessor(
        LoGraMedImageProcessor(size=8),
        tokenizer,
        num_image_tokens=2,
        image_start_token="<im_start>",
        image_end_token="<im_end>",
    )


def test_start_and_end_tokens_enclose_the_image():
    processor = wrapping_processor()
    input_ids = processor(images=gray_image(), text="what <image>")["input_ids"][0]
    assert processor.tokenizer.convert_ids_to_tokens(input_ids) == [
        "what",
        "<im_start>",
        "<image>",
        "<image>",
        "<im_end>",
    ]


def test_construction_names_what_is_missing():
    with pytest.raises(ValueError, match="needs an `image_processor` and a `tokenizer`"):
        LoGraMedProcessor()
    with pytest.raises(ValueError, match="does not know the token <picture>"):
        tiny_processor(image_token="<picture>")
    with pytest.raises(ValueError, match="Images need `num_image_tokens`"):
        tiny_processor(num_image_tokens=None)(images=gray_image(), text="<image>")


def test_decoding_drops_the_image_tokens(processor):
    input_ids = processor(images=gray_image(), text="<image> what organ")["input_ids"]
    assert processor.batch_decode(input_ids, skip_special_tokens=True) == ["what organ"]
    assert processor.decode(input_ids[0], skip_special_tokens=True) == "what organ"
    assert processor.post_process_image_text_to_text(torch.tensor(input_ids)) == ["what organ"]
    assert processor.post_process_image_text_to_text(torch.tensor(input_ids[0])) == ["what organ"]


def test_model_input_names_have_no_token_types(processor):
    assert sorted(processor.model_input_names) == ["attention_mask", "input_ids", "pixel_values"]


# ---- what servers ask ----

SERVED_TEXTS = ["<image> what", "lung <image> left <image>", "what organ is shown"]


def stock_llava_processor(tokenizer):
    """transformers' own, which makes 4 tokens of an image too."""
    image_processor = LlavaImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return LlavaProcessor(image_processor, tokenizer, patch_size=4, vision_feature_select_strategy="full")


def test_every_image_makes_the_same_number_of_tokens(processor):
    counts = processor._get_num_multimodal_tokens(image_sizes=[(4, 4), (100, 7)])
    assert counts["num_image_tokens"] == [4, 4]
    stock = stock_llava_processor(processor.tokenizer)._get_num_multimodal_tokens(image_sizes=[(4, 4), (100, 7)])
    assert (counts["num_image_tokens"], counts["num_image_patches"]) == (
        stock["num_image_tokens"],
        stock["num_image_patches"],
    )


@pytest.mark.parametrize("return_tensors", [None, "pt"])
@pytest.mark.parametrize("arguments", [{"padding": True}, {"padding": "max_length", "max_length": 20}, {}])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_token_types_are_those_of_transformers_own_llava(processor, padding_side, arguments, return_tensors):
    texts = SERVED_TEXTS if arguments else SERVED_TEXTS[:1]  # without padding, tensors have one row
    arguments = {**arguments, "padding_side": padding_side, "return_tensors": return_tensors}
    arguments |= {"images": [gray_image()] * (3 if len(texts) == 3 else 1), "text": texts}
    ours, stock = (
        served(**arguments, return_mm_token_type_ids=True)
        for served in (processor, stock_llava_processor(processor.tokenizer))
    )
    assert "mm_token_type_ids" not in processor(**arguments)
    for name in ("input_ids", "mm_token_type_ids"):
        assert type(ours[name]) is type(stock[name])
        rows, stock_rows = (
            torch.tensor(each[name]) if return_tensors is None else each[name] for each in (ours, stock)
        )
        assert rows.dtype == stock_rows.dtype == torch.int64
        assert torch.equal(rows, stock_rows)
    assert rows.sum(dim=1).tolist() == [4, 8, 0][: len(texts)]


def test_token_types_may_be_asked_for_wherever_arguments_are_given(processor, conversation, monkeypatch):
    warnings = []
    monkeypatch.setattr(processing_module.logger, "warning_once", warnings.append)
    wanted = {"return_mm_token_type_ids": True}
    for arguments in (wanted, {"text_kwargs": wanted}, {"common_kwargs": wanted}):
        inputs = processor(images=gray_image(), text="lung <image>", **arguments)
        assert inputs["mm_token_type_ids"] == [[0, 1, 1, 1, 1]]
    tokenized = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    for arguments in (wanted, {"processor_kwargs": wanted}, {"processor_kwargs": {"text_kwargs": wanted}}):
        inputs = processor.apply_chat_template(conversation, **tokenized, **arguments)
        assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == processor.image_token_id).long())
    assert processor(text="lung", **wanted)["mm_token_type_ids"] == [[0]]
    assert "mm_token_type_ids" not in processor(images=gray_image(), **wanted)
    assert warnings == []


def test_tokens_around_an_image_are_no_image_tokens_for_servers_either():
    processor = wrapping_processor()
    inputs = processor(images=gray_image(), text="what <image>", return_mm_token_type_ids=True)
    assert inputs["mm_token_type_ids"] == [[0, 0, 1, 1, 0]]
    assert processor._get_num_multimodal_tokens(image_sizes=[(4, 6)])["num_image_tokens"] == [2]


def test_replacements_are_those_of_transformers_own_llava(processor):
    arguments = {"images": [gray_image()] * 3, "padding": True, "return_text_replacement_offsets": True}
    ours, stock = (
        served(text=list(SERVED_TEXTS), return_tensors="pt", **arguments)["text_replacement_offsets"]
        for served in (processor, stock_llava_processor(processor.tokenizer))
    )
    assert ours == stock
    assert [len(entries) for entries in ours] == [1, 2, 0]
    in_text_kwargs = {"return_text_replacement_offsets": True}
    assert processor(text="lung", text_kwargs=in_text_kwargs)["text_replacement_offsets"] == [[]]


def test_replacements_survive_the_assistant_mask(processor, conversation):
    inputs = processor.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        return_text_replacement_offsets=True,
    )
    assert inputs["assistant_masks"].shape == inputs["input_ids"].shape
    assert len(inputs["text_replacement_offsets"][0]) == 1


def replace_as_vllm_does(processor, text, images):
    """
    Token ids of a prompt, and which of them stand for features of an image, as the Transformers backend of vLLM finds
    them: it tokenizes the prompt itself, replaces each image token by the tokens of a replacement, and takes the most
    frequent one of these for that of the features.
    """
    tokenizer = processor.tokenizer
    inputs = processor(images=images, text=text, return_tensors="pt", return_text_replacement_offsets=True)
    replacements = iter(inputs["text_replacement_offsets"][0])
    (target,) = tokenizer.encode(processor.image_token, add_special_tokens=False)
    token_ids, is_feature = [], []
    for token_id in tokenizer.encode(text):
        new = [token_id]
        if token_id == target:
            new = tokenizer.encode(next(replacements)["replacement"], add_special_tokens=False)
        (most_frequent, _), *_ = collections.Counter(new).most_common()
        token_ids += new
        is_feature += [int(token_id == target and each == most_frequent) for each in new]
    assert next(replacements, None) is None
    return token_ids, is_feature


@pytest.mark.parametrize("make_processor", [tiny_processor, wrapping_processor])
@pytest.mark.parametrize("text", ["<image> what", "lung <image> left <image> organ", "<image><image>"])
def test_what_vllm_makes_of_the_replacements_is_what_the_processor_makes(make_processor, text):
    processor = make_processor()
    images = [gray_image()] * text.count("<image>")
    token_ids, is_feature = replace_as_vllm_does(processor, text, images)
    inputs = processor(images=images, text=text, return_mm_token_type_ids=True, return_text_replacement_offsets=True)
    assert token_ids == inputs["input_ids"][0]
    assert is_feature == inputs["mm_token_type_ids"][0]
    counts = processor._get_num_multimodal_tokens(image_sizes=[(4, 6)] * len(images))
    assert sum(is_feature) == sum(counts["num_image_tokens"])
    assert counts["num_image_patches"] == [1] * len(images)
    expanded, end = "", 0
    for entry in inputs["text_replacement_offsets"][0]:
        expanded += text[end : entry["span"][0]] + entry["replacement"]
        end = entry["span"][1]
        assert text[slice(*entry["span"])] == entry["text"] == "<image>"
        assert expanded[slice(*entry["new_span"])] == entry["replacement"]
    assert processor.tokenizer(expanded + text[end:])["input_ids"] == token_ids


# ---- stop strings ----


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("lung\n### Human: what", "lung"),
        ("lung ", "lung"),
        ("lung\n##", "lung"),
        ("lung\n#", "lung"),
        ("lung\n## ", "lung\n##"),
        ("# left ## right", "# left ## right"),
        ("## left\n###", "## left"),
        ("left ####", "left"),
        ("###", ""),
        ("", ""),
    ],
)
def test_an_answer_is_cut_at_the_stop_string_or_at_its_beginning(text, answer):
    assert cut_at_stop_string(text, "###") == answer


def test_decoded_answers_end_before_the_stop_string():
    words = ["lung ### Human", "left lung", "right ###"]
    processor, stopping = tiny_processor(), tiny_processor(stop_string="###")
    token_ids = processor(text=words)["input_ids"]
    assert processor.post_process_image_text_to_text(token_ids) == words
    assert stopping.post_process_image_text_to_text(token_ids) == ["lung", "left lung", "right"]
    assert stopping.post_process_image_text_to_text(torch.tensor(token_ids[0])) == ["lung"]
    assert stopping.batch_decode(token_ids) == words
    with pytest.raises(ValueError, match="`stop_string` must have at least one character"):
        tiny_processor(stop_string="")


def test_a_folder_without_a_stop_string_is_as_it_was_and_one_with_it_keeps_it(tmp_path):
    tiny_processor().save_pretrained(tmp_path / "without")
    assert "stop_string" not in (tmp_path / "without" / "processor_config.json").read_text()
    assert LoGraMedProcessor.from_pretrained(tmp_path / "without").stop_string is None
    tiny_processor(stop_string="###").save_pretrained(tmp_path / "with")
    assert LoGraMedProcessor.from_pretrained(tmp_path / "with").stop_string == "###"
    assert LoGraMedProcessor.from_pretrained(tmp_path / "without", stop_string="END").stop_string == "END"


# ---- templates, byte for byte ----

MULTI_TURN = [
    {"role": "system", "content": "Be brief."},
    user(text_part("Compare"), image_part(), text_part("with"), image_part()),
    assistant("Same lung."),
    {"role": "user", "content": "Which side?"},
    {"role": "assistant", "content": "Left."},
]
ONE_QUESTION = [user(image_part(), text_part("What organ is shown?"))]


@pytest.mark.parametrize(
    ("template", "messages", "add_generation_prompt", "expected"),
    [
        (
            "default",
            MULTI_TURN,
            False,
            "<s>Be brief.\nUSER: Compare\n<image>\nwith\n<image> ASSISTANT: Same lung.</s>"
            "USER: Which side? ASSISTANT: Left.</s>",
        ),
        ("default", ONE_QUESTION, True, "<s>USER: <image>\nWhat organ is shown? ASSISTANT:"),
        ("default", ONE_QUESTION, False, "<s>USER: <image>\nWhat organ is shown? "),
        (
            "llava_med_v0",
            [*ONE_QUESTION, assistant("A lung.")],
            False,
            SYSTEM + "\n\n### Human: <image>\nWhat organ is shown?\n### Assistant: A lung.\n### ",
        ),
        (
            "llava_med_v0",
            MULTI_TURN,
            False,
            "Be brief.\n\n### Human: Compare\n<image>\nwith\n<image>\n### Assistant: Same lung.\n### Human: "
            "Which side?\n### Assistant: Left.\n### ",
        ),
        (
            "llava_med_v0",
            ONE_QUESTION,
            True,
            SYSTEM + "\n\n### Human: <image>\nWhat organ is shown?\n### Assistant:",
        ),
        (
            "llava_med_v0_eval",
            ONE_QUESTION,
            True,
            SYSTEM + "###Human: Hi!###Assistant: Hi there!  How can I help you today?\n"
            "###Human: What organ is shown?\n<image>###",
        ),
        (
            "llava_med_v0_eval",
            [*ONE_QUESTION, assistant("A lung."), {"role": "user", "content": "Which side?"}],
            False,
            SYSTEM + "###Human: Hi!###Assistant: Hi there!  How can I help you today?\n"
            "###Human: What organ is shown?\n<image>###Assistant: A lung.###Human: Which side?###",
        ),
        (
            "llava_med_v1_5",
            [*ONE_QUESTION, assistant("A lung."), {"role": "user", "content": "Which side?"}],
            True,
            "<s>[INST] <image>\nWhat organ is shown? [/INST] A lung. </s>[INST] Which side? [/INST]",
        ),
        (
            "llava_med_v1_5",
            MULTI_TURN,
            False,
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nCompare\n<image>\nwith\n<image> [/INST] Same lung. </s>"
            "[INST] Which side? [/INST] Left. </s>",
        ),
        (
            "llava_v1",
            [*ONE_QUESTION, assistant("A lung."), {"role": "user", "content": "Which side?"}],
            True,
            "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: <image>\nWhat organ is shown? ASSISTANT: "
            "A lung.</s>USER: Which side? ASSISTANT:",
        ),
        (
            "llava_v1",
            MULTI_TURN,
            False,
            "<s>Be brief. USER: Compare\n<image>\nwith\n<image> ASSISTANT: Same lung.</s>USER: Which side? "
            "ASSISTANT: Left.</s>",
        ),
    ],
)
def test_templates_write_exactly_this(processor, template, messages, add_generation_prompt, expected):
    rendered = processor.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=add_generation_prompt
    )
    assert rendered == expected


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_a_prompt_is_the_beginning_of_the_training_text(processor, template):
    prompt = processor.apply_chat_template(ONE_QUESTION, chat_template=template, add_generation_prompt=True)
    trained = processor.apply_chat_template([*ONE_QUESTION, assistant("A lung.")], chat_template=template)
    assert trained.startswith(prompt)
    assert "A lung." in trained.removeprefix(prompt)


@pytest.mark.parametrize(
    "content",
    [
        [image_part(), text_part("\nWhat? ")],
        [{"type": "image", "text": None}, {"type": "text", "text": "What?", "image": None}],
        [text_part(""), image_part(), text_part(None), {"type": "text"}, text_part(" What?")],
    ],
)
def test_line_breaks_are_not_doubled_and_null_is_no_text(processor, content):
    rendered = processor.apply_chat_template([{"role": "user", "content": content, "name": None}])
    assert rendered == "<s>USER: <image>\nWhat? "


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_unknown_roles_and_parts_are_refused(processor, template):
    with pytest.raises(Exception, match="not tool"):
        processor.apply_chat_template([user(text_part("a")), {"role": "tool", "content": "b"}], chat_template=template)
    with pytest.raises(Exception, match="not video"):
        processor.apply_chat_template([user({"type": "video"})], chat_template=template)


def test_the_final_message_can_be_left_open(processor):
    messages = [*ONE_QUESTION, assistant("The lung")]
    rendered = processor.apply_chat_template(messages, continue_final_message=True)
    assert rendered == "<s>USER: <image>\nWhat organ is shown? ASSISTANT: The lung"
    with pytest.raises(ValueError, match="cannot be combined"):
        processor.apply_chat_template(messages, continue_final_message=True, add_generation_prompt=True)


def test_a_template_may_be_given_as_text_or_own_one_be_named():
    processor = tiny_processor(chat_template={"default": "own", "other": "{{ word }}{{ image_token }}"})
    assert processor.apply_chat_template(ONE_QUESTION) == "own"
    assert processor.apply_chat_template(ONE_QUESTION, chat_template="other", word="lung") == "lung<image>"
    assert processor.apply_chat_template(ONE_QUESTION, chat_template="{{ messages | length }}") == "1"
    assert "### Human" in processor.apply_chat_template(ONE_QUESTION, chat_template="llava_med_v0")
    assert tiny_processor(chat_template="own").apply_chat_template(ONE_QUESTION) == "own"


def test_a_tokenizer_without_start_and_end_tokens_ends_turns_with_a_line_break():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    processor = LoGraMedProcessor(LoGraMedImageProcessor(size=8), tokenizer, num_image_tokens=4)
    rendered = processor.apply_chat_template([user(text_part("What?")), assistant("A lung.")] * 2)
    assert rendered == "USER: What? ASSISTANT: A lung.\n" * 2


# ---- conversations as model inputs ----


def test_a_conversation_becomes_model_inputs(processor, conversation):
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    text = processor.apply_chat_template(conversation)
    expected = processor(images=gray_image(), text=text, add_special_tokens=False, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    for name in inputs:
        assert torch.equal(inputs[name], expected[name])
    assert processor.apply_chat_template(conversation, tokenize=True) == inputs["input_ids"].tolist()


def test_images_may_come_in_any_form(processor, tmp_path):
    values = np.full((4, 6), 100, dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(values).save(path)
    encoded = base64.b64encode(path.read_bytes()).decode()
    address = "data:image/png;base64," + encoded
    parts = [
        {"type": "image", "image": gray_image()},
        {"type": "image", "image": values},
        {"type": "image", "image": torch.from_numpy(values)},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": address, "path": None},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": address}},
    ]
    for part in parts:
        messages = [user(part, text_part("what"))]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert np.array_equal(inputs["pixel_values"], processor(images=gray_image())["pixel_values"])
        assert messages == [user(part, text_part("what"))]


def test_images_may_be_given_beside_the_messages(processor):
    messages = [user(image_part(), image_part(), text_part("what"))]
    images = [gray_image(10), gray_image(200)]
    beside = processor.apply_chat_template(messages, images=images, tokenize=True, return_dict=True)
    within = processor.apply_chat_template(
        [user(image_part(images[0]), image_part(images[1]), text_part("what"))], tokenize=True, return_dict=True
    )
    assert beside["input_ids"] == within["input_ids"]
    assert np.array_equal(beside["pixel_values"], within["pixel_values"])
    with pytest.raises(ValueError, match="in the messages or as `images`, not both"):
        processor.apply_chat_template([user(image_part(images[0]))], images=images, tokenize=True)
    with pytest.raises(ValueError, match=r"2 image placeholders, but .* 0 images"):
        processor.apply_chat_template(messages, tokenize=True)


def test_one_by_one_equals_batched_but_for_the_padding(processor, conversation):
    conversations = [conversation, [user(text_part("what")), assistant("left.")], [user(image_part(gray_image(7)))]]
    batched = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt", padding=True, add_generation_prompt=True
    )
    assert batched["pixel_values"].shape == (2, 3, 8, 8)
    for row, messages in enumerate(conversations):
        alone = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
        assert batched["input_ids"][row][batched["attention_mask"][row] == 1].tolist() == alone[0]


def test_a_word_placeholder_in_a_question_is_not_taken_for_an_image(processor):
    with pytest.raises(ValueError, match=r"`text\[0\]` has 1 image placeholders, but `images\[0\]` holds 0 images"):
        processor.apply_chat_template([user(text_part("what <image> is this"))], tokenize=True)


def test_processor_arguments_may_stand_alone_or_together(processor, conversation):
    alone = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, padding="max_length", max_length=30, padding_side="right"
    )
    together = processor.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding": "max_length", "max_length": 30, "padding_side": "right"},
    )
    assert alone["input_ids"] == together["input_ids"]
    assert alone["attention_mask"][0][-1] == 0


def test_conversations_survive_a_round_trip_through_datasets(processor):
    datasets = pytest.importorskip("datasets")
    rows = [{"messages": [*ONE_QUESTION, assistant("lung.")]}, {"messages": [user(text_part("what"))]}]
    for row, original in zip(datasets.Dataset.from_list(rows), rows, strict=True):
        assert processor.apply_chat_template(row["messages"]) == processor.apply_chat_template(original["messages"])


# ---- assistant mask ----


def masked_texts(processor, inputs, row):
    """The texts of the runs of ones in the assistant mask."""
    texts, run = [], []
    for token_id, masked in zip([*inputs["input_ids"][row], 0], [*inputs["assistant_masks"][row], 0], strict=True):
        if masked:
            run.append(int(token_id))
        elif run:
            texts.append(" ".join(processor.tokenizer.convert_ids_to_tokens(run)))
            run = []
    return texts


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_assistant_mask_marks_answers_and_their_end_behind_images(processor, conversation, padding_side):
    longer = [*conversation, user(text_part("compare"), image_part(gray_image(9))), assistant("left lung")]
    inputs = processor.apply_chat_template(
        [conversation, longer],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        padding=True,
        padding_side=padding_side,
    )
    assert "offset_mapping" not in inputs
    assert inputs["assistant_masks"].shape == inputs["input_ids"].shape
    assert masked_texts(processor, inputs, 0) == ["lung . </s>"]
    assert masked_texts(processor, inputs, 1) == ["lung . </s>", "left lung </s>"]


@pytest.mark.parametrize(
    ("template", "expected"), [("llava_med_v0", "lung ###"), ("llava_med_v0_eval", "Assistant : lung ###")]
)
def test_the_assistant_mask_includes_the_hashes_that_end_a_turn(processor, template, expected):
    inputs = processor.apply_chat_template(
        [user(image_part(gray_image()), text_part("what")), assistant("lung")],
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert masked_texts(processor, inputs, 0) == [expected]


def test_the_assistant_mask_of_a_truncated_conversation_is_cut_too(processor, conversation):
    whole, cut = (
        processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **arguments
        )
        for arguments in ({}, {"truncation": True, "max_length": 15, "return_offsets_mapping": True})
    )
    assert cut["assistant_masks"][0] == whole["assistant_masks"][0][:15]
    assert "offset_mapping" in cut
    assert sum(cut["assistant_masks"][0]) == 1


# ---- files and the two lines of transformers ----


def byte_level_tokenizer(add_prefix_space):
    """A trained tokenizer of the kind of GPT-2 and Qwen, without a token that begins a sequence."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([TRAINED_TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def metaspace_tokenizer():
    """A trained tokenizer of the kind of Llama and Mistral, which begins sequences with `<s>`."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"])
    backend.train_from_iterator([TRAINED_TEXT], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def tokenizers_by_name():
    by_name = {
        "words": tiny_tokenizer(),
        "byte_level": byte_level_tokenizer(add_prefix_space=False),
        "byte_level_prefix_space": byte_level_tokenizer(add_prefix_space=True),
        "metaspace": metaspace_tokenizer(),
    }
    for tokenizer in by_name.values():
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<im_start>"]})
    return by_name


# Runs in this process and, as text, in processes that have no `logramed`.
OUTPUTS_CODE = """
import numpy as np


def outputs_of(processor, tokenizer, image_processor):
    image = np.random.default_rng(0).integers(0, 65536, (40, 30)).astype(np.uint16)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What organ?"}]},
        {"role": "assistant", "content": "lung."},
    ]
    outputs = {"templates": processor.chat_template, "padding_side": processor.tokenizer.padding_side}
    for name in ("default", "llava_med_v0", "llava_med_v0_eval"):
        inputs = processor.apply_chat_template(
            [messages, [{"role": "user", "content": "Yes?"}]],
            chat_template=name,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            return_mm_token_type_ids=True,
            padding=True,
        )
        outputs[name] = {key: value.tolist() for key, value in inputs.items()}
        outputs[name]["text"] = processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    outputs["tokenizer"] = {key: list(value) for key, value in tokenizer("Yes, lung<image> dog .").items()}
    outputs["stop_string"] = processor.stop_string
    answers = tokenizer(["Yes###no", "Yes##", "no"])["input_ids"]
    outputs["answers"] = processor.post_process_image_text_to_text(answers)
    outputs["image_processor"] = image_processor(image)["pixel_values"].tolist()
    return outputs
"""
LOADING_CODE = """
import json, sys
from pathlib import Path

# What is None there cannot be imported.
sys.modules["logramed"] = sys.modules["torchvision"] = None
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

outputs = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    outputs[folder.name] = outputs_of(processor, tokenizer, image_processor)
    processor.save_pretrained(Path(sys.argv[2]) / folder.name)
Path(sys.argv[3]).write_text(json.dumps(outputs))
"""


def load_in_fresh_process(python, source, destination, home):
    """The outputs of every folder in `source`, loaded by another process that saves them to `destination`."""
    result_file = home / "outputs.json"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [python, "-c", OUTPUTS_CODE + LOADING_CODE, str(source), str(destination), str(result_file)],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result_file.read_text())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with one saved processor for each tokenizer, and what the processors give."""
    scope = {}
    exec(OUTPUTS_CODE, scope)
    folder, outputs = tmp_path_factory.mktemp("saved"), {}
    for name, tokenizer in tokenizers_by_name().items():
        options = {"num_image_tokens": 3, "stop_string": "###" if name == "byte_level" else None}
        processor = LoGraMedProcessor(LoGraMedImageProcessor(size=8), tokenizer, **options)
        outputs[name] = scope["outputs_of"](processor, tokenizer, processor.image_processor)
        processor.save_pretrained(folder / name)
    return folder, json.loads(json.dumps(outputs))


def test_a_fresh_process_without_logramed_gives_the_same(saved, tmp_path):
    folder, outputs = saved
    assert load_in_fresh_process(sys.executable, folder, tmp_path / "again", tmp_path) == outputs
    assert outputs["byte_level"]["answers"] == ["Yes", "Yes", "no"]
    for name in outputs:
        before = {path.name for path in (folder / name).rglob("*")}
        after = {path.name for path in (tmp_path / "again" / name).rglob("*")}
        model_code = {name for name in before - after if name.endswith("_logramed.py")}
        assert before - after == model_code
        assert not model_code & {
            "processing_logramed.py",
            "image_processing_logramed.py",
            "chat_templates_logramed.py",
        }


@pytest.fixture
def transformers_4_python():
    if "LOGRAMED_TRANSFORMERS_4_PYTHON" not in os.environ:
        pytest.skip("LOGRAMED_TRANSFORMERS_4_PYTHON does not name a python with transformers 4.57")
    return os.environ["LOGRAMED_TRANSFORMERS_4_PYTHON"]


def test_transformers_4_gives_the_same_and_its_folders_are_read_back(saved, tmp_path, transformers_4_python):
    folder, outputs = saved
    homes = [tmp_path / "home_4", tmp_path / "home_5"]
    for home in homes:
        home.mkdir()
    assert load_in_fresh_process(transformers_4_python, folder, tmp_path / "by_4", homes[0]) == outputs
    assert load_in_fresh_process(sys.executable, tmp_path / "by_4", tmp_path / "by_5", homes[1]) == outputs


def test_the_last_call_leaves_no_trace_in_the_saved_tokenizer(processor, tmp_path):
    processor.save_pretrained(tmp_path / "before")
    processor(text=["what", "what organ is"], padding=True, truncation=True, max_length=2)
    processor.save_pretrained(tmp_path / "after")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "after" / name).read_text() == (tmp_path / "before" / name).read_text()


def test_settings_and_templates_survive_save_and_load(tmp_path):
    template = {"default": "own {{ messages | length }}", "other": "other"}
    tiny_processor(num_image_tokens=7, chat_template=template).save_pretrained(tmp_path)
    loaded = LoGraMedProcessor.from_pretrained(tmp_path)
    assert loaded.num_image_tokens == 7
    assert loaded.chat_template == template
    assert (tmp_path / "additional_chat_templates" / "other.jinja").read_text() == "other"
    single = tmp_path / "single"
    tiny_processor(chat_template="only").save_pretrained(single)
    assert LoGraMedProcessor.from_pretrained(single).chat_template == "only"


def test_templates_of_the_code_need_no_files_and_are_known_after_loading(tmp_path):
    tiny_processor().save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "additional_chat_templates").exists()
    assert LoGraMedProcessor.from_pretrained(tmp_path / "plain").chat_template == CHAT_TEMPLATES
    tiny_processor(chat_template={**CHAT_TEMPLATES, "default": "own"}).save_pretrained(tmp_path / "own")
    assert LoGraMedProcessor.from_pretrained(tmp_path / "own").chat_template == "own"


def test_pushing_uploads_just_the_files_of_the_processor(processor, tmp_path, monkeypatch):
    uploads = []

    class RecordedApi:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            return type("Repository", (), {"repo_id": f"someone/{repo_id}"})

        def upload_folder(self, **arguments):
            uploads.append({"token": self.token, **arguments})

    monkeypatch.setattr(processing_module, "HfApi", RecordedApi)
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"large")
    processor.save_pretrained(folder, push_to_hub=True, token="secret", commit_message="First")
    (upload,) = uploads
    assert (upload["repo_id"], upload["token"]) == ("someone/my-model", "secret")
    assert upload["commit_message"] == "First"
    expected = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"model.safetensors"}
    assert set(upload["allow_patterns"]) == expected
    assert "chat_template.jinja" in expected
