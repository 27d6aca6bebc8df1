"""The random words: the published test vectors, and what is built on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.random import philox


@pytest.mark.parametrize(  # Random123's known answers for philox4x32-10
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_words_are_philox(counter, key, expected):
    words = philox.philox(key, np.array([counter], np.uint32))
    assert words.tolist() == [expected]


@given(st.integers(0, 2**40), st.integers(1, 9), st.integers(1, 30))
def test_words_of_a_number_do_not_depend_on_its_neighbours(start, count, width):
    key = philox.key("test", 3)
    together = philox.words(key, np.arange(start, start + count), width)
    apart = [philox.words(key, np.array([start + i]), width)[0] for i in range(count)]
    assert np.array_equal(together, np.stack(apart))


@given(st.integers(0, 500), st.integers(0, 10))
def test_a_permutation_holds_every_number_once(size, seed):
    assert sorted(philox.permutation(philox.key(seed), size)) == list(range(size))


def test_integers_cover_their_range_evenly():
    words = philox.words(philox.key("even"), np.arange(60_000), 1)
    counts = np.bincount(philox.integers(words, 6)[:, 0], minlength=6)
    assert counts.sum() == 60_000
    assert abs(counts / 10_000 - 1).max() < 0.05
