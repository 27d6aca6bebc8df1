"""Inception against torch-fidelity's extractor, on weights that the test makes up by a formula.

torch-fidelity needs torchvision, so its answers to the same weights and images stand here, computed by
its 0.4.0: `FeatureExtractorInceptionV3(features_list=["2048", "logits_unbiased"])`.
"""

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.errors import UsageError
from service.metrics import inception
from service.metrics.feature_set import FeatureSet
from service.metrics.features import open_features

# By shape of the images: the largest features of the first one, mean and deviation of all features,
# the first image's likeliest classes.
FIDELITY = {
    (2, 8, 8, 1): (
        {2031: 2.6824, 1885: 2.6483, 1912: 2.5424, 438: 2.4819},
        (0.3069, 0.3975),
        {27: 0.02599, 642: 0.02486, 57: 0.02337},
    ),
    (2, 32, 32, 3): (
        {438: 4.5122, 1912: 4.4871, 2031: 4.4005, 1885: 4.3779},
        (0.5186, 0.6734),
        {642: 0.1149, 27: 0.06723, 131: 0.05927},
    ),
    (1, 299, 299, 3): (
        {1912: 9.2436, 438: 9.1445, 1885: 9.0311, 2031: 8.5938},
        (1.0591, 1.3754),
        {642: 0.45815, 131: 0.16242, 27: 0.11715},
    ),
    (1, 320, 310, 3): (
        {1912: 6.4414, 438: 6.4255, 1885: 6.3647, 2031: 6.1307},
        (0.7387, 0.9590),
        {642: 0.2576, 131: 0.11765, 27: 0.10513},
    ),
}


def uniforms(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend on the name alone."""
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return (raw / 2.0**64).reshape(shape)


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Made-up weights under which signals neither fade nor grow."""
    values = uniforms(name, shape)
    if name.endswith("conv.weight"):
        values = (2 * values - 1) * math.sqrt(6 / math.prod(shape[1:]))
    elif name.endswith(("bn.weight", "running_var")):
        values = 0.8 + 0.4 * values
    else:
        values = (2 * values - 1) * 0.1
    return torch.from_numpy(values).float()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of the right names and shapes, with batch norm's counters as published."""
    weights = {name: tensor(name, tuple(shape)) for name, shape in inception.file_shapes().items()}
    weights["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def features(file: Path) -> FeatureSet:
    return open_features("inception", str(file))


@pytest.mark.parametrize("shape", FIDELITY, ids=str)
def test_features_and_classes_are_torch_fidelitys(features, shape):
    images = (uniforms(f"images {shape}", shape) * 256).astype(np.uint8)
    largest, (mean, deviation), likeliest = FIDELITY[shape]
    pooled = features(images)
    assert pooled.shape == (shape[0], 2048)
    assert set(pooled[0].argsort()[-4:].tolist()) == set(largest)
    np.testing.assert_allclose(pooled[0][list(largest)], list(largest.values()), atol=1e-4)
    assert pooled.mean() == pytest.approx(mean, abs=1e-4)
    assert pooled.std() == pytest.approx(deviation, abs=1e-4)
    probabilities = features.probabilities(pooled)[0]
    assert set(probabilities.argsort()[-3:].tolist()) == set(likeliest)
    np.testing.assert_allclose(probabilities[list(likeliest)], list(likeliest.values()), atol=2e-5)


def test_it_has_the_published_number_of_parameters():
    """Of Inception-v3 without its auxiliary head, 21,785,568 (torchvision's count), and 1008 classes."""
    shapes = inception.file_shapes()
    counts = {name: math.prod(shape) for name, shape in shapes.items() if "running" not in name}
    assert sum(counts.values()) == 21_785_568 + 1008 * 2049


def test_other_weights_than_the_standard_ones_get_a_name_of_their_own(features):
    assert features.name == f"inception_{features.digest[:8]}"
    assert features.digest != inception.STANDARD_SHA256


def test_the_standard_file_alone_is_named_inception(file, features, monkeypatch):
    monkeypatch.setattr(inception, "STANDARD_SHA256", features.digest)
    assert open_features("inception", str(file)).name == "inception"


def test_weights_of_another_network_are_refused_with_the_tensor_that_differs(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(UsageError, match=r"other\.pth: weights of another network.*Conv2d_1a.*none"):
        open_features("inception", str(path))


def test_a_classifier_of_1000_classes_is_refused(file, tmp_path):
    weights = torch.load(file, weights_only=True)
    path = tmp_path / "retrained.pth"
    torch.save(weights | {"fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(UsageError, match=r"fc\.bias is \[1000\], expected \[1008\]; give pt_inception"):
        open_features("inception", str(path))


def test_loading_and_measuring_draw_from_no_random_generator(file, features):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    features(np.zeros((1, 8, 8, 3), np.uint8))
    open_features("inception", str(file))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
