"""Linear separability: known entropies, from 1 for planes that tell all to 2 for each fair coin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from service.metrics.separability import conditional_entropy, separability

RNG = np.random.default_rng(0)
LATENTS = RNG.normal(size=(4000, 4))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_conditional_entropy_is_the_joint_one_less_that_of_the_condition(pairs):
    labels, given_ = np.array(pairs).T
    joint = np.histogram2d(labels, given_, bins=2, range=[[0, 1], [0, 1]])[0].ravel()
    expected = entropy(joint) - entropy(np.bincount(given_.astype(int)))
    assert conditional_entropy(labels, given_) == pytest.approx(expected, abs=1e-9)


def test_attributes_that_planes_tell_give_one():
    result = separability(LATENTS, LATENTS @ RNG.normal(size=(4, 3)))
    assert result.score == pytest.approx(1, abs=0.02)
    assert result.varying == 3


def test_each_fair_coin_doubles_it():
    coins = RNG.choice([-1.0, 1.0], size=(4000, 3)) * RNG.uniform(1, 2, size=(4000, 3))
    for count in (1, 2, 3):
        assert separability(LATENTS, coins[:, :count]).score == pytest.approx(2**count, rel=0.02)


@pytest.mark.parametrize("wrong", [0.1, 0.25])
def test_labels_that_are_wrong_at_times_give_their_binary_entropy(wrong):
    logits = np.sign(LATENTS[:, :1]) * np.where(RNG.random((4000, 1)) < wrong, -1, 1)
    expected = np.exp(entropy([wrong, 1 - wrong]))
    assert separability(LATENTS, logits).score == pytest.approx(expected, rel=0.03)


def test_the_less_sure_half_is_dropped():
    """Of the sure half planes tell the label, of the other half nothing does."""
    unsure = np.arange(4000) % 2 == 0
    coins = RNG.choice([-0.1, 0.1], size=4000)
    logits = np.where(unsure, coins, 5 * np.sign(LATENTS[:, 0]))[:, None]
    assert separability(LATENTS, logits).score == pytest.approx(1, abs=0.02)


def test_an_attribute_that_no_image_has_says_nothing():
    result = separability(LATENTS, np.full((4000, 2), -3.0))
    assert (result.score, result.varying) == (1, 0)
