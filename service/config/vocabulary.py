"""Names of scores and of feature networks, as settings and command lines take them."""

from collections.abc import Collection
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator

from service.address import Address

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
    "birthday",
    "ppl_z_full",
    "ppl_z_end",
    "ppl_w_full",
    "ppl_w_end",
    "separability",
    "modes",
    "memorisation",
]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
RankingName = Literal["fd", "kid", "swd", "is", "precision", "recall", "density", "coverage"]
RANKING: tuple[RankingName, ...] = get_args(RankingName)
"""Scores that can rank generators."""
HIGHER_IS_BETTER: tuple[ScoreName, ...] = ("is", "precision", "recall", "density", "coverage")
DISTANCES: tuple[ScoreName, ...] = ("fd", "kid", "swd")
"""Scores that are 0 for equal sets, and above 0 for two sets of real images: their floor."""
COMPARED: tuple[ScoreName, ...] = (*DISTANCES, "precision", "recall", "density", "coverage")
"""Scores that compare generated images with the reference; the file of a reference gives only fd."""
OF_PIXELS: tuple[ScoreName, ...] = ("swd", "ms_ssim")
"""Scores that compare pixels; all others compare features."""
OF_STYLES: tuple[ScoreName, ...] = ("ppl_w_full", "ppl_w_end")
"""Scores of paths between styles, which only some families have."""
PATH_LENGTHS: tuple[ScoreName, ...] = ("ppl_z_full", "ppl_z_end", *OF_STYLES)
"""Scores of how images change along paths between latents."""
OF_MAPS: tuple[ScoreName, ...] = (*PATH_LENGTHS, "separability")
"""Scores of the map from latents to images."""
OF_LABELS: tuple[ScoreName, ...] = ("separability", "modes")
"""Scores by a classifier that is trained on the data's labels."""
OF_SETS: tuple[ScoreName, ...] = tuple(
    score for score in SCORES if score not in (*PATH_LENGTHS, *OF_LABELS)
)
"""Scores that compare sets of images, and need neither the generator nor labels of the data."""


def need_features(scores: Collection[str]) -> bool:
    """Whether any of the scores needs features."""
    return not set(scores) <= set(OF_PIXELS)


def need_held_out(scores: Collection[str], reference: str) -> bool:
    """Whether any of the scores compares with held-out images, or checks its classifier on them."""
    always = {"memorisation", "birthday", *OF_LABELS}
    return bool(set(scores) & (always | (set(COMPARED) if reference == "held_out" else set())))


def beyond_moments(scores: Collection[str], reference: str) -> list[str]:
    """Those of the scores that need the images of a reference of which there is only a file."""
    known = reference in REFERENCES
    return [] if known else [score for score in scores if score in COMPARED and score != "fd"]


def _named(reference: str) -> str:
    if reference not in REFERENCES and not urlsplit(reference).path.endswith(".npz"):
        raise ValueError(f"choose {', '.join(REFERENCES)}, or name a .npz file of mu and sigma")
    return reference


REFERENCES = ("held_out", "training")
Reference = Annotated[Address, AfterValidator(_named)]
"""What generated images are compared with: held-out or training images, or a file of their moments."""

PAIRED_LOSSES = ("relativistic",)
"""Losses that compare each generated image with a real one, in both steps."""
NO_ZERO = ("wgan", *PAIRED_LOSSES)
"""Losses of which only differences of logits count."""

WeightsName = Literal["ema", "generator"]
"""Which copy of the generator: its running average, or the last weights."""

FeaturesName = Literal["efficientnet_lite0", "inception"]
FEATURES: tuple[FeaturesName, ...] = get_args(FeaturesName)
