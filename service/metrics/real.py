"""Statistics of the real images, stored beside the run: the same for every checkpoint."""

import hashlib
import json
import logging
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from service.errors import StorageError
from service.metrics.feature_set import FeatureSet
from service.metrics.frechet import Moments
from service.random import philox
from service.storage import MissingError, Storage

log = logging.getLogger(__name__)

# Raise it with any change that gives the same network other features of the same images.
VERSION = 1
FOLDER = "metrics/"


@dataclass(frozen=True, eq=False)
class RealImages:
    """Which real images are measured: rows of the index, at a resolution, in 1 or 3 channels.

    `held_out` and `training` are samples; `whole` is how many training images give their moments, all
    there are, or 0 if these are not needed.
    """

    fingerprint: str
    resolution: int
    channels: int
    held_out: NDArray[np.int64]
    training: NDArray[np.int64]
    whole: int = 0

    def about(self, features: FeatureSet) -> dict[str, str | int]:
        """Everything that the features of these images depend on."""
        return {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "resolution": self.resolution,
            "channels": self.channels,
            "features": features.name,
            "weights": features.digest,
            "held_out": len(self.held_out),
            "training": len(self.training),
            "whole": self.whole,
            "rows": hashlib.sha256(self.held_out.tobytes() + self.training.tobytes()).hexdigest(),
        }

    def key(self, features: FeatureSet) -> str:
        """The storage key of these images' statistics in these features."""
        digest = hashlib.sha256(json.dumps(self.about(features)).encode()).hexdigest()
        return f"{FOLDER}{features.name}-{self.resolution}-{digest[:16]}.safetensors"


@dataclass(frozen=True, eq=False)
class FeatureSample:
    """Features float32 [n, d] of real images, and their rows int64 [n] in the index."""

    features: NDArray[np.float32]
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RealStatistics:
    """Features of samples of held-out and of training images, and the moments of all training images.

    The moments are None if they were not wanted.
    """

    held_out: FeatureSample
    training: FeatureSample
    whole: Moments | None = None


def select_rows(rows: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """`count` of the rows, or all if there are fewer, drawn by `seed`, in ascending order."""
    order = philox.permutation(philox.key("real images", seed), len(rows))
    return np.sort(rows[order[:count]])


def save_statistics(
    storage: Storage, images: RealImages, features: FeatureSet, statistics: RealStatistics
) -> None:
    """Store the statistics for later; a failure to write is logged, and no error."""
    tensors: dict[str, NDArray] = {
        "held_out.features": statistics.held_out.features,
        "held_out.rows": statistics.held_out.rows,
        "training.features": statistics.training.features,
        "training.rows": statistics.training.rows,
        "about": np.frombuffer(json.dumps(images.about(features)).encode(), np.uint8),
    }
    if statistics.whole:
        tensors["whole.count"] = np.array(statistics.whole.count)
        tensors["whole.mean"] = statistics.whole.mean
        tensors["whole.covariance"] = statistics.whole.covariance
    tensors["sha256"] = _digest(tensors)
    key = images.key(features)
    try:
        storage.put(key, safetensors.numpy.save(tensors))
    except StorageError as error:
        log.warning("event=statistics_not_kept key=%s error=%s", key, error)


def load_statistics(storage: Storage, images: RealImages, features: FeatureSet) -> RealStatistics | None:
    """The stored statistics of these images in these features, or None if there are none.

    Statistics that cannot be read, are damaged or belong to others are logged and also give None:
    measure again and save.
    """
    key = images.key(features)
    try:
        return _parse(storage.get(key), images, features)
    except MissingError:
        return None
    except (StorageError, SafetensorError, ValueError, KeyError) as error:
        log.warning("event=statistics_measured_anew file=%s error=%s", storage.url(key), error)
        return None


def _parse(data: bytes, images: RealImages, features: FeatureSet) -> RealStatistics:
    tensors = safetensors.numpy.load(data)
    if not np.array_equal(tensors.pop("sha256"), _digest(tensors)):
        raise ValueError("it is not what was written")
    if json.loads(tensors["about"].tobytes()) != images.about(features):
        raise ValueError("it is of other images or features")
    held_out, training = (
        FeatureSample(tensors[f"{part}.features"], tensors[f"{part}.rows"])
        for part in ("held_out", "training")
    )
    whole = None
    if images.whole:
        mean, covariance = tensors["whole.mean"], tensors["whole.covariance"]
        whole = Moments(int(tensors["whole.count"]), mean, covariance)
    return RealStatistics(held_out, training, whole)


def _digest(tensors: dict[str, NDArray]) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape};".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return np.frombuffer(digest.digest(), np.uint8)
