"""Features of the standard Inception, the ImageNet network of December 2015 that defines FID.

The user supplies its weights: the state dict that pytorch-fid and torch-fidelity publish as
`pt_inception-2015-12-05-6726825d.pth` and `weights-inception-2015-12-05-6726825d.pth`, the same file.
"""

import functools
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from service.errors import UsageError
from service.metrics.feature_set import FeatureSet
from service.metrics.weights import local_file, read_weights

log = logging.getLogger(__name__)

NAME = "inception"
WIDTH = 2048
CLASSES = 1008
RESOLUTION = 299
STANDARD_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
STANDARD_FILE = "pt_inception-2015-12-05-6726825d.pth"
# The last layer at each resolution: 64 maps at 147 px, 192 at 71, 288 at 35, 768 at 17, 2048 at 8.
DEPTHS = ("3", "6", "10", "15", "18")
_EPSILON = 1e-3
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def load_inception(
    address: str, device: torch.device | str = "cpu", cache: Path | None = None
) -> FeatureSet:
    """Inception-v3 (Szegedy et al. 2015) as in FID (Heusel et al. 2017): 2048 features, 1008 classes.

    `address` is a path or an http(s) or s3:// address. Other weights of the same network are named
    `inception_` and the first digits of their SHA-256, so that their scores are not called FID. The
    classifier leaves out its bias, as in the Inception score's own code (Salimans et al. 2016).
    UsageError if the file is not of this network.
    """
    path = local_file(address, cache)
    saved, digest = read_weights(path)
    _check(path, saved)
    with torch.device("meta"):
        network = _network()
    for layer in network.modules():
        if isinstance(layer, _Conv):
            layer.fold(saved)
    network.eval().requires_grad_(False)
    name = NAME if digest == STANDARD_SHA256 else f"{NAME}_{digest[:8]}"
    if name != NAME:
        log.warning("event=other_inception file=%s sha256=%s scores_named=%s", path, digest, name)
    weight = saved["fc.weight"].double().numpy()
    return FeatureSet(
        name,
        digest,
        WIDTH,
        RESOLUTION,
        # 1.5 times as fast on a CPU as in torch's default layout
        network.to(device).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        weight,
        weight[:, 0] * 0,
        torch.device(device),
        DEPTHS,
    )


def file_shapes() -> dict[str, torch.Size]:
    """Names and shapes of the tensors in the file, except batch norm's counters."""
    shapes = {"fc.weight": torch.Size([CLASSES, WIDTH]), "fc.bias": torch.Size([CLASSES])}
    with torch.device("meta"):
        for layer in _network().modules():
            if isinstance(layer, _Conv):
                shapes |= layer.shapes()
    return shapes


class _Conv(nn.Conv2d):
    """Convolution with batch norm folded in, then ReLU; `source` is its name in the file."""

    def __init__(
        self,
        cell: str,
        name: str,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | str = "same",
    ):
        # with a stride there is no padding
        super().__init__(inputs, outputs, kernel, stride, padding if stride == 1 else 0)
        self.source = f"{cell}.{name}" if name else cell

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()

    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of this layer's tensors in the file."""
        shapes = {f"{self.source}.bn.{name}": torch.Size([self.out_channels]) for name in _STATISTICS}
        return shapes | {f"{self.source}.conv.weight": self.weight.shape}

    def fold(self, saved: dict[str, Tensor]) -> None:
        """Take the saved weights, scaled and shifted as batch norm would do."""
        gain, bias, mean, variance = (saved[f"{self.source}.bn.{x}"].double() for x in _STATISTICS)
        scale = gain / (variance + _EPSILON).sqrt()
        weight = saved[f"{self.source}.conv.weight"].double() * scale[:, None, None, None]
        self.weight = nn.Parameter(weight.float())
        self.bias = nn.Parameter((bias - mean * scale).float())


class _Concat(nn.Module):
    """The outputs of several branches of one input, concatenated."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class _Prepare(nn.Module):
    """Resize to 299 px as TensorFlow 1 does, bilinear at i · from / to, then (x - 128) / 128."""

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = (_resizing(side, pixels) for side in pixels.shape[2:])
        x = (rows @ pixels @ columns.T - 128) / 128
        return x.contiguous(memory_format=torch.channels_last)


def _resizing(side: int, like: Tensor) -> Tensor:
    """The matrix [299, side] that mixes each sample from its two neighbours; the identity at 299."""
    place = torch.arange(RESOLUTION, dtype=torch.float64) * side / RESOLUTION
    low = place.long()
    share = place - low
    matrix = torch.zeros(RESOLUTION, side, dtype=torch.float64)
    each = torch.arange(RESOLUTION)
    matrix[each, low] += 1 - share
    matrix[each, (low + 1).clamp(max=side - 1)] += share
    return matrix.to(like)


def _network() -> nn.Sequential:
    """From pixels [n, 3, h, w] in 0 … 255 to features [n, 2048] (Szegedy et al. 2015, table 1)."""
    return nn.Sequential(
        _Prepare(),
        _Conv("Conv2d_1a_3x3", "", 3, 32, 3, 2),
        _Conv("Conv2d_2a_3x3", "", 32, 32, 3, padding=0),
        _Conv("Conv2d_2b_3x3", "", 32, 64, 3),
        nn.MaxPool2d(3, 2),
        _Conv("Conv2d_3b_1x1", "", 64, 80, 1),
        _Conv("Conv2d_4a_3x3", "", 80, 192, 3, padding=0),
        nn.MaxPool2d(3, 2),
        _square("Mixed_5b", 192, 32),
        _square("Mixed_5c", 256, 64),
        _square("Mixed_5d", 288, 64),
        _halve_35("Mixed_6a", 288),
        _lines("Mixed_6b", 768, 128),
        _lines("Mixed_6c", 768, 160),
        _lines("Mixed_6d", 768, 160),
        _lines("Mixed_6e", 768, 192),
        _halve_17("Mixed_7a", 768),
        _wide("Mixed_7b", 1280, _average()),
        # The network of 2015 pools by the maximum here, and only here.
        _wide("Mixed_7c", 2048, nn.MaxPool2d(3, 1, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _square(cell: str, inputs: int, pooled: int) -> nn.Module:
    """At 35 px: one 5×5, and two 3×3 in place of another."""
    conv = functools.partial(_Conv, cell)
    return _Concat(
        conv("branch1x1", inputs, 64, 1),
        nn.Sequential(conv("branch5x5_1", inputs, 48, 1), conv("branch5x5_2", 48, 64, 5)),
        nn.Sequential(
            conv("branch3x3dbl_1", inputs, 64, 1),
            conv("branch3x3dbl_2", 64, 96, 3),
            conv("branch3x3dbl_3", 96, 96, 3),
        ),
        nn.Sequential(_average(), conv("branch_pool", inputs, pooled, 1)),
    )


def _halve_35(cell: str, inputs: int) -> nn.Module:
    """From 35 to 17 px."""
    conv = functools.partial(_Conv, cell)
    return _Concat(
        conv("branch3x3", inputs, 384, 3, 2),
        nn.Sequential(
            conv("branch3x3dbl_1", inputs, 64, 1),
            conv("branch3x3dbl_2", 64, 96, 3),
            conv("branch3x3dbl_3", 96, 96, 3, 2),
        ),
        nn.MaxPool2d(3, 2),
    )


def _lines(cell: str, inputs: int, inner: int) -> nn.Module:
    """At 17 px: 7×7 convolutions split into rows and columns."""
    conv = functools.partial(_Conv, cell)
    return _Concat(
        conv("branch1x1", inputs, 192, 1),
        nn.Sequential(
            conv("branch7x7_1", inputs, inner, 1),
            conv("branch7x7_2", inner, inner, (1, 7)),
            conv("branch7x7_3", inner, 192, (7, 1)),
        ),
        nn.Sequential(
            conv("branch7x7dbl_1", inputs, inner, 1),
            conv("branch7x7dbl_2", inner, inner, (7, 1)),
            conv("branch7x7dbl_3", inner, inner, (1, 7)),
            conv("branch7x7dbl_4", inner, inner, (7, 1)),
            conv("branch7x7dbl_5", inner, 192, (1, 7)),
        ),
        nn.Sequential(_average(), conv("branch_pool", inputs, 192, 1)),
    )


def _halve_17(cell: str, inputs: int) -> nn.Module:
    """From 17 to 8 px."""
    conv = functools.partial(_Conv, cell)
    return _Concat(
        nn.Sequential(conv("branch3x3_1", inputs, 192, 1), conv("branch3x3_2", 192, 320, 3, 2)),
        nn.Sequential(
            conv("branch7x7x3_1", inputs, 192, 1),
            conv("branch7x7x3_2", 192, 192, (1, 7)),
            conv("branch7x7x3_3", 192, 192, (7, 1)),
            conv("branch7x7x3_4", 192, 192, 3, 2),
        ),
        nn.MaxPool2d(3, 2),
    )


def _wide(cell: str, inputs: int, pool: nn.Module) -> nn.Module:
    """At 8 px: 3×3 convolutions split into rows and columns, side by side."""
    conv = functools.partial(_Conv, cell)

    def fork(name: str) -> nn.Module:
        return _Concat(conv(f"{name}a", 384, 384, (1, 3)), conv(f"{name}b", 384, 384, (3, 1)))

    return _Concat(
        conv("branch1x1", inputs, 320, 1),
        nn.Sequential(conv("branch3x3_1", inputs, 384, 1), fork("branch3x3_2")),
        nn.Sequential(
            conv("branch3x3dbl_1", inputs, 448, 1),
            conv("branch3x3dbl_2", 448, 384, 3),
            fork("branch3x3dbl_3"),
        ),
        nn.Sequential(pool, conv("branch_pool", inputs, 192, 1)),
    )


def _check(path: Path, saved: dict[str, Tensor]) -> None:
    """UsageError if the file's tensors are not those of this network."""
    expected = file_shapes()
    actual = {name: value.shape for name, value in saved.items() if "num_batches" not in name}
    if actual != expected:
        name = min(name for name in actual | expected if actual.get(name) != expected.get(name))
        sides = (list(shapes[name]) if name in shapes else "none" for shapes in (actual, expected))
        raise UsageError(
            f"{path}: weights of another network than the standard Inception: {name} is"
            " {}, expected {}; give {}".format(*sides, STANDARD_FILE)
        )
