import math

import torch

from logramed.trainer.alignment import infonce_loss, siglip_loss


TWINS = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()  # items 0 and 2 are one


def cosines(size=5, batch=()):
    return 2 * torch.rand(*batch, size, size, generator=torch.Generator().manual_seed(0)) - 1


def test_infonce_loss_equals_cross_entropy_by_hand():
    logits = cosines() / 0.5
    by_hand = 0.0
    for rows in (logits, logits.T):
        by_hand += sum(torch.logsumexp(row, 0) - row[i] for i, row in enumerate(rows)) / 5 / 2
    torch.testing.assert_close(infonce_loss(cosines(), 0.5), by_hand)


def test_infonce_leaves_twins_out_of_the_negatives():
    logits = cosines(3) / 0.5
    kept = [[0, 1], [0, 1, 2], [1, 2]]
    by_hand = 0.0
    for rows in (logits, logits.T):
        by_hand += sum(torch.logsumexp(row[kept[i]], 0) - row[i] for i, row in enumerate(rows)) / 3 / 2
    torch.testing.assert_close(infonce_loss(cosines(3), 0.5, TWINS), by_hand)


def test_siglip_loss_equals_one_yes_or_no_for_every_pair_by_hand():
    logits = cosines(3) / 0.1 - math.log(2)
    shares = torch.sigmoid(logits)
    for right in (torch.eye(3).bool(), TWINS):
        by_hand = -sum((shares[i, j] if right[i, j] else 1 - shares[i, j]).log() for i in range(3) for j in range(3))
        torch.testing.assert_close(siglip_loss(cosines(3), 0.1, right), by_hand / 3)
    torch.testing.assert_close(siglip_loss(cosines(3), 0.1), siglip_loss(cosines(3), 0.1, torch.eye(3).bool()))


def test_contrasts_of_several_problems_are_means_over_them():
    several = cosines(4, batch=(3,))
    for loss in (infonce_loss, siglip_loss):
        torch.testing.assert_close(loss(several, 0.2), torch.stack([loss(one, 0.2) for one in several]).mean())


def test_gradients_of_the_contrasts_are_those_of_finite_differences():
    for loss in (infonce_loss, siglip_loss):
        similarity = cosines(3).double().requires_grad_()
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, 0.5, TWINS), similarity)
