"""Distances against SciPy's, over the bounds of the blocks."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from service.metrics import distances
from service.metrics.distances import nearest, squared_distances, squared_radii

RANDOM = np.random.default_rng(0)
A, B = (RANDOM.normal(100, 1, size=(count, 6)).astype(np.float32) for count in (25, 18))


@pytest.fixture(params=[1, 7, 1024], autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK_ROWS", request.param)


def test_blocks_together_are_all_distances_even_far_from_the_origin():
    every = np.concatenate([squares for _, squares in squared_distances(A, B)])
    np.testing.assert_allclose(every, cdist(A, B, "sqeuclidean"), rtol=1e-9)


def test_radii_leave_out_the_point_itself_and_nothing_else():
    others = np.sort(cdist(A, A, "sqeuclidean"), axis=1)[:, 1:]
    np.testing.assert_allclose(squared_radii(A, 4), others[:, :4], rtol=1e-9)
    twice = np.concatenate([A, A])
    assert np.array_equal(squared_radii(twice, 1), np.zeros((50, 1)))
    with pytest.raises(ValueError, match="25 images have no 25 neighbours; measure 26 or more"):
        squared_radii(A, 25)


def test_the_nearest_are_the_nearest_and_copies_are_at_no_distance_at_all():
    lengths, indices = nearest(A, B)
    every = cdist(A, B)
    assert np.array_equal(indices, every.argmin(1))
    np.testing.assert_allclose(lengths, every.min(1), rtol=1e-12)
    lengths, indices = nearest(B[::-1], B)
    assert np.array_equal(lengths, np.zeros(18))
    assert np.array_equal(indices, np.arange(18)[::-1])
    with pytest.raises(ValueError, match="no images to be near to"):
        nearest(A, B[:0])
