"""Statistics of real images: kept and found again, and measured anew where the file is not theirs."""

import dataclasses
import logging
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.metrics.feature_set import FeatureSet
from service.metrics.frechet import moments
from service.metrics.real import (
    FeatureSample,
    RealImages,
    RealStatistics,
    load_statistics,
    save_statistics,
    select_rows,
)
from service.storage import FolderStorage, open_storage

FEATURES = FeatureSet(
    "mean", "0" * 64, 3, 8, torch.nn.Identity(), np.zeros((2, 3)), np.zeros(2), torch.device("cpu")
)
IMAGES = RealImages("f" * 64, 32, 3, np.arange(5), np.arange(10, 17))


def statistics() -> RealStatistics:
    random = np.random.default_rng(0)
    held_out, training = (random.normal(size=(n, 3)).astype(np.float32) for n in (5, 7))
    return RealStatistics(
        FeatureSample(held_out, np.arange(5)), FeatureSample(training, np.arange(10, 17))
    )


def assert_same(statistics: RealStatistics | None, expected: RealStatistics) -> None:
    assert statistics is not None
    for mine, theirs in (
        (statistics.held_out, expected.held_out),
        (statistics.training, expected.training),
    ):
        assert np.array_equal(mine.features, theirs.features)
        assert np.array_equal(mine.rows, theirs.rows)
        assert mine.features.dtype == np.float32
        assert mine.rows.dtype == np.int64


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path))


def kept(storage) -> str:
    """Save the statistics, and give the key of their file."""
    save_statistics(storage, IMAGES, FEATURES, statistics())
    (key,) = storage.sizes()
    return key


def test_what_is_kept_is_found_to_the_bit(storage):
    assert load_statistics(storage, IMAGES, FEATURES) is None
    key = kept(storage)
    assert key.startswith("metrics/mean-32-")
    assert_same(load_statistics(storage, IMAGES, FEATURES), statistics())


def test_statistics_are_kept_in_s3_too(s3):
    storage = open_storage(f"{s3}/statistics")
    save_statistics(storage, IMAGES, FEATURES, statistics())
    assert_same(load_statistics(storage, IMAGES, FEATURES), statistics())


def test_moments_of_all_training_images_are_kept_beside_the_samples(storage):
    whole = moments(np.random.default_rng(1).normal(size=(9, 3)))
    images = dataclasses.replace(IMAGES, whole=9)
    save_statistics(storage, images, FEATURES, dataclasses.replace(statistics(), whole=whole))
    assert load_statistics(storage, IMAGES, FEATURES) is None  # those of a sample alone are others
    found = load_statistics(storage, images, FEATURES)
    assert_same(found, statistics())
    assert found.whole.count == 9
    assert np.array_equal(found.whole.mean, whole.mean)
    assert np.array_equal(found.whole.covariance, whole.covariance)


@pytest.mark.parametrize(
    "images",
    [
        dataclasses.replace(IMAGES, fingerprint="e" * 64),
        dataclasses.replace(IMAGES, resolution=64),
        dataclasses.replace(IMAGES, channels=1),
        dataclasses.replace(IMAGES, held_out=np.arange(1, 6)),
        dataclasses.replace(IMAGES, training=np.arange(10, 16)),
    ],
    ids=["data", "resolution", "channels", "held-out rows", "fewer training images"],
)
def test_other_images_are_measured_for_themselves(storage, images):
    kept(storage)
    assert load_statistics(storage, images, FEATURES) is None


@pytest.mark.parametrize("change", [{"name": "other"}, {"digest": "1" * 64}], ids=str)
def test_other_features_are_measured_for_themselves(storage, change):
    kept(storage)
    assert load_statistics(storage, IMAGES, dataclasses.replace(FEATURES, **change)) is None


def test_a_file_of_other_images_under_this_name_is_measured_anew(storage, caplog):
    key = kept(storage)
    other = dataclasses.replace(IMAGES, fingerprint="e" * 64)
    storage.put(other.key(FEATURES), storage.get(key))
    assert load_statistics(storage, other, FEATURES) is None
    assert "event=statistics_measured_anew" in caplog.text
    assert "of other images or features" in caplog.text


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(tmp_path_factory, place, bit):
    storage = FolderStorage(str(tmp_path_factory.mktemp("flipped")))
    key = kept(storage)
    data = bytearray(storage.get(key))
    data[int(place * len(data))] ^= 1 << bit
    storage.put(key, bytes(data))
    assert load_statistics(storage, IMAGES, FEATURES) is None


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_noticed(tmp_path_factory, share):
    storage = FolderStorage(str(tmp_path_factory.mktemp("short")))
    key = kept(storage)
    data = storage.get(key)
    storage.put(key, data[: int(share * len(data))])
    assert load_statistics(storage, IMAGES, FEATURES) is None


def test_a_place_that_cannot_be_written_or_read_is_logged_and_no_error(tmp_path, caplog):
    (tmp_path / "metrics").write_text("a file where the folder would be")
    storage = open_storage(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        save_statistics(storage, IMAGES, FEATURES, statistics())
        assert load_statistics(storage, IMAGES, FEATURES) is None
    assert "event=statistics_not_kept" in caplog.text
    assert "event=statistics_measured_anew" in caplog.text
    assert os.listdir(tmp_path) == ["metrics"]


@given(count=st.integers(0, 50), seed=st.integers(0, 3))
def test_rows_are_drawn_once_each_in_order_and_by_the_seed(count, seed):
    rows = np.arange(100, 140)
    chosen = select_rows(rows, count, seed)
    assert len(chosen) == min(count, 40)
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(rows)
    assert np.array_equal(select_rows(rows, count, seed), chosen)


def test_rows_drawn_are_of_all_parts_and_other_seeds_draw_others():
    chosen = select_rows(np.arange(10_000), 1000)
    assert np.histogram(chosen, 10, (0, 10_000))[0].min() > 60
    assert not np.array_equal(chosen, select_rows(np.arange(10_000), 1000, seed=1))
