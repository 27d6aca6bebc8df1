"""The door to the scores: names, what each needs, and answers that do not depend on chance."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from service.config.vocabulary import COMPARED, need_features
from service.config.vocabulary import OF_SETS as SCORES
from service.errors import UsageError
from service.metrics import birthday, inception_score, kid, memorisation, ms_ssim, prdc, swd
from service.metrics.feature_set import FeatureSet
from service.metrics.features import open_features
from service.metrics.frechet import frechet_distance, moments
from service.metrics.scores import (
    Generated,
    Images,
    Protocol,
    Real,
    Setting,
    check_scores,
    compute,
    floors,
    obstacles,
)
from service.metrics.settled import settled
from tests.thumbnails import thumbnails

ENOUGH = Setting(resolution=32, held_out=200, training=300, generated=250)


def pictures(first: int, count: int) -> NDArray[np.uint8]:
    """scikit-learn's digits at 16 px, [count, 16, 16, 1]."""
    images = load_digits().images[first : first + count, :, :, None]
    return (images.repeat(2, 1).repeat(2, 2) * 15).astype(np.uint8)


HELD_OUT, TRAINING, GENERATED = pictures(0, 200), pictures(200, 300), pictures(500, 250)
LABELS = load_digits().target[500:750].astype(np.int64)


def real(features: FeatureSet, reference: str = "held_out") -> Real:
    return Real(Images(HELD_OUT, features(HELD_OUT)), Images(TRAINING, features(TRAINING)), reference)


def measured(features: FeatureSet, scores=SCORES, images=GENERATED, **options) -> dict[str, float]:
    generated = Generated(images, LABELS[: len(images)], features(images))
    return compute(scores, generated, features, real(features), **options)


@pytest.mark.slow
def test_every_score_is_the_one_of_its_module():
    features = thumbnails("thumbnail")
    held_out, training, generated = (features(x) for x in (HELD_OUT, TRAINING, GENERATED))
    order = settled(generated)
    shown, labels = GENERATED[order], LABELS[order]
    generated = generated[order]
    around = prdc.prdc(held_out, generated)
    twins = birthday.birthday(generated, held_out)
    copying = memorisation.memorisation(generated, held_out, training)
    distance = kid.kid(held_out[settled(held_out)], generated)
    sureness = inception_score.inception_score(features.probabilities(generated))
    slices = swd.swd(HELD_OUT[settled(HELD_OUT)], shown[:200])
    assert measured(features) == {
        "fd_thumbnail_250_held_out": frechet_distance(moments(held_out), moments(generated)),
        "kid_thumbnail_250_held_out": distance[0],
        "kid_std_thumbnail_250_held_out": distance[1],
        "is_thumbnail_250": sureness[0],
        "is_std_thumbnail_250": sureness[1],
        "precision_thumbnail_250_held_out": around.precision,
        "recall_thumbnail_250_held_out": around.recall,
        "density_thumbnail_250_held_out": around.density,
        "coverage_thumbnail_250_held_out": around.coverage,
        "birthday_thumbnail_250": twins.support,
        "birthday_pairs_thumbnail_250": twins.pairs,
        "memorisation_z_thumbnail_250": copying.z,
        "memorisation_p_value_thumbnail_250": copying.p_value,
        "memorisation_nearer_thumbnail_250": copying.nearer,
        "memorisation_copies_thumbnail_250": copying.copies,
        "swd_250_held_out": slices[16],
        "swd_16_250_held_out": slices[16],
        "ms_ssim_250": ms_ssim.ms_ssim(shown, labels),
    }


@pytest.mark.slow
def test_against_training_images_the_same_formulas_see_those():
    features = thumbnails("thumbnail")
    generated = Generated(GENERATED, LABELS, features(GENERATED))
    held_out = compute(COMPARED, generated, features, real(features))
    swapped = Real(*(Images(x, features(x)) for x in (TRAINING, HELD_OUT)), reference="training")
    training = compute(COMPARED, generated, features, swapped)
    assert {key.replace("held_out", "training"): value for key, value in held_out.items()} == training


def test_a_file_of_moments_gives_the_distance_and_nothing_else():
    features = thumbnails("thumbnail")
    generated = Generated(GENERATED, LABELS, features(GENERATED))
    known = dataclasses.replace(
        real(features), reference="cifar_1a2b3c4d", moments=moments(features(HELD_OUT))
    )
    (value,) = compute(["fd"], generated, features, known).items()
    expected = frechet_distance(moments(features(HELD_OUT)), moments(features(GENERATED)))
    assert value == ("fd_thumbnail_250_cifar_1a2b3c4d", pytest.approx(expected))
    for score in set(COMPARED) - {"fd"}:
        with pytest.raises(UsageError, match=f"{score} needs real images, but cifar_1a2b3c4d holds onl"):
            compute([score], generated, features, known)


@pytest.mark.parametrize(
    ("reference", "inside", "outside"),
    [("held_out", HELD_OUT, TRAINING), ("training", TRAINING, HELD_OUT)],
)
def test_the_floor_is_the_distance_of_real_images_that_are_not_in_the_reference(
    reference, inside, outside
):
    features = thumbnails("thumbnail")
    protocol = Protocol("thumbnail", 150, reference)
    found = floors(SCORES, real(features, reference), protocol)
    assert set(found) == {f"{protocol.name(score)}_floor" for score in ("fd", "kid", "swd")}
    every = features(outside)
    expected = frechet_distance(moments(features(inside)), moments(every[settled(every)[:150]]))
    assert found[f"fd_thumbnail_150_{reference}_floor"] == pytest.approx(expected)
    assert floors(["is", "recall"], real(features, reference), protocol) == {}
    alone = Real(Images(HELD_OUT, features(HELD_OUT)))  # all images are held out
    assert floors(SCORES, alone, protocol) == {}


@pytest.mark.slow
@pytest.mark.parametrize("score", SCORES)
def test_a_score_does_not_depend_on_the_order_of_the_images(score):
    """Shards may be in the order of their classes; parts of them would show one class each."""
    features, rng = thumbnails("thumbnail"), np.random.default_rng(3)
    expected = measured(features, [score])
    mine, theirs, seen = (rng.permutation(len(x)) for x in (GENERATED, HELD_OUT, TRAINING))
    reality = Real(
        Images(HELD_OUT[theirs], features(HELD_OUT)[theirs]),
        Images(TRAINING[seen], features(TRAINING)[seen]),
    )
    images = GENERATED[mine]
    generated = Generated(images, LABELS[mine], features(images))
    found = compute([score], generated, features, reality)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_images_of_a_class_in_a_row_show_as_many_classes_as_shuffled_ones():
    """A perfect generator of ten classes, in their order: its parts would show one each."""
    sure = np.repeat(np.eye(10), 30, axis=0) * 0.98 + 0.002
    order = settled(sure.astype(np.float32))
    assert inception_score.inception_score(sure)[0] == pytest.approx(1, abs=0.01)
    assert inception_score.inception_score(sure[order])[0] > 7


@pytest.mark.slow
@pytest.mark.parametrize("score", SCORES)
def test_a_score_alone_is_what_it_is_among_all(score):
    features = thumbnails("thumbnail")
    alone, every = measured(features, [score]), measured(features)
    assert alone
    assert alone.items() <= every.items()


def test_a_name_says_what_was_measured_and_on_what():
    values = measured(thumbnails("inception"), ["fd", "kid", "is", "recall"])
    assert set(values) == {
        "fid_250_held_out",
        "kid_250_held_out",
        "kid_std_250_held_out",
        "inception_score_250",
        "inception_score_std_250",
        "recall_inception_250_held_out",
    }
    lite0, other = Protocol("efficientnet_lite0", 2000), Protocol("inception_1234abcd", 50_000)
    assert lite0.name("fd") == "fd_efficientnet_lite0_2k_held_out"
    assert lite0.name("kid_std") == "kid_std_efficientnet_lite0_2k_held_out"
    assert lite0.name("swd_16") == "swd_16_2k_held_out"
    assert lite0.name("ms_ssim") == "ms_ssim_2k"
    assert other.name("fd") == "fd_inception_1234abcd_50k_held_out"


@pytest.mark.parametrize(
    ("features", "count", "reference", "bare"),
    [
        ("inception", 50_000, "training", {"fid", "inception_score"}),
        ("inception", 50_000, "held_out", {"inception_score"}),
        ("inception", 50_000, "cifar_1a2b3c4d", {"inception_score"}),
        ("inception", 49_999, "training", set()),
        ("inception_1234abcd", 50_000, "training", set()),
        ("efficientnet_lite0", 50_000, "training", set()),
    ],
)
def test_the_bare_names_are_kept_for_what_papers_mean_by_them(features, count, reference, bare):
    protocol = Protocol(features, count, reference)
    parts = [*SCORES, "is_std", "kid_std", "swd_16", "memorisation_z"]
    assert {name for part in parts if (name := protocol.published(part))} == bare
    assert not {protocol.name(part) for part in parts} & {"fid", "inception_score", "kid"}


def test_fifty_thousand_images_of_inception_get_both_names():
    features = thumbnails("inception")
    rows = features(GENERATED).repeat(200, axis=0)
    images = np.broadcast_to(GENERATED[:1], (len(rows), *GENERATED.shape[1:]))
    generated = Generated(images, np.zeros(len(rows), np.int64), rows)
    values = compute(["fd"], generated, features, real(features, "training"))
    assert set(values) == {"fid_50k_training", "fid"}
    assert values["fid"] == values["fid_50k_training"]


def test_scores_of_pixels_need_no_features():
    assert not need_features(["swd", "ms_ssim"])
    assert need_features(["swd", "fd"])
    values = compute(["swd", "ms_ssim"], Generated(GENERATED, LABELS), real=Real(Images(HELD_OUT)))
    assert set(values) == {"swd_250_held_out", "swd_16_250_held_out", "ms_ssim_250"}


def test_what_an_argument_lacks_is_said():
    both = Real(Images(HELD_OUT), Images(TRAINING))
    with pytest.raises(ValueError, match="fd: give the network of the features"):
        compute(["fd"], Generated(GENERATED, LABELS), real=both)
    with pytest.raises(ValueError, match="images or features that the scores need are missing"):
        compute(["fd"], Generated(GENERATED, LABELS), thumbnails("thumbnail"), both)
    with pytest.raises(UsageError, match="swd needs 1 held-out and 1 generated images, found 0 and 250"):
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
    features = thumbnails("thumbnail")
    foretold = obstacles(Setting(16, 200, 300, count))
    if score in foretold:
        with pytest.raises(UsageError, match=f"{score} needs"):
            measured(features, [score], GENERATED[:count])
    else:
        assert all(np.isfinite(list(measured(features, [score], GENERATED[:count]).values())))


@pytest.mark.slow
def test_the_seed_alone_decides_and_no_generator_of_the_process_is_drawn_from():
    features = thumbnails("thumbnail")
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = measured(features, seed=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(7)
    np.random.seed(7)
    assert measured(features, seed=1) == first
    assert measured(features, seed=2)["swd_250_held_out"] != first["swd_250_held_out"]


@dataclass(frozen=True)
class Measured:
    """Generated images beside real ones, seen by the network that comes with the service."""

    features: FeatureSet
    images: NDArray[np.uint8]
    generated: NDArray[np.float32]
    real: Real

    def scores(self, generated: NDArray[np.float32], images: NDArray[np.uint8]) -> dict[str, float]:
        known = Generated(images, LABELS[: len(images)], generated)
        return compute(SCORES, known, self.features, self.real)


@pytest.fixture(scope="module")
def lite0() -> Measured:
    network = open_features("efficientnet_lite0")
    held_out, training = (Images(x[:100], network(x[:100])) for x in (HELD_OUT, TRAINING))
    images = GENERATED[:150]
    return Measured(network, images, network(images), Real(held_out, training))


@pytest.mark.slow
def test_worse_images_score_worse(lite0):
    """Noise: farther by every distance, less precise, and no copies."""
    noise = np.random.default_rng(0).normal(0, 60, lite0.images.shape)
    noisy = (lite0.images + noise).clip(0, 255).astype(np.uint8)
    good = lite0.scores(lite0.generated, lite0.images)
    bad = lite0.scores(lite0.features(noisy), noisy)
    name = Protocol("efficientnet_lite0", len(lite0.images)).name
    for score in ("fd", "kid", "swd", "memorisation_z"):
        assert bad[name(score)] > good[name(score)], score
    for score in ("precision", "density", "coverage"):
        assert bad[name(score)] < good[name(score)], score


@pytest.mark.slow
def test_training_images_given_out_as_generated_are_told(lite0):
    values = lite0.scores(lite0.real.training.features, TRAINING[:100])
    assert values["memorisation_z_efficientnet_lite0_100"] < -10
    assert values["memorisation_copies_efficientnet_lite0_100"] > 0.9
