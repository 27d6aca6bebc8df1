"""Precision, recall, density and coverage against the papers' formulas and cases on a line."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from service.metrics.prdc import Prdc, prdc


def by_formula(real, generated, k_precision, k_density):
    """Kynkäänniemi et al. 2019, eq. 1 and 2; Naeem et al. 2020, eq. 5 and 6; image by image."""

    def radius(points, k):
        return [sorted(np.linalg.norm(points - point, axis=1))[k] for point in points]

    between = cdist(real, generated)
    real_radius, generated_radius = radius(real, k_precision), radius(generated, k_precision)
    wide = radius(real, k_density)
    n, m = between.shape
    balls = [[between[i, j] <= wide[i] for i in range(n)] for j in range(m)]
    return Prdc(
        np.mean([any(between[i, j] <= real_radius[i] for i in range(n)) for j in range(m)]),
        np.mean([any(between[i, j] <= generated_radius[j] for j in range(m)) for i in range(n)]),
        np.sum(balls) / (k_density * m),
        np.mean(np.any(balls, axis=0)),
    )


def parts(result: Prdc) -> list[float]:
    return [result.precision, result.recall, result.density, result.coverage]


@pytest.mark.parametrize("neighbours", [(3, 5), (5, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_they_are_the_papers_formulas(neighbours, shift):
    random = np.random.default_rng(shift)
    real, generated = random.normal(size=(60, 4)), random.normal(shift, 0.7, size=(45, 4))
    expected = by_formula(real, generated, *neighbours)
    assert parts(prdc(real, generated, *neighbours)) == pytest.approx(parts(expected), rel=1e-12)


def test_a_copy_of_the_data_has_all_precision_recall_and_coverage():
    real = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    scores = prdc(real, real.copy())
    assert (scores.precision, scores.recall, scores.coverage) == (1, 1, 1)
    assert scores.density >= 1


def test_sets_far_apart_have_nothing_of_anything():
    real = np.random.default_rng(0).normal(size=(50, 3))
    assert prdc(real, real + 100) == Prdc(0, 0, 0, 0)


def test_one_mode_of_two_is_precise_and_recalls_half():
    random = np.random.default_rng(0)
    real = random.normal(size=(400, 2)) + 100 * (np.arange(400) % 2)[:, None]
    generated = random.normal(size=(400, 2))
    scores = prdc(real, generated)
    assert scores.precision > 0.9
    assert scores.recall <= 0.5
    assert scores.coverage <= 0.5


def test_points_on_a_line_are_counted_by_hand():
    """Real at 0, 1, 2 … 9 with k = 1: balls of radius 1, closed. Generated at 0, 0.5, -1, 20."""
    real = np.arange(10.0)[:, None]
    generated = np.array([[0.0], [0.5], [-1.0], [20.0]])
    scores = prdc(real, generated, 1, 1)
    assert scores.precision == 3 / 4
    assert scores.density == (2 + 2 + 1 + 0) / 4
    assert scores.coverage == 2 / 10
    # generated radii 0.5, 0.5, 1, 19.5: of 0 … 9 the last ball takes 1 … 9, the first one 0
    assert scores.recall == 1


def test_copies_of_repeated_real_images_count_as_inside():
    """A ball of radius 0 holds its own centre."""
    real = np.repeat(np.random.default_rng(0).normal(size=(5, 300)) * 50, 7, axis=0)
    assert prdc(real, real.copy()).precision == 1


def test_the_mean_of_the_density_is_one_for_one_distribution():
    random = np.random.default_rng(1)
    real, generated = random.normal(size=(2, 2000, 3))
    assert prdc(real, generated).density == pytest.approx(1, abs=0.05)


def test_no_more_images_than_neighbours_are_refused():
    real = np.zeros((10, 2))
    with pytest.raises(ValueError, match="3 images have no 3 neighbours"):
        prdc(real, real[:3])
    with pytest.raises(ValueError, match="5 images have no 5 neighbours"):
        prdc(real[:5], real)
