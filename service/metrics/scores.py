"""The one door to the scores: their names, what each needs, and their values.

A value's name says what was measured: `fd_efficientnet_lite0_2k_held_out` is the Fréchet distance of
2,000 generated images to the held-out ones, in EfficientNet's features.
"""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.config.vocabulary import COMPARED, DISTANCES, OF_PIXELS, REFERENCES, SCORES, need_features
from service.errors import UsageError
from service.metrics import birthday, inception, inception_score, memorisation, ms_ssim, prdc, swd
from service.metrics.feature_set import FeatureSet
from service.metrics.frechet import Moments, frechet_distance, moments
from service.metrics.kid import kid
from service.metrics.settled import settled

_OF_NEIGHBOURS = ("precision", "recall", "density", "coverage")
_MEMORISATION = ("z", "p_value", "nearer", "copies")
_OF_INCEPTION = {
    "fd": "fid",
    "is": "inception_score",
    "is_std": "inception_score_std",
    "kid": "kid",
    "kid_std": "kid_std",
}
STANDARD_IMAGES = 50_000
"""How many images published FIDs and Inception scores are of."""


@dataclass(frozen=True)
class Protocol:
    """What scores are measured on: a network's features, so many generated images, and a reference.

    `features` is empty where a score needs none. The reference is `held_out`, `training`, or the name of
    a file of moments.
    """

    features: str
    generated: int
    reference: str = "held_out"

    def name(self, score: str) -> str:
        """The name of a value: of a score, or of a part of one, such as `kid_std` or `swd_16`."""
        of = next(one for one in SCORES if score == one or score.startswith(f"{one}_"))
        thousands, rest = divmod(self.generated, 1000)
        parts = [score, self.features]
        if of in OF_PIXELS or not self.features:
            parts = [score]
        elif self.features == inception.NAME and score in _OF_INCEPTION:
            parts = [_OF_INCEPTION[score]]
        parts.append(str(self.generated) if rest else f"{thousands}k")
        return "_".join([*parts, self.reference] if of in COMPARED else parts)

    def published(self, score: str) -> str | None:
        """The bare name of a value that is measured as in papers: `fid` or `inception_score`."""
        standard = self.features == inception.NAME and self.generated == STANDARD_IMAGES
        if standard and (score == "is" or (score == "fd" and self.reference == "training")):
            return _OF_INCEPTION[score]
        return None


@dataclass(frozen=True)
class Setting:
    """What there is to measure: the images' side in pixels, how many of each kind, and a reference."""

    resolution: int
    held_out: int
    training: int
    generated: int
    reference: str = "held_out"


@dataclass(frozen=True, eq=False)
class Images:
    """Images uint8 [n, h, w, c] and their features [n, d]; each may be None if no score needs it."""

    images: NDArray[np.uint8] | None = None
    features: NDArray[np.float32] | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        part = self.images if self.features is None else self.features
        return 0 if part is None else len(part)

    def settled(self, count: int) -> "Images":
        """At most `count` of them, in an order of their own, and so a fair sample."""
        images, features = self.images, self.features
        return Images(
            None if images is None else images[settled(images)[:count]],
            None if features is None else features[settled(features)[:count]],
        )


@dataclass(frozen=True, eq=False)
class Real:
    """Real images: samples of both kinds, and which of them generated images are compared with.

    `reference` is `held_out`, `training`, or the name of a file. `moments` are the reference's; where
    they are None, they are those of its sample.
    """

    held_out: Images = Images()
    training: Images = Images()
    reference: str = "held_out"
    moments: Moments | None = None

    @property
    def compared(self) -> Images:
        """A sample of the reference; of a file there is none."""
        known = {"held_out": self.held_out, "training": self.training}
        return known.get(self.reference, Images())

    @functools.cached_property
    def target(self) -> Moments:
        """The moments of the reference."""
        return self.moments or moments(_given(self.compared.features))

    @functools.cached_property
    def ordered(self) -> Images:
        """The sample of the reference in an order of its own."""
        return self.compared.settled(self.compared.count)

    @property
    def others(self) -> Images:
        """Real images that are not in the reference, as far as one knows."""
        return self.training if self.reference == "held_out" else self.held_out


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
    neighbours = max(prdc.PRECISION_NEIGHBOURS, prdc.DENSITY_NEIGHBOURS) + 1
    pairwise = {"fd": 2, "kid": 2, "swd": 1} | dict.fromkeys(_OF_NEIGHBOURS, neighbours)
    held_out = {"memorisation": memorisation.FEWEST_IMAGES, "birthday": 2}
    lacks = _too_few(held_out, "held-out", setting)
    if setting.reference in REFERENCES:
        lacks |= _too_few(pairwise, setting.reference.replace("_", "-"), setting)
    else:
        lacks |= {
            score: f"needs real images, but {setting.reference} holds only their moments"
            for score in pairwise
            if score != "fd"
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


def _too_few(needed: Mapping[str, int], kind: str, setting: Setting) -> dict[str, str]:
    """What the scores lack that need so many generated and so many real images of a kind."""
    present = setting.training if kind == "training" else setting.held_out
    return {
        score: f"needs {count} {kind} and {count} generated images, found {present} and"
        f" {setting.generated}"
        for score, count in needed.items()
        if min(present, setting.generated) < count
    }


def compute(
    scores: Sequence[str],
    generated: Generated,
    features: FeatureSet | None = None,
    real: Real | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The values of the scores by name; some have more than one, such as `kid_std` and SWD's levels.

    All scores but MS-SSIM need `real`: SWD its images, the others its features, and `features`. All
    images are measured, but SWD cuts the larger set. Scores depend on the number of images, not on
    their order: compare at equal counts. Equal arguments give equal values, whichever workers measured
    the images. UsageError if scores are unknown or impossible with so few images; ValueError if an
    argument is missing.
    """
    count, real = len(generated.labels), real or Real()
    sides = real.held_out.count, real.training.count
    check_scores(scores, Setting(generated.images.shape[1], *sides, count, real.reference))
    if need_features(scores) and features is None:
        raise ValueError(f"{', '.join(scores)}: give the network of the features")
    generated = _settle(generated, need_images(scores))
    shown = Images(generated.images, generated.features)
    values = _distances(scores, shown, real, seed)
    if features and need_features(scores):
        values |= _of_features(scores, shown, features, real)
    if "ms_ssim" in scores:
        values["ms_ssim"] = ms_ssim.ms_ssim(generated.images, generated.labels, seed=seed)
    protocol = Protocol(features.name if features else "", count, real.reference)
    named = {protocol.name(score): value for score, value in values.items()}
    bare = {name: values[score] for score in values if (name := protocol.published(score))}
    return named | bare


def floors(scores: Sequence[str], real: Real, protocol: Protocol, seed: int = 0) -> dict[str, float]:
    """What a perfect generator would get: the distances of other real images to the reference.

    They are named as the distances are, with `_floor` behind. As many images are taken as are generated,
    or all that there are, and then the floor is too high. Empty if there are fewer than two.
    """
    if real.others.count < 2:
        return {}
    values = _distances(scores, real.others.settled(protocol.generated), real, seed)
    return {f"{protocol.name(one)}_floor": values[one] for one in DISTANCES if one in values}


def _settle(generated: Generated, with_images: bool) -> Generated:
    """The same in an order of their own: data in the order of its classes would give unfair parts."""
    features = generated.features
    order = settled(generated.images if features is None else features)
    return Generated(
        generated.images[order] if with_images else generated.images,
        generated.labels[order],
        None if features is None else features[order],
    )


def _distances(scores: Sequence[str], shown: Images, real: Real, seed: int) -> dict[str, float]:
    """The distances of images to the reference."""
    values: dict[str, float] = {}
    if "fd" in scores:
        values["fd"] = frechet_distance(real.target, moments(_given(shown.features)))
    if "kid" in scores:
        features = _given(real.ordered.features)
        values["kid"], deviation = kid(features, _given(shown.features), seed)
        if not math.isnan(deviation):
            values["kid_std"] = deviation
    if "swd" in scores:
        images = _given(real.ordered.images)
        values |= _swd(images, _given(shown.images), seed)
    return values


def _of_features(
    scores: Sequence[str], shown: Images, features: FeatureSet, real: Real
) -> dict[str, float]:
    values: dict[str, float] = {}
    generated = _given(shown.features)
    if "is" in scores:
        probabilities = features.probabilities(generated)
        values["is"], values["is_std"] = inception_score.inception_score(probabilities)
    if set(scores) & set(_OF_NEIGHBOURS):
        measures = asdict(prdc.prdc(_given(real.compared.features), generated))
        values |= {score: measures[score] for score in _OF_NEIGHBOURS if score in scores}
    if "birthday" in scores:
        estimate = birthday.birthday(generated, _given(real.held_out.features))
        values |= {"birthday": estimate.support, "birthday_pairs": estimate.pairs}
    if "memorisation" in scores:
        held_out, training = _given(real.held_out.features), _given(real.training.features)
        test = memorisation.memorisation(generated, held_out, training)
        values |= {f"memorisation_{part}": getattr(test, part) for part in _MEMORISATION}
    return values


def _given(part: NDArray[Any] | None) -> NDArray[Any]:
    if part is None:
        raise ValueError("images or features that the scores need are missing; give them")
    return part


def _swd(real: NDArray[np.uint8], generated: NDArray[np.uint8], seed: int) -> dict[str, float]:
    count = min(len(real), len(generated))
    by_side = swd.swd(real[:count], generated[:count], seed)
    levels = {f"swd_{side}": distance for side, distance in by_side.items()}
    return levels | {"swd": sum(by_side.values()) / len(by_side)}
