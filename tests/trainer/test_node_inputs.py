import torch

from logramed.trainer.node_inputs import BatchTexts, NodeText, build_nodes, node_keys


def texts_of(*sequences, content=None):
    return [NodeText(ids, content[n] if content else [0] * len(ids)) for n, ids in enumerate(sequences)]


def turn_texts(num_kept=4, extended=True):
    """Four turns of two samples: the second differs from the first in its extended answer alone, the third not at all."""
    spans = [[0, 1], [0, 0], [0, 1], [-1, 0]]
    return BatchTexts(
        texts_of([5, 6], [5, 6], [5, 6], [5, 7, 8])[:num_kept],
        texts_of([9, 10], [9, 11], [9, 10], [9, 10], content=spans)[:num_kept] if extended else [],
        texts_of([20], [21], [22, 23], [24])[:num_kept],
        [3, 1],
    )


def pattern(keys):
    """Keys by the order of their first use: `[7, 3, 7]` becomes `[0, 1, 0]`."""
    keys = keys.tolist()
    return [list(dict.fromkeys(keys)).index(key) for key in keys]


def test_turns_are_one_where_no_text_tells_them_apart_and_spans_where_their_turns_are():
    for granularity, places in (("turn", [0, 1, 2, 3]), ("span", [0, 0, 1, 2, 2, 3])):
        groups, answer_keys = node_keys(turn_texts(), granularity)
        assert pattern(groups) == [[0, 1, 0, 2][place] for place in places]
        assert pattern(answer_keys) == [[0, 0, 0, 1][place] for place in places]
    # Keys are of the texts alone, so that nodes of several batches can be joined.
    alone, _ = node_keys(turn_texts(num_kept=1), "turn")
    assert alone == node_keys(turn_texts(), "turn")[0][0]
    groups, answer_keys = node_keys(turn_texts(extended=False), "turn")
    assert torch.equal(groups, answer_keys)


def test_samples_are_one_if_their_answers_are():
    texts = BatchTexts(texts_of([5, 6], [6, 5], [5, 6]), texts_of([1], [2], [3]), [])
    groups, answer_keys = node_keys(texts, "sample")
    assert pattern(groups) == pattern(answer_keys) == [0, 1, 0]


def test_texts_that_are_equal_only_when_joined_are_no_group():
    texts = BatchTexts(texts_of([5, 6], [5]), texts_of([7], [6, 7]), texts_of([1], [2]), [1, 1])
    groups, _ = node_keys(texts, "turn")
    assert groups[0] != groups[1]


def test_every_content_token_is_found_in_both_layouts_and_special_tokens_in_none():
    answers = texts_of([1, 50, 51, 2], [1, 52, 2], content=[[-1, 0, 0, -1], [-1, 0, -1]])
    nodes = build_nodes(BatchTexts(answers, [], []), torch.tensor([0, 0, 1]), pad_token_id=9)
    for form, places in (("text_input_ids", "padded_places"), ("packed_input_ids", "packed_places")):
        assert nodes[form].flatten()[nodes[places]].tolist() == [50, 51, 52]
    assert nodes["text_of_token"].tolist() == [0, 0, 1]
    assert nodes["text_input_ids"].tolist() == [[1, 50, 51, 2], [1, 52, 2, 9]]
    assert nodes["text_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_turns_regions_and_spans_are_numbered_in_their_order():
    nodes = build_nodes(turn_texts(), torch.tensor([0, 0, 1, 1, 1]), pad_token_id=0, granularity="turn")
    assert nodes["turn_index"].tolist() == [[0, 1, 2], [3, -1, -1]]
    assert nodes["turn_places"].tolist() == [0, 1, 2, 3]
    assert nodes["region_index"].tolist() == [[0, 1, -1], [2, 3, 4]]
    assert nodes["span_of_token"].tolist() == [0, 1, 2, 2, 3, 4, 5]
    assert nodes["span_index"].tolist() == [[0, 1], [2, -1], [3, 4], [5, -1]]
    assert nodes["turn_of_span"].tolist() == [0, 0, 1, 2, 2, 3]
