"""The sliced Wasserstein distance: parts against SciPy and closed forms, the whole by what it sees."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve, gaussian_filter
from scipy.stats import wasserstein_distance
from sklearn.datasets import load_sample_image

from service.metrics.swd import (
    enlarge,
    laplacian_pyramid,
    levels,
    patches,
    sliced_wasserstein,
    swd,
    unit_directions,
)

RANDOM = np.random.default_rng(0)


def tiles(name: str, side: int = 32):
    """A photograph cut into squares, [n, side, side, 3]."""
    image = load_sample_image(name)
    rows, columns = image.shape[0] // side, image.shape[1] // side
    image = image[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return image.swapaxes(1, 2).reshape(-1, side, side, 3)


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [
        (7, [7]),
        (8, [8]),
        (16, [16]),
        (28, [28]),
        (32, [16, 32]),
        (56, [28, 56]),
        (1024, [16, 32, 64, 128, 256, 512, 1024]),
    ],
)
def test_levels_go_from_sixteen_pixels_to_the_full_size(resolution, expected):
    assert levels(resolution) == expected


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(ValueError, match="patches of 7 px do not fit in images of 6 px"):
        levels(6)


def test_projections_have_scipys_distance_in_each_direction():
    a, b = RANDOM.normal(size=(50, 6)), RANDOM.gamma(2, size=(50, 6))
    directions = unit_directions(6, seed=0, count=70)
    expected = np.mean([wasserstein_distance(a @ d, b @ d) for d in directions])
    distance = sliced_wasserstein(a.astype(np.float32), b.astype(np.float32), directions)
    assert distance == pytest.approx(expected, rel=1e-5)


def test_a_shift_moves_each_projection_by_its_part_in_that_direction():
    """The mean of |cos| over the sphere in d dimensions is Γ(d/2) / (√π Γ((d+1)/2))."""
    width, distance = 147, 3.0
    a = RANDOM.normal(size=(20, width)).astype(np.float32)
    b = a + np.float32(distance / math.sqrt(width))
    mean = math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)
    mean_projection = sliced_wasserstein(a, b, unit_directions(width, seed=0, count=4096))
    assert mean_projection == pytest.approx(distance * mean, rel=0.05)


def test_directions_are_of_length_one_and_even():
    directions = unit_directions(5, seed=3, count=4096)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(directions.T @ directions / 4096, np.eye(5) / 5, atol=0.02)
    assert np.abs(directions.mean(0)).max() < 0.03


def test_a_pyramid_adds_up_to_the_images():
    images = torch.from_numpy(RANDOM.normal(size=(3, 2, 64, 64)))
    pyramid = laplacian_pyramid(images, 16)
    assert list(pyramid) == [64, 32, 16]
    whole = pyramid[16]
    for side in (32, 64):
        whole = pyramid[side] + enlarge(whole)
    torch.testing.assert_close(whole, images)


def test_the_smallest_level_is_the_image_blurred_and_thinned():
    image = RANDOM.normal(size=(32, 32))
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    expected = convolve(image, kernel, mode="mirror")[::2, ::2]
    smallest = laplacian_pyramid(torch.from_numpy(image)[None, None], 16)[16]
    np.testing.assert_allclose(smallest[0, 0].numpy(), expected, rtol=1e-10, atol=1e-12)


def test_an_even_image_has_nothing_in_its_upper_levels():
    pyramid = laplacian_pyramid(torch.full((1, 3, 64, 64), 7.0), 16)
    assert pyramid[64].abs().max() < 1e-5
    torch.testing.assert_close(pyramid[16], torch.full((1, 3, 16, 16), 7.0))


def test_patches_are_squares_of_the_image_all_over_it():
    images = RANDOM.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    cut = patches(images, 16, seed=0).reshape(2, 128, 3, 7, 7)
    for image, own in zip(images, cut, strict=True):
        squares = {
            image[y : y + 7, x : x + 7].transpose(2, 0, 1).astype(np.float32).tobytes(): (y, x)
            for y in range(10)
            for x in range(10)
        }
        corners = [squares[np.ascontiguousarray(patch).tobytes()] for patch in own]
        assert len(set(corners)) > 50
        assert np.ptp(corners, axis=0).tolist() == [9, 9]


@pytest.mark.slow
def test_equal_sets_are_at_no_distance_and_others_at_the_same_from_both_sides():
    a, b = tiles("china.jpg")[:60], tiles("flower.jpg")[:60]
    assert swd(a, a.copy()) == {16: 0, 32: 0}
    assert swd(a, b) == swd(b, a)
    assert min(swd(a, b).values()) > 0


@pytest.mark.slow
def test_halves_of_one_photograph_are_nearer_than_two_photographs():
    china, flower = tiles("china.jpg"), tiles("flower.jpg")
    same, other = swd(china[0:240:2], china[1:240:2]), swd(china[0:240:2], flower[1:240:2])
    assert all(same[side] < other[side] / 2 for side in (16, 32))


@pytest.mark.slow
def test_lost_detail_shows_in_the_fine_level_and_hardly_in_the_coarse_one():
    """The paper's use of it: blur is seen at the scale that it takes away (§5, table 1)."""
    real = tiles("china.jpg")[:200]
    blurred = gaussian_filter(real.astype(float), (0, 1, 1, 0)).round().astype(np.uint8)
    noise = RANDOM.normal(0, 20, real.shape)
    noisy = (real + noise).clip(0, 255).astype(np.uint8)
    for changed in (blurred, noisy):
        values = swd(real, changed)
        assert values[32] > 2 * values[16]


def test_brightness_and_contrast_do_not_count():
    real = tiles("flower.jpg")[:60] // 2
    assert max(swd(real, real * 2).values()) < 1e-2
    assert max(swd(real, real + 100).values()) < 1e-2


def test_gray_and_even_images_are_measured_too():
    even = np.full((4, 8, 8, 1), 9, np.uint8)
    assert swd(even, even + 1) == {8: 0}


def test_the_seed_alone_decides():
    a, b = tiles("china.jpg")[:20], tiles("flower.jpg")[:20]
    assert swd(a, b, seed=1) == swd(a, b, seed=1) != swd(a, b, seed=2)


def test_sets_of_other_shapes_are_refused():
    a = np.zeros((4, 16, 16, 3), np.uint8)
    for b in (a[:3], a[:, :, :8], a[..., :1]):
        with pytest.raises(ValueError, match="of one shape, found"):
            swd(a, b)
    with pytest.raises(ValueError, match="of one shape"):
        swd(a[:0], a[:0])
