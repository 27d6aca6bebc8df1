"""The door to the scores: names, what each needs, and answers that do not depend on chance."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from service.config.vocabulary import SCORES, need_features
from service.errors import UsageError
from service.metrics import inception_score, kid, memorisation, ms_ssim, prdc, swd
from service.metrics.feature_set import FeatureSet
from service.metrics.features import open_features
from service.metrics.frechet import frechet_distance, moments
from service.metrics.real import FeatureSample, RealStatistics
from service.metrics.scores import (
    Generated,
    Setting,
    check_scores,
    compute,
    name,
    obstacles,
)
from service.metrics.settled import settled

ENOUGH = Setting(resolution=32, held_out=200, training=300, generated=250)


class Thumbnail(torch.nn.Module):
    """Features that a test can afford: the image at 4 px."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)


def thumbnails(called: str = "thumbnail") -> FeatureSet:
    weight = np.random.default_rng(0).normal(size=(10, 48)) / 100
    return FeatureSet(called, "0" * 64, 48, 4, Thumbnail(), weight, np.zeros(10), torch.device("cpu"))


def pictures(first: int, count: int) -> NDArray[np.uint8]:
    """scikit-learn's digits at 16 px, [count, 16, 16, 1]."""
    images = load_digits().images[first : first + count, :, :, None]
    return (images.repeat(2, 1).repeat(2, 2) * 15).astype(np.uint8)


HELD_OUT, TRAINING, GENERATED = pictures(0, 200), pictures(200, 300), pictures(500, 250)
LABELS = load_digits().target[500:750].astype(np.int64)


def real(features: FeatureSet) -> RealStatistics:
    return RealStatistics(
        FeatureSample(features(HELD_OUT), np.arange(200)),
        FeatureSample(features(TRAINING), np.arange(200, 500)),
    )


def measured(features: FeatureSet, scores=SCORES, images=GENERATED, **options) -> dict[str, float]:
    generated = Generated(images, LABELS[: len(images)], features(images))
    return compute(scores, generated, features, real(features), HELD_OUT, **options)


def test_every_score_is_the_one_of_its_module():
    features = thumbnails()
    held_out, training, generated = (features(x) for x in (HELD_OUT, TRAINING, GENERATED))
    order = settled(generated)
    shown, labels = GENERATED[order], LABELS[order]
    generated = generated[order]
    around = prdc.prdc(held_out, generated)
    copying = memorisation.memorisation(generated, held_out, training)
    distance = kid.kid(held_out[settled(held_out)], generated)
    sureness = inception_score.inception_score(features.probabilities(generated))
    slices = swd.swd(HELD_OUT[settled(HELD_OUT)], shown[:200])
    assert measured(features) == {
        "fd_thumbnail": frechet_distance(moments(held_out), moments(generated)),
        "kid_thumbnail": distance[0],
        "kid_std_thumbnail": distance[1],
        "is_thumbnail": sureness[0],
        "is_std_thumbnail": sureness[1],
        "precision_thumbnail": around.precision,
        "recall_thumbnail": around.recall,
        "density_thumbnail": around.density,
        "coverage_thumbnail": around.coverage,
        "memorisation_z_thumbnail": copying.z,
        "memorisation_p_value_thumbnail": copying.p_value,
        "memorisation_nearer_thumbnail": copying.nearer,
        "memorisation_copies_thumbnail": copying.copies,
        "swd": slices[16],
        "swd_16": slices[16],
        "ms_ssim": ms_ssim.ms_ssim(shown, labels),
    }


@pytest.mark.parametrize("score", SCORES)
def test_a_score_does_not_depend_on_the_order_of_the_images(score):
    """Shards may be in the order of their classes; parts of them would show one class each."""
    features, rng = thumbnails(), np.random.default_rng(3)
    expected = measured(features, [score])
    mine, theirs, seen = (rng.permutation(len(x)) for x in (GENERATED, HELD_OUT, TRAINING))
    reality = RealStatistics(
        FeatureSample(features(HELD_OUT)[theirs], theirs),
        FeatureSample(features(TRAINING)[seen], 200 + seen),
    )
    images = GENERATED[mine]
    generated = Generated(images, LABELS[mine], features(images))
    found = compute([score], generated, features, reality, HELD_OUT[theirs])
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_images_of_a_class_in_a_row_show_as_many_classes_as_shuffled_ones():
    """A perfect generator of ten classes, in their order: its parts would show one each."""
    sure = np.repeat(np.eye(10), 30, axis=0) * 0.98 + 0.002
    order = settled(sure.astype(np.float32))
    assert inception_score.inception_score(sure)[0] == pytest.approx(1, abs=0.01)
    assert inception_score.inception_score(sure[order])[0] > 7


@pytest.mark.parametrize("score", SCORES)
def test_a_score_alone_is_what_it_is_among_all(score):
    features = thumbnails()
    alone, every = measured(features, [score]), measured(features)
    assert alone
    assert alone.items() <= every.items()


def test_the_well_known_names_are_for_the_standard_inception_alone():
    values = measured(thumbnails("inception"), ["fd", "kid", "is", "recall"])
    expected = {"fid", "kid", "kid_std", "inception_score", "inception_score_std", "recall_inception"}
    assert set(values) == expected
    assert name("fd", "efficientnet_lite0") == "fd_efficientnet_lite0"
    assert name("kid", "efficientnet_lite0") == "kid_efficientnet_lite0"
    assert name("fd", "inception_1234abcd") == "fd_inception_1234abcd"
    assert name("swd", "inception") == "swd"


def test_scores_of_pixels_need_no_features():
    assert not need_features(["swd", "ms_ssim"])
    assert need_features(["swd", "fd"])
    values = compute(["swd", "ms_ssim"], Generated(GENERATED, LABELS), held_out_images=HELD_OUT)
    assert set(values) == {"swd", "swd_16", "ms_ssim"}


def test_what_an_argument_lacks_is_said():
    with pytest.raises(ValueError, match="fd: give features, real statistics"):
        compute(["fd"], Generated(GENERATED, LABELS))
    with pytest.raises(ValueError, match="swd: give the held-out images"):
        compute(["swd"], Generated(GENERATED, LABELS))


def test_an_unknown_score_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"fid, ppl: no such score; there are fd, kid, is, prec.*tion$"):
        check_scores(["fd", "fid", "ppl"])


def test_all_scores_can_be_had_with_enough_images():
    assert obstacles(ENOUGH) == {}
    check_scores(SCORES, ENOUGH)


@pytest.mark.parametrize(
    ("change", "impossible"),
    [
        ({"resolution": 6}, {"swd", "ms_ssim"}),
        ({"resolution": 8}, {"ms_ssim"}),
        ({"training": 0}, {"memorisation"}),
        ({"held_out": 0}, set(SCORES) - {"is", "ms_ssim"}),
        ({"held_out": 5}, {"precision", "recall", "density", "coverage", "memorisation"}),
        ({"generated": 1}, set(SCORES) - {"swd"}),
        ({"generated": 9}, {"is", "memorisation"}),
    ],
)
def test_scores_that_a_setting_cannot_compute_are_told_with_the_reason(change, impossible):
    setting = dataclasses.replace(ENOUGH, **change)
    reasons = obstacles(setting)
    assert set(reasons) == impossible
    assert all("needs" in reason for reason in reasons.values())
    with pytest.raises(UsageError, match=r"cannot be computed here: .* needs .*Leave them out, or mea"):
        check_scores(SCORES, setting)


@pytest.mark.parametrize("score", sorted(set(SCORES) - {"swd", "ms_ssim"}))
@pytest.mark.parametrize("count", [1, 2, 6, 10, 20])
def test_a_score_is_refused_for_want_of_images_exactly_where_it_was_foretold(score, count):
    features = thumbnails()
    foretold = obstacles(Setting(16, 200, 300, count))
    if score in foretold:
        with pytest.raises(UsageError, match=f"{score} needs"):
            measured(features, [score], GENERATED[:count])
    else:
        assert all(np.isfinite(list(measured(features, [score], GENERATED[:count]).values())))


def test_the_seed_alone_decides_and_no_generator_of_the_process_is_drawn_from():
    features = thumbnails()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = measured(features, seed=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(7)
    np.random.seed(7)
    assert measured(features, seed=1) == first
    assert measured(features, seed=2)["swd"] != first["swd"]


@dataclass(frozen=True)
class Measured:
    """Generated images beside real ones, seen by the network that comes with the service."""

    features: FeatureSet
    images: NDArray[np.uint8]
    generated: NDArray[np.float32]
    real: RealStatistics

    def scores(self, generated: NDArray[np.float32], images: NDArray[np.uint8]) -> dict[str, float]:
        known = Generated(images, LABELS[: len(images)], generated)
        return compute(SCORES, known, self.features, self.real, HELD_OUT)


@pytest.fixture(scope="module")
def lite0() -> Measured:
    network = open_features("efficientnet_lite0")
    held_out, training = (
        FeatureSample(network(images[:100]), np.arange(100)) for images in (HELD_OUT, TRAINING)
    )
    images = GENERATED[:150]
    return Measured(network, images, network(images), RealStatistics(held_out, training))


@pytest.mark.slow
def test_worse_images_score_worse(lite0):
    """Noise: farther by every distance, less precise, and no copies."""
    noise = np.random.default_rng(0).normal(0, 60, lite0.images.shape)
    noisy = (lite0.images + noise).clip(0, 255).astype(np.uint8)
    good = lite0.scores(lite0.generated, lite0.images)
    bad = lite0.scores(lite0.features(noisy), noisy)
    suffix = "efficientnet_lite0"
    for score in (f"fd_{suffix}", f"kid_{suffix}", "swd", f"memorisation_z_{suffix}"):
        assert bad[score] > good[score], score
    for score in (f"precision_{suffix}", f"density_{suffix}", f"coverage_{suffix}"):
        assert bad[score] < good[score], score


@pytest.mark.slow
def test_training_images_given_out_as_generated_are_told(lite0):
    values = lite0.scores(lite0.real.training.features, TRAINING[:100])
    assert values["memorisation_z_efficientnet_lite0"] < -10
    assert values["memorisation_copies_efficientnet_lite0"] > 0.9
