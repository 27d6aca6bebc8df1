"""Losses by hand-computed values."""

import torch

from models.losses import LOSSES


def test_hinge_counts_only_what_is_inside_the_margin():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0])
    loss = LOSSES["hinge"].discriminator(real, fake)
    torch.testing.assert_close(loss, torch.tensor((0 + 0.5 + 2) / 3 + (0 + 1) / 2))
    torch.testing.assert_close(LOSSES["hinge"].generator(fake), torch.tensor(1.0))
