import hashlib

import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from logramed.trainer.alignment import GRANULARITIES, AlignmentConfig
from logramed.trainer.alignment.node_inputs import index_members, number_spans, text_keys
from logramed.trainer.data.collator import LoGraMedDataCollator
from tests.tiny import tiny_processor
from tests.trainer.data.test_collator import message, training_row


RED, BLUE = Image.new("RGB", (8, 8), (200, 10, 10)), Image.new("RGB", (8, 8), (0, 0, 255))


@pytest.fixture
def rows():
    return [
        training_row(
            "two turns",
            [RED],
            message("user", None, "what organ is shown?"),
            message("assistant", "left lung"),
            message("user", "a mass?"),
            message("assistant", "no"),
            extended=["left\nlung. no mass. a mass?", "no mass"],
        ),
        training_row(
            "two images",
            [RED, BLUE],
            message("user", "compare", None, "with", None),
            message("assistant", "same"),
        ),
        training_row("one", [BLUE], message("user", None, "what is CT?"), message("assistant", "X ray")),
    ]


def processor_with_special_tokens():
    processor = tiny_processor()
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return processor


def words(processor, input_ids):
    return " ".join(processor.tokenizer.convert_ids_to_tokens(input_ids.tolist()))


def texts_of(processor, nodes):
    """The padded texts, and their content tokens found in either form."""
    whole = [
        words(processor, ids[mask.bool()])
        for ids, mask in zip(nodes["text_input_ids"], nodes["text_attention_mask"], strict=True)
    ]
    forms = [("text_input_ids", "padded_places"), ("packed_input_ids", "packed_places")]
    contents = [
        [
            words(processor, nodes[ids].flatten()[nodes[places]][nodes["text_of_token"] == text])
            for text in range(len(whole))
        ]
        for ids, places in forms
    ]
    assert contents[0] == contents[1]
    return whole, contents[0]


def test_samples_have_all_their_answers_in_one_text(rows):
    processor = tiny_processor()
    nodes = LoGraMedDataCollator(processor, config=AlignmentConfig(alignment_preset="paper"))(rows)["nodes"]
    whole, content = texts_of(processor, nodes)
    assert whole == content
    assert whole == [
        *["left lung . no", "same", "X ray"],
        *["left lung . no mass . a mass ? no mass", "yes , left lung .", "yes , left lung ."],
    ]
    assert nodes["image_sample"].tolist() == [0] * 4 + [1] * 8 + [2] * 4
    assert all(values.dtype == torch.int64 for values in nodes.values())
    assert set(nodes) == {
        *("text_input_ids", "text_attention_mask", "packed_input_ids", "packed_position_ids"),
        *("padded_places", "packed_places", "text_of_token", "image_sample", "image_places"),
        *("groups", "answer_keys", "image_of_token", "sample_of_image"),
    }
    assert nodes["image_of_token"].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert nodes["sample_of_image"].tolist() == [0, 1, 1, 2]
    assert nodes["groups"].tolist() == nodes["answer_keys"].tolist()
    assert nodes["groups"][1] == nodes["groups"][2] != nodes["groups"][0]
    of_one_image = LoGraMedDataCollator(processor, config=AlignmentConfig(alignment_preset="paper"))(
        [rows[0], rows[2]]
    )["nodes"]
    assert not {"image_of_token", "sample_of_image"} & set(of_one_image)


def test_packed_texts_are_the_padded_ones_at_positions_that_start_at_0_again(rows):
    nodes = LoGraMedDataCollator(
        tiny_processor(), config=AlignmentConfig(alignment_preset="paper", alignment_granularity="turn")
    )(rows)["nodes"]
    for text, (ids, mask) in enumerate(zip(nodes["text_input_ids"], nodes["text_attention_mask"], strict=True)):
        places = nodes["packed_places"][nodes["text_of_token"] == text]
        assert nodes["packed_input_ids"].flatten()[places].tolist() == ids[mask.bool()].tolist()
        assert nodes["packed_position_ids"].flatten()[places].tolist() == list(range(int(mask.sum())))
    single = LoGraMedDataCollator(
        tiny_processor(), packs_in_one_row=True, config=AlignmentConfig(alignment_preset="paper")
    )(rows)["nodes"]
    assert single["packed_input_ids"].shape == (1, int(single["text_attention_mask"].sum()))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_special_tokens_are_encoded_but_no_part_of_a_text(rows, granularity):
    processor = processor_with_special_tokens()
    nodes = LoGraMedDataCollator(
        processor, config=AlignmentConfig(alignment_preset="paper", alignment_granularity=granularity)
    )(rows)["nodes"]
    plain = LoGraMedDataCollator(
        tiny_processor(), config=AlignmentConfig(alignment_preset="paper", alignment_granularity=granularity)
    )(rows)["nodes"]
    whole, content = texts_of(processor, nodes)
    assert whole == [f"<s> {text} </s>" for text in content]
    assert content == texts_of(processor, plain)[1]
    for name in ("text_of_token", "span_of_token", "span_index", "turn_places"):
        assert torch.equal(nodes.get(name, torch.empty(0)), plain.get(name, torch.empty(0)))


def test_turns_have_questions_regions_and_spans(rows):
    processor = tiny_processor()
    nodes = LoGraMedDataCollator(
        processor, config=AlignmentConfig(alignment_preset="paper", alignment_granularity="turn")
    )(rows)["nodes"]
    _, content = texts_of(processor, nodes)
    assert content == [
        *["what organ is shown ?", "a mass ?", "compare with", "what is CT ?"],
        *["left lung", "no", "same", "X ray"],
        *["left lung . no mass . a mass ?", "no mass", "yes , left lung .", "yes , left lung ."],
    ]
    assert nodes["turn_index"].tolist() == [[0, 1], [2, -1], [3, -1]]
    assert nodes["turn_places"].tolist() == [0, 1, 2, 4]
    assert nodes["region_index"].tolist() == [
        [0, 1, 2, 3, -1, -1, -1, -1],
        [4, 5, 6, 7, 8, 9, 10, 11],
        [12, 13, 14, 15, -1, -1, -1, -1],
    ]
    assert nodes["span_of_token"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 2 + [4] * 5 + [5] * 5
    assert nodes["span_index"].tolist() == [[0, 1, 2], [3, -1, -1], [4, -1, -1], [5, -1, -1]]
    assert nodes["turn_of_span"].tolist() == [0, 0, 0, 1, 2, 3]
    assert nodes["groups"].shape == (4,)


def test_granularities_change_nothing_but_nodes_and_spans_only_the_keys(rows):
    batches = [
        LoGraMedDataCollator(
            tiny_processor(), config=AlignmentConfig(alignment_preset="paper", alignment_granularity=name)
        )(rows)
        for name in GRANULARITIES
    ]
    nodes = [batch.pop("nodes") for batch in batches]
    for batch in batches[1:]:
        assert all(torch.equal(values, batches[0][name]) for name, values in batch.items())
    keys = {"groups", "answer_keys"}
    assert nodes[1].keys() == nodes[2].keys()
    assert all(torch.equal(nodes[1][name], nodes[2][name]) for name in nodes[1].keys() - keys)
    for name in keys:
        assert torch.equal(nodes[2][name], nodes[1][name][nodes[1]["turn_of_span"]])


def test_texts_end_at_max_length_and_so_do_their_spans(rows):
    processor = processor_with_special_tokens()
    row = {**rows[2], "extended_answers": ["left lung . a mass . " * 9]}
    nodes = LoGraMedDataCollator(
        processor, config=AlignmentConfig(alignment_preset="paper", alignment_granularity="turn"), max_length=20
    )([row])["nodes"]
    _, content = texts_of(processor, nodes)
    assert content[2].split() == ("left lung . a mass . " * 9).split()[:19]
    assert nodes["span_of_token"].tolist() == [number // 3 for number in range(19)]
    assert nodes["text_input_ids"].shape[1] == 20


def test_turns_without_extended_answers_have_no_spans(rows):
    nodes = LoGraMedDataCollator(
        tiny_processor(),
        config=AlignmentConfig(alignment_preset="paper", alignment_granularity="turn", alignment_texts="answer"),
    )(rows)["nodes"]
    assert not any("span" in name for name in nodes)
    assert nodes["text_input_ids"].shape[0] == 8


def test_equal_texts_are_one_node_and_texts_that_are_equal_only_joined_are_not(rows):
    def row(answer, extended):
        return {**rows[2], "messages": [message("user", None, "a?"), message("assistant", answer)], **extended}

    batch = [
        row(answer, {"extended_answers": [text]})
        for answer, text in (("a", "mass here"), ("a mass", "here"), ("a", "mass here"), ("a", "no"))
    ]
    nodes = LoGraMedDataCollator(
        tiny_processor(), config=AlignmentConfig(alignment_preset="paper", alignment_granularity="turn")
    )(batch)["nodes"]
    first, joined, same, other = nodes["groups"].tolist()
    assert first == same
    assert len({first, joined, other}) == 3
    assert nodes["answer_keys"][[2, 3]].eq(nodes["answer_keys"][0]).all()
    samples = LoGraMedDataCollator(tiny_processor(), config=AlignmentConfig(alignment_preset="paper"))(batch)["nodes"]
    assert torch.equal(samples["groups"], samples["answer_keys"])
    assert torch.equal(samples["groups"], nodes["answer_keys"])


def test_keys_are_hashes_of_the_token_ids_whatever_the_batch():
    digest = int.from_bytes(hashlib.blake2b(b"5,7", digest_size=8).digest(), "big") >> 1
    assert text_keys([[5, 7], [57], [5, 7]]).tolist()[::2] == [digest, digest]
    assert text_keys([[5, 7], [57]]).unique().numel() == 2


@pytest.mark.parametrize(
    ("granularity", "change", "reason"),
    [
        (
            "turn",
            {"extended_answers": ["yes"]},
            r"has 1 `extended_answers` for 2 answer\(s\), but nodes that are turns",
        ),
        ("turn", {"extended_answers": None}, "has no `extended_answers`, which these `alignment_texts` need"),
        ("sample", {"extended_answers": None}, "has no `extended_answers`, which these `alignment_texts` need"),
        ("turn", {"extended_answers": ["yes", " "]}, ": the tokenizer finds no token in the extended answer ''"),
    ],
)
def test_rows_without_the_texts_of_their_nodes_are_named(rows, granularity, change, reason):
    with pytest.raises(ValueError, match=f"Row 'two turns'.?{reason}"):
        LoGraMedDataCollator(
            processor_with_special_tokens(),
            config=AlignmentConfig(alignment_preset="paper", alignment_granularity=granularity),
        )([{**rows[0], **change}])


def test_a_turn_without_a_question_in_words_is_named():
    row = training_row("silent", [RED], message("user", None), message("assistant", "left lung"))
    with pytest.raises(ValueError, match="Row 'silent' has a turn without a question in words"):
        LoGraMedDataCollator(
            tiny_processor(), config=AlignmentConfig(alignment_preset="paper", alignment_granularity="turn")
        )([row])


def test_a_row_without_an_image_is_named(rows):
    text = training_row("text", [], message("user", "what is CT?"), message("assistant", "X ray"))
    with pytest.raises(ValueError, match="Alignment needs an image in every sample, but row 'text' has none"):
        LoGraMedDataCollator(tiny_processor(), config=AlignmentConfig(alignment_preset="paper"))([rows[0], text])


def test_members_of_no_owner_and_of_the_last_are_found():
    assert index_members(torch.tensor([1, 1]), 2).tolist() == [[-1, -1], [0, 1]]


def test_a_token_over_two_spans_belongs_to_the_first_and_spans_without_tokens_are_not_counted():
    assert number_spans([(0, 6), (6, 9)], [(0, 3), (4, 5), (6, 9)]) == [0, 1]
    assert number_spans([(2, 4), (0, 0)], [(0, 3), (3, 4)]) == [0, -1]
    assert number_spans([(3, 5)], [(0, 3), (6, 7)]) == [-1]
