"""Files of a reference's moments, as pytorch-fid writes them: a mean `mu` and a covariance `sigma`."""

import hashlib
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.documents import reason
from service.errors import UsageError
from service.metrics.feature_set import FeatureSet
from service.metrics.frechet import Moments
from service.metrics.weights import local_file

UNKNOWN_COUNT = 2**31 - 1
"""Images of a file that does not say its number; two or more are enough for a distance."""
LARGEST_BYTES = 1 << 30
_ASYMMETRY = 1e-3
_NEGATIVE = 1e-4
"""Largest part of sigma's largest eigenvalue by which rounding to float32 can make another negative."""
_NUMBERS = ("images", "resolution")
_NAMES = ("mu", "sigma", *_NUMBERS, "features", "weights")


@dataclass(frozen=True, eq=False)
class ReferenceFile:
    """Moments that were measured before, and a name that tells them from others'.

    `resolution` is the side in pixels of the images that they were measured on, where the file says it.
    """

    name: str
    moments: Moments
    resolution: int | None


def write_reference(path: Path, moments: Moments, features: FeatureSet, resolution: int) -> None:
    """Write the moments with what they were measured on and with: pixels of a side, and the network."""
    with path.open("wb") as file:
        np.savez(
            file,
            mu=moments.mean,
            sigma=moments.covariance,
            images=moments.count,
            resolution=resolution,
            features=features.name,
            weights=features.digest,
        )


def read_reference(address: str, features: FeatureSet, cache: Path | None = None) -> ReferenceFile:
    """The moments in the file at a path, or at an http(s) or s3:// address, fetched once into `cache`.

    UsageError if it is no such file, or was measured with other features.
    """
    path = local_file(address, cache, what="a .npz file of mu and sigma")
    if path.stat().st_size > LARGEST_BYTES:
        raise UsageError(
            f"{address}: over {LARGEST_BYTES} bytes, which no reference has; give another file"
        )
    data = path.read_bytes()
    arrays = _arrays(address, data)
    _check_features(address, arrays, features)
    mean, covariance = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
    count = int(arrays["images"]) if "images" in arrays else UNKNOWN_COUNT
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(address).stem)[:40]
    name = f"{stem}_{hashlib.sha256(data).hexdigest()[:8]}"
    resolution = int(arrays["resolution"]) if "resolution" in arrays else None
    return ReferenceFile(name, Moments(count, mean, covariance), resolution)


def _arrays(address: str, data: bytes) -> dict[str, NDArray]:
    """The file's arrays; UsageError unless mu is [d] and sigma [d, d], finite and a covariance."""
    try:
        sizes = [part.file_size for part in zipfile.ZipFile(io.BytesIO(data)).infolist()]
        if sum(sizes) > LARGEST_BYTES:
            raise ValueError(f"{sum(sizes)} bytes, over the limit of {LARGEST_BYTES}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _NAMES if name in file}
        mean, covariance = arrays["mu"], arrays["sigma"]
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not len(mean):
            raise ValueError(f"mu is {list(mean.shape)} and sigma {list(covariance.shape)}")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("it holds numbers that are not finite")
        if np.abs(covariance - covariance.T).max() > _ASYMMETRY * np.abs(covariance).max():
            raise ValueError("sigma is not symmetric, as a covariance is")
        eigenvalues = np.linalg.eigvalsh(covariance.astype(np.float64))
        if eigenvalues[0] < -_NEGATIVE * max(eigenvalues[-1], 0):
            raise ValueError("sigma has negative eigenvalues, which no covariance has")
        for name, unit in zip(_NUMBERS, ("images", "pixels"), strict=True):
            if name in arrays and not int(arrays[name]) >= 2:
                raise ValueError(f"of {int(arrays[name])} {unit}")
        if any(arrays[name].ndim for name in ("features", "weights") if name in arrays):
            raise ValueError("features and weights are no names")
    except Exception as error:  # a foreign file can make numpy's reader fail in any way
        raise UsageError(
            f"{address}: no reference ({reason(error)}); give a .npz file of mu [d] and sigma [d, d], as"
            " service.evaluate --save-reference and pytorch-fid write it"
        ) from error
    return arrays


def _check_features(address: str, arrays: dict[str, NDArray], features: FeatureSet) -> None:
    width = len(arrays["mu"])
    measured = str(arrays.get("features", f"a network of {width} features"))
    other_weights = "weights" in arrays and str(arrays["weights"]) != features.digest
    if width != features.width or measured not in (features.name, f"a network of {width} features"):
        raise UsageError(
            f"{address}: measured with {measured}, but evaluation.features is {features.name}, of"
            f" {features.width}; set that to what the file was measured with, or give another file"
        )
    if other_weights:
        raise UsageError(
            f"{address}: measured with other weights of {features.name}; give evaluation.weights that it"
            " was measured with, or make it anew with service.evaluate --save-reference"
        )
