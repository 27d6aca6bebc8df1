"""What all workers read of a run's storage is read once, and fails on all of them alike."""

import pytest
import torch.distributed as dist

from service.engine import distributed
from service.errors import RefusedError, StorageError
from service.storage import MissingError, open_storage
from service.training.relay import Relay
from tests.workers import work_together

WORKERS = 2
LARGE = distributed.PIECE_BYTES + 5


def work(folder: str) -> None:
    workers = distributed.join()
    storage = open_storage(f"{folder}/run" if workers.is_first else f"{folder}/elsewhere")
    relay = Relay(storage, workers)
    assert relay.sizes("a/") == {"a/empty": 0, "a/large": LARGE}
    assert relay.get("a/large") == bytes(LARGE)
    assert relay.get("a/empty") == b""
    with pytest.raises(MissingError, match="no-such"):
        relay.get("no-such")
    for kind in (RefusedError, StorageError):
        storage.get = fail(kind)
        with pytest.raises(kind, match=f"{kind.__name__} on worker 0") as raised:
            relay.get("a/large")
        assert type(raised.value) is kind
    assert storage.traffic.requests == (3 if workers.is_first else 0)


def fail(kind):
    def get(key):
        raise kind(f"{kind.__name__} on worker {dist.get_rank()}")

    return get


@pytest.mark.slow
def test_the_first_worker_reads_for_all(tmp_path):
    storage = open_storage(str(tmp_path / "run"))
    storage.put("a/large", bytes(LARGE))
    storage.put("a/empty", b"")
    work_together(work, WORKERS, tmp_path / "store", str(tmp_path))
