import torch

from logramed.trainer.alignment.graph_nodes import gather_nodes, same_randomness


def test_one_process_gathers_its_own_nodes():
    features, groups = {"image": torch.rand(2, 3), "answer": torch.rand(2, 3)}, torch.tensor([1, 2])
    gathered, gathered_groups = gather_nodes(features, groups)
    assert gathered is features
    assert gathered_groups is groups


def test_shared_graphs_draw_the_same_masks_and_leave_the_random_state_alone():
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with same_randomness(torch.Generator().manual_seed(5), is_shared=True):
            drawn.append(torch.rand(3))
        after = torch.rand(3)
        torch.manual_seed(seed)
        assert torch.equal(after, torch.rand(3))
    assert torch.equal(*drawn)
