"""The one door to the scores: their names, what each needs, and their values.

A score is named after its features, `fd_efficientnet_lite0`; the names `fid`, `inception_score` and
`kid` are kept for the standard Inception's.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from service.config.vocabulary import OF_PIXELS, SCORES, need_features
from service.errors import UsageError
from service.metrics import inception, inception_score, memorisation, ms_ssim, prdc, swd
from service.metrics.feature_set import FeatureSet
from service.metrics.frechet import frechet_distance, moments
from service.metrics.kid import kid
from service.metrics.real import RealStatistics
from service.metrics.settled import settled

_OF_NEIGHBOURS = ("precision", "recall", "density", "coverage")
_MEMORISATION = ("z", "p_value", "nearer", "copies")
_STANDARD = {
    "fd": "fid",
    "is": "inception_score",
    "is_std": "inception_score_std",
    "kid": "kid",
    "kid_std": "kid_std",
}


@dataclass(frozen=True)
class Setting:
    """What there is to measure: the images' side in pixels, and how many of each kind."""

    resolution: int
    held_out: int
    training: int
    generated: int


@dataclass(frozen=True, eq=False)
class Generated:
    """Generated images uint8 [n, h, w, c] with their labels [n], and their features [n, d].

    Features may be None if no score needs them.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    features: NDArray[np.float32] | None = None


def need_images(scores: Collection[str]) -> bool:
    """Whether any of the scores needs pixels, not only the images' size."""
    return bool(set(scores) & set(OF_PIXELS))


def name(score: str, features: str) -> str:
    """The name of a score on the features of this name."""
    if score in OF_PIXELS:
        return score
    if features == inception.NAME and score in _STANDARD:
        return _STANDARD[score]
    return f"{score}_{features}"


def check_scores(scores: Sequence[str], setting: Setting | None = None) -> None:
    """UsageError naming unknown scores or, in a setting, those that cannot be computed, and why."""
    unknown = [score for score in scores if score not in SCORES]
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: no such score; there are {', '.join(SCORES)}")
    why = obstacles(setting) if setting else {}
    if impossible := [f"{score} {why[score]}" for score in scores if score in why]:
        raise UsageError(
            f"scores that cannot be computed here: {'; '.join(impossible)}. Leave them out, or measure"
            " more images"
        )


def obstacles(setting: Setting) -> dict[str, str]:
    """The scores that a setting cannot compute, and what each lacks.

    It does not check whether each class has the two images that MS-SSIM needs."""
    images = min(setting.held_out, setting.generated)
    present = f"found {setting.held_out} and {setting.generated}"
    neighbours = max(prdc.PRECISION_NEIGHBOURS, prdc.DENSITY_NEIGHBOURS) + 1
    pairwise = {"fd": 2, "kid": 2, "swd": 1, "memorisation": memorisation.FEWEST_IMAGES}
    pairwise |= dict.fromkeys(_OF_NEIGHBOURS, neighbours)
    lacks = {
        score: f"needs {count} held-out and {count} generated images, {present}"
        for score, count in pairwise.items()
        if images < count
    }
    if setting.generated < inception_score.SPLITS:
        lacks["is"] = f"needs {inception_score.SPLITS} generated images, found {setting.generated}"
    if setting.training < 1:
        lacks.setdefault("memorisation", "needs training images, found none")
    if setting.generated < 2:
        lacks["ms_ssim"] = f"needs 2 generated images, found {setting.generated}"
    for score, smallest in (("swd", swd.PATCH), ("ms_ssim", ms_ssim.SMALLEST[0])):
        if setting.resolution < smallest:
            lacks[score] = f"needs images of {smallest} px, found {setting.resolution} px"
    return lacks


def compute(
    scores: Sequence[str],
    generated: Generated,
    features: FeatureSet | None = None,
    real: RealStatistics | None = None,
    held_out_images: NDArray[np.uint8] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The values of the scores by name; some have more than one, such as `kid_std` and SWD's levels.

    All scores but SWD and MS-SSIM need `features` and `real`; only SWD needs `held_out_images` uint8
    [m, h, w, c]. All images are measured, but SWD cuts the larger set. Scores depend on the number of
    images, not on their order: compare at equal counts. Equal arguments give equal values, whichever
    workers measured the images. UsageError if scores are unknown or impossible with so few images;
    ValueError if an argument is missing.
    """
    check_scores(scores)
    generated = _settle(generated, need_images(scores))
    result: dict[str, float] = {}
    if need_features(scores):
        if features is None or real is None or generated.features is None:
            raise ValueError(
                f"{', '.join(scores)}: give features, real statistics and generated features"
            )
        check_scores(
            scores,
            Setting(
                generated.images.shape[1],
                len(real.held_out.features),
                len(real.training.features),
                len(generated.images),
            ),
        )
        result |= _of_features(scores, generated.features, features, real, seed)
    if "swd" in scores:
        if held_out_images is None:
            raise ValueError("swd: give the held-out images")
        result |= _swd(held_out_images[settled(held_out_images)], generated.images, seed)
    if "ms_ssim" in scores:
        result["ms_ssim"] = ms_ssim.ms_ssim(generated.images, generated.labels, seed=seed)
    return result


def _settle(generated: Generated, with_images: bool) -> Generated:
    """The same in an order of their own: data in the order of its classes would give unfair parts."""
    features = generated.features
    order = settled(generated.images if features is None else features)
    return Generated(
        generated.images[order] if with_images else generated.images,
        generated.labels[order],
        None if features is None else features[order],
    )


def _of_features(
    scores: Sequence[str],
    generated: NDArray[np.float32],
    features: FeatureSet,
    real: RealStatistics,
    seed: int,
) -> dict[str, float]:
    values: dict[str, float] = {}
    held_out = real.held_out.features
    if "fd" in scores:
        values["fd"] = frechet_distance(real.moments, moments(generated))
    if "kid" in scores:
        values["kid"], values["kid_std"] = kid(held_out[settled(held_out)], generated, seed)
    if "is" in scores:
        probabilities = features.probabilities(generated)
        values["is"], values["is_std"] = inception_score.inception_score(probabilities)
    if set(scores) & set(_OF_NEIGHBOURS):
        measures = asdict(prdc.prdc(held_out, generated))
        values |= {score: measures[score] for score in _OF_NEIGHBOURS if score in scores}
    if "memorisation" in scores:
        test = memorisation.memorisation(generated, held_out, real.training.features)
        values |= {f"memorisation_{part}": getattr(test, part) for part in _MEMORISATION}
    return {name(score, features.name): value for score, value in values.items()}


def _swd(held_out: NDArray[np.uint8], generated: NDArray[np.uint8], seed: int) -> dict[str, float]:
    count = min(len(held_out), len(generated))
    by_side = swd.swd(held_out[:count], generated[:count], seed)
    levels = {f"swd_{side}": distance for side, distance in by_side.items()}
    return levels | {"swd": sum(by_side.values()) / len(by_side)}
