"""Files of a reference's moments: what is written is read, and what is no such file is refused."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import UsageError
from service.metrics.feature_set import FeatureSet
from service.metrics.frechet import Moments, MomentsSum, frechet_distance, moments
from service.metrics.reference import read_reference, write_reference

WIDTH = 5


def network(name: str = "mean", digest: str = "0" * 64, width: int = WIDTH) -> FeatureSet:
    head = np.zeros((2, width)), np.zeros(2)
    return FeatureSet(name, digest, width, 8, torch.nn.Identity(), *head, torch.device("cpu"))


def some(count: int = 40, seed: int = 0) -> Moments:
    return moments(np.random.default_rng(seed).normal(2, 3, (count, WIDTH)))


def test_what_is_written_is_read_and_named_after_the_file_and_its_bytes(tmp_path):
    path = tmp_path / "my faces.v2.npz"
    write_reference(path, some(), network(), 32)
    found = read_reference(str(path), network())
    assert found.name == f"my_faces_v2_{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    assert (found.moments.count, found.resolution) == (40, 32)
    assert frechet_distance(found.moments, some()) == pytest.approx(0, abs=1e-9)


def test_a_file_in_pytorch_fids_form_is_read(tmp_path):
    path = tmp_path / "cifar.npz"
    np.savez_compressed(path, mu=some().mean, sigma=some().covariance)
    found = read_reference(str(path), network())
    assert np.array_equal(found.moments.mean, some().mean)
    assert found.resolution is None
    assert frechet_distance(found.moments, some(seed=1)) == pytest.approx(
        frechet_distance(some(), some(seed=1))
    )


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(5)}, "sigma"),
        ({"mu": np.zeros(5), "sigma": np.eye(4)}, r"mu is \[5\] and sigma \[4, 4\]"),
        ({"mu": np.zeros((5, 1)), "sigma": np.eye(5)}, r"mu is \[5, 1\]"),
        ({"mu": np.zeros(5), "sigma": np.full((5, 5), np.nan)}, "not finite"),
        ({"mu": np.zeros(5), "sigma": np.triu(np.ones((5, 5)))}, "not symmetric"),
        ({"mu": np.zeros(5), "sigma": -np.eye(5)}, "negative eigenvalues"),
        ({"mu": np.zeros(5), "sigma": np.eye(5), "resolution": 0}, "of 0 pixels"),
        ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "no reference"),
        ({"mu": np.array(["a"] * 5), "sigma": np.eye(5)}, "no reference"),
        ({"mu": np.zeros(5), "sigma": np.eye(5), "images": 1}, "of 1 images"),
        ({"mu": np.zeros(5), "sigma": np.eye(5), "images": "many"}, "no reference"),
        ({"mu": np.zeros(5), "sigma": np.eye(5), "features": np.eye(2)}, "are no names"),
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, r"7 features, but evaluation.features is mean, of 5"),
        (
            {"mu": np.zeros(5), "sigma": np.eye(5), "features": "other"},
            "measured with other, but evaluation.features is mean",
        ),
        (
            {"mu": np.zeros(5), "sigma": np.eye(5), "features": "mean", "weights": "1" * 64},
            "measured with other weights of mean",
        ),
    ],
)
def test_other_files_are_refused_by_name_with_the_remedy(arrays, words, tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=words) as error:
        read_reference(str(path), network())
    assert str(error.value).startswith(str(path))
    assert "give" in str(error.value)


def swollen(path: Path) -> None:
    """Two gigabytes of zeros, which take two megabytes."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("mu.npy", "w") as part,
    ):
        for _ in range(33):
            part.write(bytes(1 << 25))


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no archive"),
        lambda path: path.write_bytes(b""),
        swollen,
    ],
)
def test_files_that_are_no_archive_or_too_large_are_refused(write, tmp_path):
    path = tmp_path / "reference.npz"
    write(path)
    with pytest.raises(UsageError, match=r"reference\.npz: no reference \(.*give a .npz file of mu"):
        read_reference(str(path), network())
    with pytest.raises(UsageError, match=r"no such file; give the path or the URL of a \.npz file"):
        read_reference(f"{path}.none", network())


def test_moments_of_parts_are_those_of_the_whole():
    features = np.random.default_rng(0).normal(1e4, 1, (300, WIDTH)).astype(np.float32)
    total = MomentsSum(features[:7].mean(0))
    for start in range(0, 300, 128):
        total.add(features[start : start + 128])
    found = total.moments()
    assert found.count == 300
    exact = features.astype(np.float64)
    assert found.mean == pytest.approx(exact.mean(0), rel=1e-12)
    assert found.covariance == pytest.approx(np.cov(exact.T), rel=1e-9, abs=1e-9)
