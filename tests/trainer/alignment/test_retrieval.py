import pytest
import torch

from logramed.trainer.alignment import matching_accuracy, recall_at_k


def recall_by_sorting(queries, candidates, k):
    order = torch.cosine_similarity(queries.unsqueeze(1), candidates.unsqueeze(0), dim=-1).argsort(1, descending=True)
    return sum(i in order[i, :k] for i in range(len(queries))) / len(queries)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_recall_equals_sorting_by_cosine(k):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(40, 6, generator=generator)
    candidates = queries + torch.randn(40, 6, generator=generator)
    assert recall_at_k(queries, candidates, k) == pytest.approx(recall_by_sorting(queries, candidates, k))


def test_features_that_are_all_alike_score_nothing():
    assert recall_at_k(torch.ones(10, 4), torch.ones(10, 4)) == 0


def test_items_of_one_group_count_as_one():
    queries = torch.eye(4)
    candidates = torch.eye(4)[[1, 0, 2, 3]]  # items 0 and 1 find each other
    assert recall_at_k(queries, candidates) == 0.5
    assert recall_at_k(queries, candidates, groups=torch.tensor([7, 7, 8, 9])) == 1.0


def test_candidates_of_one_group_take_one_place_among_the_k():
    queries = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    candidates = torch.tensor([[0.5, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]])
    groups = torch.tensor([0, 1, 1, 2])
    # Query 0 ranks items 1 and 2 above its own; they are one answer, so its own is the second.
    assert recall_at_k(queries, candidates, 2) < 1.0
    assert recall_at_k(queries, candidates, 2, groups) == 1.0


def test_recall_refuses_what_it_cannot_answer():
    with pytest.raises(ValueError, match="more than 5 different items, got 5"):
        recall_at_k(torch.eye(5), torch.eye(5), k=5)
    with pytest.raises(ValueError, match="`candidates` must be finite"):
        recall_at_k(torch.eye(3), torch.eye(3) * torch.nan)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 3\)"):
        recall_at_k(torch.eye(3), torch.eye(3)[:2])


def test_matching_accuracy_counts_nodes_matched_to_themselves():
    assert matching_accuracy(torch.tensor([[0, 2, -1], [0, 1, 2]])).item() == pytest.approx(4 / 6)


def test_matching_accuracy_counts_twins_as_right():
    assert matching_accuracy(torch.tensor([1, 0, 2]), torch.tensor([4, 4, 5])).item() == 1.0
