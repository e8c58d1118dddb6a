import pytest
import torch

from logramed.trainer.alignment import entropic_loss, infonce_loss, match_graphs, sinkhorn_matching


TWINS = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()  # items 0 and 2 are one


def cosines(size=6, seed=0, batch=()):
    source, target = torch.randn(2, *batch, size, 4, generator=torch.Generator().manual_seed(seed)).unbind()
    normalize = torch.nn.functional.normalize
    return (normalize(source, dim=-1) @ normalize(target, dim=-1).mT).double()


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_sinkhorn_matching_equals_that_of_an_optimal_transport_library(temperature):
    ot = pytest.importorskip("ot", reason="needs POT, of the extra `dev`")
    similarity = cosines()
    ones = torch.ones(6, dtype=torch.float64)
    expected = ot.sinkhorn(ones, ones, -similarity, temperature, method="sinkhorn_log", numItermax=5000, stopThr=1e-12)
    soft, _, _ = sinkhorn_matching(similarity, temperature, num_iterations=2000)
    torch.testing.assert_close(soft, expected, rtol=1e-6, atol=1e-8)


def test_sinkhorn_matching_is_what_its_scales_say_and_its_columns_sum_to_1():
    similarity = cosines(batch=(3,))
    soft, rows, columns = sinkhorn_matching(similarity, 0.1)
    torch.testing.assert_close(soft, (similarity / 0.1 + rows.unsqueeze(-1) + columns.unsqueeze(-2)).exp())
    torch.testing.assert_close(soft.sum(-2), torch.ones(3, 6, dtype=torch.float64))


def test_a_cold_sinkhorn_matching_is_the_best_matching():
    similarity = cosines(8, seed=3)
    edges = torch.zeros(2, 0, dtype=torch.int64)
    best = match_graphs(-similarity, torch.zeros(0, 0), edges, edges)
    soft, _, _ = sinkhorn_matching(similarity, 0.03, num_iterations=3000)
    assert torch.equal(soft.argmax(-1), best)


def test_entropic_loss_is_minus_the_mean_log_share_of_the_right_pairs():
    similarity = cosines(batch=(2,))
    soft, _, _ = sinkhorn_matching(similarity, 0.1)
    by_hand = -soft.diagonal(dim1=-2, dim2=-1).log().mean()
    torch.testing.assert_close(entropic_loss(similarity, 0.1), by_hand)


def test_entropic_loss_of_twins_is_the_relative_entropy_of_equal_shares():
    similarity = cosines(4)
    right = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    soft, _, _ = sinkhorn_matching(similarity, 0.2, 2000)
    by_hand = sum((0.5 * (0.5 / soft[i, j]).log()) for i in (0, 2) for j in (0, 2)) / 4
    by_hand = by_hand - (soft[1, 1].log() + soft[3, 3].log()) / 4
    torch.testing.assert_close(entropic_loss(similarity, 0.2, right, 2000), by_hand)
    alike = torch.where(right, 1.0, -1.0).double()
    assert entropic_loss(alike, 0.03, right, 2000) < 1e-9  # twins that look alike cost nothing


@pytest.mark.parametrize("twins", [False, True])
def test_gradient_of_the_entropic_loss_is_that_of_finite_differences(twins):
    similarity = cosines(5).requires_grad_()
    right = torch.eye(5, dtype=torch.bool)
    if twins:
        right[0, 4] = right[4, 0] = True
    assert torch.autograd.gradcheck(lambda s: entropic_loss(s, 1.0, right, 100), similarity)


def test_gradient_of_the_entropic_loss_is_soft_minus_right_matching():
    similarity = cosines(5).requires_grad_()
    entropic_loss(similarity, 0.1).backward()
    soft, _, _ = sinkhorn_matching(similarity, 0.1)
    torch.testing.assert_close(similarity.grad, (soft - torch.eye(5)) / (5 * 0.1))


@pytest.mark.parametrize("similarity", [torch.ones(3, 3), -torch.ones(3, 3), 2 * torch.eye(3) - 1, torch.zeros(1, 1)])
def test_the_coldest_temperature_stays_finite_in_float32(similarity):
    similarity = similarity.clone().requires_grad_()
    loss = entropic_loss(similarity, 0.03)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(similarity.grad).all()


def test_a_temperature_too_low_for_float32_is_refused():
    with pytest.raises(ValueError, match=r"`temperature` must be at least 0.03, got 0.01"):
        entropic_loss(torch.eye(3), 0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_neither_loss_nor_gradient(dtype):
    results = []
    for enabled in (False, True):
        similarity = (0.4 * cosines(8).float() - 0.4).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = entropic_loss(similarity, 0.05)
        loss.backward()
        results.append((loss.detach(), similarity.grad))
    torch.testing.assert_close(results[1], results[0])
    assert torch.isfinite(results[0][0])


def test_a_margin_may_take_similarities_below_the_range_of_cosines():
    similarity = torch.full((8, 8), -2.0).requires_grad_()
    loss = entropic_loss(similarity, 0.03)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(8.0).log())
    assert torch.isfinite(similarity.grad).all()


def test_infonce_loss_equals_cross_entropy_by_hand():
    logits = cosines(5) / 0.5
    by_hand = 0.0
    for rows in (logits, logits.T):
        by_hand += sum(torch.logsumexp(row, 0) - row[i] for i, row in enumerate(rows)) / 5 / 2
    torch.testing.assert_close(infonce_loss(cosines(5), 0.5), by_hand)


def test_infonce_leaves_twins_out_of_the_negatives():
    logits = cosines(3) / 0.5
    kept = [[0, 1], [0, 1, 2], [1, 2]]
    by_hand = 0.0
    for rows in (logits, logits.T):
        by_hand += sum(torch.logsumexp(row[kept[i]], 0) - row[i] for i, row in enumerate(rows)) / 3 / 2
    torch.testing.assert_close(infonce_loss(cosines(3), 0.5, TWINS), by_hand)


def test_infonce_of_several_problems_is_the_mean_over_them():
    several = cosines(4, batch=(3,))
    torch.testing.assert_close(
        infonce_loss(several, 0.2), torch.stack([infonce_loss(one, 0.2) for one in several]).mean()
    )


def test_the_gradient_of_infonce_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda s: infonce_loss(s, 0.5, TWINS), cosines(3).requires_grad_())
