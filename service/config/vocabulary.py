"""Names of scores and of feature networks, as settings and command lines take them."""

from collections.abc import Collection
from typing import Literal, get_args

ScoreName = Literal[
    "fd",
    "kid",
    "is",
    "precision",
    "recall",
    "density",
    "coverage",
    "swd",
    "ms_ssim",
    "memorisation",
]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
RankingName = Literal["fd", "kid", "swd", "is", "precision", "recall", "density", "coverage"]
RANKING: tuple[RankingName, ...] = get_args(RankingName)
"""Scores that can rank generators."""
HIGHER_IS_BETTER: tuple[ScoreName, ...] = ("is", "precision", "recall", "density", "coverage")
OF_PIXELS: tuple[ScoreName, ...] = ("swd", "ms_ssim")
"""Scores that compare pixels; all others compare features."""


def need_features(scores: Collection[str]) -> bool:
    """Whether any of the scores needs features."""
    return not set(scores) <= set(OF_PIXELS)


PAIRED_LOSSES = ("relativistic",)
"""Losses that compare each generated image with a real one, in both steps."""
NO_ZERO = ("wgan", *PAIRED_LOSSES)
"""Losses of which only differences of logits count."""

WeightsName = Literal["ema", "generator"]
"""Which copy of the generator: its running average, or the last weights."""

FeaturesName = Literal["efficientnet_lite0", "inception"]
FEATURES: tuple[FeaturesName, ...] = get_args(FeaturesName)
