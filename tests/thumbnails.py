"""Features that a test can afford: the image at 4 px, under a name of its own."""

import numpy as np
import pytest
import torch
from torch import nn

from service.metrics.feature_set import FeatureSet

WIDTH = 48


class Thumbnail(nn.Module):
    """The image at 4 px."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)


def thumbnails(name: str = "tiny", *_: object) -> FeatureSet:
    """The features by this name, with a classifier of ten classes that knows nothing."""
    weight = np.random.default_rng(0).normal(size=(10, WIDTH)) / 100
    cpu = torch.device("cpu")
    return FeatureSet(name, "0" * 64, WIDTH, 4, Thumbnail(), weight, np.zeros(10), cpu)


def use_thumbnails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every network of features be this one."""
    from service.scoring import scorer

    def opened(*_: object) -> FeatureSet:
        return thumbnails()

    monkeypatch.setattr(scorer, "open_features", opened)
    monkeypatch.setattr("service.metrics.features.open_features", opened)
