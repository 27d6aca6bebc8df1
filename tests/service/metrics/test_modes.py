"""Modes covered: counts, and the divergence of frequencies, by hand and by scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from service.metrics.modes import modes

DATA = np.repeat([0, 1, 2, 5], [40, 30, 20, 10])


@given(st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1))
def test_classes_are_counted_and_the_divergence_is_scipy_s(shown):
    result = modes(np.array(shown), DATA)
    shares = [shown.count(label) / len(shown) for label in (0, 1, 2, 5)]
    assert (result.count, result.of) == (len(set(shown)), 4)
    assert result.divergence == pytest.approx(entropy(shares, [0.4, 0.3, 0.2, 0.1]), abs=1e-12)


def test_one_mode_of_k_even_ones_diverges_by_the_logarithm_of_k():
    assert modes(np.full(9, 3), np.arange(10)).divergence == pytest.approx(math.log(10))


def test_the_data_s_own_frequencies_do_not_diverge():
    assert modes(DATA, DATA).divergence == 0


def test_classes_that_the_data_lacks_are_left_out():
    assert modes(np.array([0, 1, 3, 9]), DATA) == modes(np.array([0, 1]), DATA)
    assert modes(np.array([3, 9]), DATA).divergence == math.inf
