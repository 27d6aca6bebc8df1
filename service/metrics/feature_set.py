"""The space that images are compared in: a network's pooled features, and the classes it sees."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

# Larger batches are slower on a CPU, by up to half at 64.
BATCH = 16


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """A feature network ready for use, in eval mode and without gradients.

    `network` maps float32 [n, 3, h, w] in 0 … 255 to pooled features [n, width]; it also does the
    resizing to `resolution` pixels a side. `digest` is the SHA-256 of its weights' file. `weight`
    [classes, width] and `bias` [classes] are the linear classifier that was trained on the features.
    `depths` names the modules inside `network` whose feature maps tell how alike two images look.
    """

    name: str
    digest: str
    width: int
    resolution: int
    network: nn.Module
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    device: torch.device
    depths: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """How many classes the classifier tells apart."""
        return len(self.bias)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], batch: int = BATCH) -> NDArray[np.float32]:
        """Pooled features [n, width] of uint8 images [n, h, w, c], c 1 or 3; gray is repeated.

        `batch` changes only rounding and speed. ValueError for other arrays.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(
                f"images must be uint8 [n, h, w, 1 or 3], found {images.dtype} {list(images.shape)}"
            )
        result = np.empty((len(images), self.width), np.float32)
        for start in range(0, len(images), batch):
            part = np.ascontiguousarray(images[start : start + batch])
            pixels = torch.tensor(part, device=self.device).permute(0, 3, 1, 2).float()
            result[start : start + batch] = self.network(pixels.expand(-1, 3, -1, -1)).cpu()
        return result

    def probabilities(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """The classifier's probabilities [n, classes] for features [n, width]; each row sums to 1."""
        logits = features.astype(np.float64) @ self.weight.T + self.bias
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)
