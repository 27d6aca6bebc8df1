"""What goes wrong between a bucket and a batch: a real SeaweedFS behind a proxy that spoils answers.

The transient is tried again and counted; the lasting ends it with the key and the reason; nothing
hangs, for which each test has a time limit.
"""

import numpy as np
import pytest

from service.data.dataset import Dataset, Request, read
from service.data.feeder import Feeders
from service.data.indexing import find_index
from service.data.loader import BATCHES_AHEAD, Loader
from service.data.order import Order
from service.errors import DataError
from service.storage import MissingError, StorageError, open_storage
from service.storage.s3 import PART_BYTES
from tests.faults import FaultyProxy, crawl, cut, error, short, stall, whole

pytestmark = pytest.mark.timeout(120)

REQUEST = Request(np.arange(64), 8)
PREFIX = "faults"


@pytest.fixture(scope="module")
def bucket(seaweed, digits) -> str:
    """The digits in the servers' bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        here, there = open_storage(str(digits)), open_storage(f"s3://gan/{PREFIX}")
        for key in here.sizes("shard-"):
            there.put(key, here.get(key))
        find_index(there, there, 0.05)
    return f"s3://gan/{PREFIX}"


@pytest.fixture
def proxy(bucket, s3, seaweed, monkeypatch):
    proxy = FaultyProxy(seaweed.environment["AWS_ENDPOINT_URL"], "shard-")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


def dataset_of(bucket: str, retry_s: float = 30.0, timeout_s: float = 1.0) -> Dataset:
    storage = open_storage(bucket)
    index = find_index(storage, storage, 0.05)
    order = Order(index, index.rows(False), 0, 8, 64)
    return Dataset(bucket, index, order, 1, retry_s=retry_s, timeout_s=timeout_s)


def expected(digits) -> np.ndarray:
    return read(dataset_of(str(digits)), REQUEST).images


TRANSIENT = {
    "SlowDown": error(503, "SlowDown"),
    "InternalError": error(500, "InternalError"),
    "cut in mid-body": cut,
    "a slow body": crawl,
    "no answer": stall,
    "a wrong length": short,
    "an expired token, renewed meanwhile": error(400, "ExpiredToken"),
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_the_transient_is_tried_again_and_counted(proxy, bucket, digits, fault):
    dataset = dataset_of(bucket)
    storage = open_storage(bucket, retry_s=30, timeout_s=1)
    proxy.faults.extend([fault, fault])
    name = dataset.index.names[0]
    data = storage.get(name, 1000, 200_000)
    assert data == open_storage(str(digits)).get(name, 1000, 200_000)
    assert storage.traffic.retries >= 2  # more, where a busy machine lets the true server time out
    assert (storage.traffic.requests, storage.traffic.bytes) == (1, 200_000)
    assert proxy.seen == storage.traffic.retries + 1


def test_a_burst_of_faults_changes_nothing_in_the_batches(proxy, bucket, digits):
    dataset = dataset_of(bucket)
    proxy.faults.extend(
        [error(503, "SlowDown"), cut, whole, stall, short, crawl, error(503, "SlowDown")]
    )
    with Feeders(dataset, 1, BATCHES_AHEAD + 1, 64 * 64) as feeders:
        with Loader(feeders, [REQUEST]) as loader:
            (batch,) = loader
            assert np.array_equal(batch.images, expected(digits))
        assert feeders.counts()["data_retries"] >= 6


LASTING = {
    "an object that is missing": (error(404, "NoSuchKey"), r"shard-\d+\.tar: no such object.*index"),
    "credentials that are refused": (
        error(403, "AccessDenied"),
        r"shard-\d+.*were refused.*AccessDenied",
    ),
    "credentials that expired": (error(400, "ExpiredToken"), r"shard-\d+.*have expired.*renew"),
    "a server that is always busy": (error(503, "SlowDown"), r"shard-\d+.*SlowDown.*retried for 1 s"),
    "bodies that never end": (crawl, r"shard-\d+.*retried for 1 s"),
    "no answer at all": (stall, r"shard-\d+.*does not answer"),
}


@pytest.mark.parametrize(("fault", "words"), LASTING.values(), ids=LASTING)
def test_the_lasting_ends_it_with_the_key_and_the_reason(proxy, bucket, fault, words):
    dataset = dataset_of(bucket, retry_s=1.0)
    proxy.lasting = fault
    with Feeders(dataset, 1, BATCHES_AHEAD + 1, 64 * 64) as feeders:
        loader = Loader(feeders, [REQUEST])
        with pytest.raises((DataError, StorageError), match=words):
            next(loader)


def test_a_shard_that_was_cut_short_meanwhile_is_named(proxy, bucket, seaweed, monkeypatch):
    dataset = dataset_of(bucket, timeout_s=30.0)
    straight = open_storage(bucket)
    name = dataset.index.names[1]
    content = straight.get(name)
    straight.put(name, content[:5000])
    try:
        with pytest.raises(DataError, match=rf"{name}.*(changed since the index was made|cut short)"):
            read(dataset, Request(np.arange(1600), 4))
        dataset.index.etags.clear()  # as of a server that has none
        with pytest.raises(DataError, match=rf"{name}.*cut short"):
            read(dataset, Request(np.arange(1600), 4))
    finally:
        straight.put(name, content)


def test_the_end_of_a_run_does_not_wait_for_a_server_that_is_silent(proxy, bucket):
    """However long it would be tried again."""
    dataset = dataset_of(bucket, retry_s=3600, timeout_s=3600)
    proxy.lasting = stall
    with Feeders(dataset, 2, BATCHES_AHEAD + 1, 64 * 64) as feeders:
        Loader(feeders, [REQUEST])


def test_an_upload_in_parts_outlasts_faults_too(proxy, bucket, monkeypatch):
    storage = open_storage(f"{bucket}/parts", retry_s=30, timeout_s=1)
    data = bytes(range(256)) * (PART_BYTES // 128)
    proxy.faults.extend([cut, error(503, "SlowDown")])
    with storage.writer("shard-big.tar") as writer:
        writer.write(data)
    assert storage.get("shard-big.tar") == data
    storage.delete(["shard-big.tar"])
    with pytest.raises(MissingError):
        storage.get("shard-big.tar")
