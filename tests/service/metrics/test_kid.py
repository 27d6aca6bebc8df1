"""The kernel distance against torchmetrics and a double loop, and what unbiased means."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from service.metrics.kid import kid, squared_mmd

RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(40, 5)), RANDOM.normal(0.3, 1, size=(30, 5))


def by_loops(a, b):
    """The definition: means of the kernel over pairs, those of an image with itself left out."""

    def kernel(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    def within(side):
        values = [kernel(x, y) for i, x in enumerate(side) for j, y in enumerate(side) if i != j]
        return np.mean(values)

    return within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_it_is_the_definition_for_sets_of_any_sizes():
    assert squared_mmd(A, B) == pytest.approx(by_loops(A, B), rel=1e-12)
    assert squared_mmd(A[:2], B[:3]) == pytest.approx(by_loops(A[:2], B[:3]), rel=1e-12)


def test_it_is_torchmetrics_for_sets_of_one_size():
    expected = poly_mmd(torch.from_numpy(A[:30]), torch.from_numpy(B)).item()
    assert squared_mmd(A[:30], B) == pytest.approx(expected, rel=1e-12)
    assert kid(A[:30], B)[0] == pytest.approx(expected, rel=1e-12)


def test_it_is_unbiased_whatever_the_number_of_images():
    """Over many draws of one distribution the mean is 0, within 4 deviations of the mean."""
    for count in (3, 30):
        values = [squared_mmd(*np.random.default_rng(i).normal(size=(2, count, 4))) for i in range(400)]
        assert min(values) < 0
        assert abs(np.mean(values)) < 4 * np.std(values) / 20


def test_subsets_scatter_about_the_whole():
    a, b = RANDOM.normal(size=(400, 5)), RANDOM.normal(0.5, 1, size=(300, 5))
    mean, deviation = kid(a, b, subsets=50, subset_images=50)
    assert abs(mean - squared_mmd(a, b)) < 4 * deviation / 50**0.5
    assert deviation > 0


def test_a_smaller_set_is_wholly_in_each_subset():
    few = A[:10]
    mean, deviation = kid(B, few, subsets=40)
    assert abs(mean - squared_mmd(B, few)) < 4 * deviation / 40**0.5


def test_the_seed_alone_decides_the_subsets():
    first = kid(A, B, seed=1, subsets=5, subset_images=10)
    assert kid(A, B, seed=1, subsets=5, subset_images=10) == first
    assert kid(A, B, seed=2, subsets=5, subset_images=10) != first


def test_one_measurement_has_no_deviation():
    assert np.isnan(kid(A, A + 1, subset_images=len(A))[1])
    assert kid(A, A + 1, subset_images=10)[1] > 0


def test_single_images_and_other_widths_are_refused():
    with pytest.raises(ValueError, match="at least 2 images, found 1"):
        kid(A, B[:1])
    with pytest.raises(ValueError, match=r"\[40, 5\] and \[30, 4\] cannot be compared"):
        kid(A, B[:, :4])
