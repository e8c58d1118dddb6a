import random

import pytest
import torch

from logramed.trainer.alignment import matching_accuracy, retrieval_metrics


def recall_by_sorting(queries, candidates, k):
    order = torch.cosine_similarity(queries.unsqueeze(1), candidates.unsqueeze(0), dim=-1).argsort(1, descending=True)
    return sum(i in order[i, :k] for i in range(len(queries))) / len(queries)


def recall_at_1(queries, candidates, groups=None):
    groups = torch.arange(len(queries)) if groups is None else groups
    return retrieval_metrics({"image": queries, "answer": candidates}, groups)["recall_at_1_image_to_answer"]


def test_features_that_are_all_alike_score_nothing():
    assert recall_at_1(torch.ones(10, 4), torch.ones(10, 4)) == 0


def test_items_of_one_group_count_as_one():
    queries = torch.eye(4)
    candidates = torch.eye(4)[[1, 0, 2, 3]]  # items 0 and 1 find each other
    assert recall_at_1(queries, candidates) == 0.5
    assert recall_at_1(queries, candidates, groups=torch.tensor([7, 7, 8, 9])) == 1.0


def test_a_rank_that_no_item_could_miss_is_left_out():
    nodes = {"image": torch.eye(5), "answer": torch.eye(5)}
    assert set(retrieval_metrics(nodes, torch.arange(5))) == {
        "recall_at_1_image_to_answer",
        "recall_at_1_answer_to_image",
    }
    assert retrieval_metrics(nodes, torch.zeros(5)) == {}


def recall_by_loops(queries, candidates, groups, k):
    """One query after another: its own group, by the best of it, must have fewer than k others at or before it."""
    num_found = 0
    for query, own in zip(queries.tolist(), groups, strict=True):
        best = {}
        for candidate, group in zip(candidates.tolist(), groups, strict=True):
            cosine = sum(a * b for a, b in zip(query, candidate, strict=True))
            best[group] = max(cosine, best.get(group, -2.0))
        num_found += sum(value >= best[own] for group, value in best.items() if group != own) < k
    return num_found / len(groups)


@pytest.mark.parametrize("seed", range(12))
def test_retrieval_metrics_equal_loops_over_queries(seed):
    """One-hot features and their negatives: cosines are exact, so that ties are frequent and certain."""
    generator = random.Random(seed)
    num_nodes = generator.choice([5, 9, 24])
    vectors = torch.cat([torch.eye(4), -torch.eye(4)])
    nodes = {
        name: vectors[[generator.randrange(8) for _ in range(num_nodes)]] for name in ("image", "answer", "extended")
    }
    groups = [generator.randrange(8) for _ in range(num_nodes)]
    answer_keys = [group // 2 for group in groups]
    expected = {}
    for source in nodes:
        for target in nodes:
            keys = answer_keys if "answer" in (source, target) else groups
            for k in (1, 5):
                if source != target and k < len(set(keys)):
                    name = f"recall_at_{k}_{source}_to_{target}"
                    expected[name] = recall_by_loops(nodes[source], nodes[target], keys, k)
    assert retrieval_metrics(nodes, torch.tensor(groups), torch.tensor(answer_keys)) == pytest.approx(expected)
    without_keys = retrieval_metrics(nodes, torch.tensor(groups))
    for name in without_keys.keys() & expected.keys():
        if "answer" not in name:
            assert without_keys[name] == pytest.approx(expected[name])


def test_retrieval_metrics_are_those_of_sorting_by_cosine_and_scale_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(30, 6, generator=generator)
    answer = image + torch.randn(30, 6, generator=generator)
    metrics = retrieval_metrics({"image": 3 * image, "answer": answer}, torch.arange(30))
    assert metrics == {
        f"recall_at_{k}_{'image_to_answer' if forward else 'answer_to_image'}": recall_by_sorting(
            *((image, answer) if forward else (answer, image)), k
        )
        for forward in (True, False)
        for k in (1, 5)
    }


def test_retrieval_metrics_name_what_is_not_finite():
    with pytest.raises(ValueError, match="`answer` must be finite"):
        retrieval_metrics({"image": torch.eye(3), "answer": torch.eye(3) * torch.nan}, torch.arange(3))


def test_matching_accuracy_counts_nodes_matched_to_themselves():
    assert matching_accuracy(torch.tensor([[0, 2, -1], [0, 1, 2]])).item() == pytest.approx(4 / 6)


def test_matching_accuracy_counts_twins_as_right():
    assert matching_accuracy(torch.tensor([1, 0, 2]), torch.tensor([4, 4, 5])).item() == 1.0
