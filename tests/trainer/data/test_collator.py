import io
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from logramed import LoGraMedImageProcessor, LoGraMedProcessor
from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.data import collator as collator_module
from logramed.trainer.data.collator import LoGraMedDataCollator, join_answers, open_image, split_sentences
from tests.tiny import tiny_processor, tiny_tokenizer


NUM_IMAGE_TOKENS = 4


def plain_collator(processor, **values):
    return LoGraMedDataCollator(processor, alignment=False, **values)


def message(role, *parts):
    return {
        "role": role,
        "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts],
    }


def training_row(row_id, images, *messages, extended=...):
    num_answers = sum(entry["role"] == "assistant" for entry in messages)
    extended = ["yes, left lung."] * num_answers if extended is ... else extended
    return {"id": row_id, "images": images, "messages": list(messages), "extended_answers": extended}


@pytest.fixture
def image_path(tmp_path):
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


@pytest.fixture
def rows(image_path):
    other = Image.new("RGB", (8, 8), (0, 0, 255))
    return [
        training_row(
            "two turns",
            [image_path],
            message("user", None, "what organ is shown?"),
            message("assistant", "left lung"),
            message("user", "a mass?"),
            message("assistant", "no"),
        ),
        training_row(
            "two images",
            [image_path, other],
            message("user", "compare", None, "with", None),
            message("assistant", "same"),
        ),
        training_row(
            "text", [], message("system", "be brief"), message("user", "what is CT?"), message("assistant", "X ray")
        ),
    ]


def test_labels_are_the_answers_and_their_ends_in_a_case_worked_by_hand(rows):
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    batch = plain_collator(processor)(rows)
    expected = [
        ("<s> USER : <image> <image> <image> <image> what organ is shown ? ASSISTANT :", "left lung </s>"),
        ("USER : a mass ? ASSISTANT :", "no </s>"),
    ]
    tokens, labels = [], []
    for prompt, answer in expected:
        tokens += (prompt + " " + answer).split()
        labels += [-100] * len(prompt.split()) + processor.tokenizer.convert_tokens_to_ids(answer.split())
    length = len(tokens)
    assert batch["input_ids"].shape[1] == length
    assert processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()) == tokens
    assert batch["labels"][0].tolist() == labels
    assert batch["attention_mask"][0].tolist() == [1] * length


def kept_text(processor, batch, index):
    """The labeled tokens of a sample, a bar between those that are not neighbours."""
    labels = batch["labels"][index].tolist()
    tokens = ["|" if label == -100 else processor.tokenizer.convert_ids_to_tokens(label) for label in labels]
    return re.sub(r"( \|)+", " |", " ".join(tokens)).strip("| ")


def test_rows_of_several_images_and_of_text_alone_share_a_batch(rows):
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    batch = plain_collator(processor)(rows)
    assert (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [4, 8, 0]
    assert not ((batch["labels"] != -100) & (batch["input_ids"] == processor.image_token_id)).any()
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    red, red_again, blue = batch["pixel_values"].mean(dim=(2, 3))
    assert torch.equal(red, red_again)
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert [kept_text(processor, batch, index) for index in range(3)] == [
        "left lung </s> | no </s>",
        "same </s>",
        "X ray </s>",
    ]


def test_padding_is_on_the_right_whatever_side_the_tokenizer_pads(rows):
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    collator = plain_collator(processor)
    batch = collator(rows)
    assert processor.tokenizer.padding_side == "left"
    for index, row in enumerate(rows):
        alone = collator([row])
        length = alone["input_ids"].shape[1]
        for name, padding in (
            ("input_ids", processor.tokenizer.pad_token_id),
            ("labels", -100),
            ("attention_mask", 0),
        ):
            assert torch.equal(batch[name][index, :length], alone[name][0])
            assert (batch[name][index, length:] == padding).all()


def test_a_batch_without_images_has_no_pixel_values(rows):
    batch = plain_collator(tiny_processor(NUM_IMAGE_TOKENS))(rows[2:])
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}


def test_rows_from_a_dataset_with_its_nulls_give_the_same_batch(rows):
    collator = plain_collator(tiny_processor(NUM_IMAGE_TOKENS))
    rows = [rows[0], rows[2]]
    dataset = Dataset.from_list(rows)
    assert dataset[0]["messages"][0]["content"][0] == {"type": "image", "text": None}
    expected, got = collator(rows), collator([dataset[0], dataset[1]])
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def template_of(before, after, prompt="", text="{{ part['text'] }}"):
    """A chat template: `before` and `after` each message, `prompt` as generation prompt, `text` for a text part."""
    parts = (
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}" + text + "{% endif %}"
    )
    messages = "{% for message in messages %}" + before + parts + "{% endfor %}" + after + "{% endfor %}"
    return messages + "{% if add_generation_prompt %}" + prompt + "{% endif %}"


ASSISTANT_END = "{% if message['role'] == 'assistant' %} </s>{% endif %} "
CHATML = template_of("<|im_start|>{{ message['role'] }}\n", "<|im_end|>\n", "<|im_start|>assistant\n")
TRIMMING = template_of("[{{ message['role'] }}] ", ASSISTANT_END, "[assistant] ", text="{{ part['text'] | trim }}")
WITHOUT_GENERATION_PROMPT = template_of("{{ message['role'] }} : ", ASSISTANT_END)
# As Qwen 3 does: something stands between the generation prompt and the last answer, and the model has to write it.
THINKING = template_of(
    "{{ message['role'] }} : {% if loop.last and message['role'] == 'assistant' %}(none) {% endif %}",
    ASSISTANT_END,
    "assistant : ",
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "left lung <|im_end|> | no <|im_end|>"),
        (TRIMMING, "left lung </s> | no </s>"),
        (WITHOUT_GENERATION_PROMPT, "left lung </s> | no </s>"),
        (THINKING, "left lung </s> | ( none ) no </s>"),
        ("llava_med_v0", "left lung ### | no ###"),
    ],
    ids=["chatml", "trimming", "no generation prompt", "thinking", "llava_med_v0"],
)
def test_answers_are_found_in_any_template(rows, template, expected):
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    tokenizer = processor.tokenizer
    tokenizer.add_tokens(["###", "system", "none", "user"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|im_start|>", "<|im_end|>"]})
    row = rows[0]
    row["messages"][1]["content"][0]["text"] = " left lung\n"
    batch = plain_collator(processor, chat_template=template)([row])
    assert kept_text(processor, batch, 0) == expected


def test_an_answer_that_also_stands_in_the_prompt_is_labeled_once(image_path):
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    row = training_row(
        "a",
        [image_path],
        message("user", None, "yes or no? yes"),
        message("assistant", "yes"),
        message("user", "yes"),
        message("assistant", "a"),
    )
    batch = plain_collator(processor)([row])
    assert kept_text(processor, batch, 0) == "yes </s> | a </s>"
    assert (batch["labels"] != -100).sum() == 4


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (template_of("<image>", ""), r"Row 'two turns': its text has 5 image placeholder\(s\) <image>, but it has 1"),
        (template_of("", "", text="{{ part['text'] + part['text'] }}"), "'two turns'.* one is written 2 times"),
        (template_of("", "", text="{{ part['text'] | upper }}"), "'two turns'.*changes the text"),
    ],
)
def test_templates_in_which_answers_cannot_be_found_are_refused(rows, template, reason):
    with pytest.raises(ValueError, match=reason):
        plain_collator(tiny_processor(NUM_IMAGE_TOKENS), chat_template=template)(rows[:1])


def test_tokens_around_images_move_no_label(rows):
    tokenizer = tiny_tokenizer(["<im_start>", "<im_end>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<im_start>", "<im_end>"]})
    plain = LoGraMedProcessor(LoGraMedImageProcessor(size=8), tokenizer, num_image_tokens=4)
    expected = plain_collator(plain)(rows)
    processor = LoGraMedProcessor(
        LoGraMedImageProcessor(size=8),
        tokenizer,
        num_image_tokens=4,
        image_start_token="<im_start>",
        image_end_token="<im_end>",
    )
    batch = plain_collator(processor)(rows)
    assert batch["input_ids"].shape[1] == expected["input_ids"].shape[1] + 2
    for index in range(3):
        assert kept_text(processor, batch, index) == kept_text(plain, expected, index)


def test_transformers_own_llava_processor_works_too(rows):
    size = {"height": 8, "width": 8}
    image_processor = LlavaImageProcessorPil(size={"shortest_edge": 8}, crop_size=size)
    tokenizer = tiny_tokenizer()
    processor = LlavaProcessor(
        image_processor, tokenizer, patch_size=4, vision_feature_select_strategy="full", chat_template=TRIMMING
    )
    batch = plain_collator(processor)(rows)
    assert (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [4, 8, 0]
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert kept_text(processor, batch, 0) == "left lung </s> | no </s>"


@pytest.mark.parametrize("adds_end", [False, True])
def test_special_tokens_of_the_tokenizer_are_added_once_and_an_end_is_learned(rows, adds_end):
    """The template writes no `<s>`, so the tokenizer's own comes first, in training as in generation."""
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if adds_end else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    template = template_of("[{{ message['role'] }}] ", " . ", "[assistant] ")
    batch = plain_collator(processor, chat_template=template)(rows[:1])
    assert (batch["input_ids"][0] == 1).sum() == 1
    assert kept_text(processor, batch, 0) == "left lung . | no ." + (" </s>" if adds_end else "")


def test_a_template_that_ends_no_answer_is_warned_about(rows, monkeypatch):
    warnings = []
    monkeypatch.setattr(collator_module.logger, "warning_once", warnings.append)
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    plain_collator(processor)(rows)
    assert warnings == []
    plain_collator(processor, chat_template=template_of("[{{ message['role'] }}] ", ""))(rows[:1])
    assert "does not learn to stop" in warnings[0]


def test_truncation_drops_the_end_but_never_a_part_of_an_image(rows):
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    whole = plain_collator(processor)(rows[:1])
    cut = plain_collator(processor, max_length=20)(rows[:1])
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, :20])
    assert torch.equal(cut["labels"], whole["labels"][:, :20])
    assert kept_text(processor, cut, 0) == "left lung </s>"
    with pytest.raises(ValueError, match=r"'two turns' needs 7 tokens to keep its 1 image.*`max_length` is 6"):
        plain_collator(processor, max_length=6)(rows[:1])
    with pytest.raises(ValueError, match="'two turns' has its first answer at token 15, beyond `max_length` 14"):
        plain_collator(processor, max_length=14)(rows[:1])


@pytest.mark.parametrize(
    ("answers", "joined"),
    [
        (["yes", "CT"], "yes. CT"),
        (["Left.\nUpper lobe.", "No"], "Left. Upper lobe. No"),
        (["Really?", "Yes!", "So."], "Really? Yes! So."),
        ([" a \r\n\n b "], "a b"),
    ],
)
def test_joined_answers_keep_words_apart_and_full_stops_single(answers, joined):
    assert join_answers(answers) == joined


def test_a_text_encoder_that_is_asked_for_must_be_given():
    with pytest.raises(ValueError, match="`alignment_text_encoder` is 'some/encoder', but the collator has no"):
        LoGraMedDataCollator(
            tiny_processor(), config=AlignmentConfig(alignment_preset="paper", alignment_text_encoder="some/encoder")
        )


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("A nodule of 1.5 cm. None elsewhere.", ["A nodule of 1.5 cm.", "None elsewhere."]),
        ("Dense organs, e.g. the liver, i.e. bright. End.", ["Dense organs, e.g. the liver, i.e. bright.", "End."]),
        ("Seen by Dr. Lee (cf. Fig. 2). Left vs. right", ["Seen by Dr. Lee (cf. Fig. 2).", "Left vs. right"]),
        ('No. "It is normal." So it is...  Yes', ["No.", '"It is normal."', "So it is...", "Yes"]),
        (" Blanks around.  ", ["Blanks around."]),
        ("v1.2 is here?! Well", ["v1.2 is here?!", "Well"]),
        ("  ", []),
    ],
)
def test_sentences_end_where_they_do_for_a_reader(text, sentences):
    found = [text[start:end] for start, end in split_sentences(text)]
    assert found == sentences


def test_a_lost_or_damaged_image_is_named_with_its_row(rows, tmp_path):
    collator = plain_collator(tiny_processor(NUM_IMAGE_TOKENS))
    (tmp_path / "broken.png").write_text("no image")
    for name in ("gone.png", "broken.png"):
        rows[0]["images"] = [str(tmp_path / name)]
        with pytest.raises(ValueError, match=f"Row 'two turns': cannot read image .*{name}"):
            collator(rows)


def test_a_row_with_another_number_of_images_than_placeholders_is_named(rows):
    rows[1]["images"] = rows[1]["images"][:1]
    with pytest.raises(ValueError, match=r"Row 'two images': its text has 2 image placeholder\(s\).*it has 1 image"):
        plain_collator(tiny_processor(NUM_IMAGE_TOKENS))(rows)


def test_a_tokenizer_without_padding_token_is_refused():
    processor = tiny_processor(NUM_IMAGE_TOKENS)
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        plain_collator(processor)


@pytest.mark.parametrize("alignment", [False, True])
def test_rows_of_a_user_s_own_data_set_give_the_batch_of_canonical_ones(rows, alignment):
    collator = LoGraMedDataCollator(
        tiny_processor(NUM_IMAGE_TOKENS),
        alignment=alignment,
        config=AlignmentConfig(alignment_preset="paper", alignment_texts="answer"),
    )
    image = Image.open(rows[0]["images"][0])
    stored = io.BytesIO()
    image.save(stored, "png")
    question, answer = "what organ is shown?", "left lung"
    expected = collator([training_row("a", [image], message("user", None, question), message("assistant", answer))])
    spoken = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    forms = [
        {"images": [image], "messages": spoken},
        {"image": {"bytes": stored.getvalue(), "path": None}, "messages": spoken},
        {"images": [image], "prompt": question, "completion": answer},
        {"images": [image], "prompt": spoken[:1], "completion": spoken[1:]},
    ]
    for form in forms:
        batch = collator([form])
        nodes = batch.pop("nodes", {})
        assert all(torch.equal(values, expected[name]) for name, values in batch.items())
        assert all(torch.equal(values, expected["nodes"][name]) for name, values in nodes.items())


def test_an_image_may_be_the_bytes_of_its_file(image_path):
    kept = {"bytes": Path(image_path).read_bytes(), "path": "elsewhere.png"}
    for image in (kept, {"bytes": None, "path": image_path}):
        assert open_image(image, "a").tobytes() == open_image(image_path, "a").tobytes()
    with pytest.raises(ValueError, match="Row 'a': cannot read image"):
        open_image({"bytes": b"no image", "path": None}, "a")
