"""The one door to objects: the same promises for a folder and for a real S3 server."""

import contextlib
import json
import shutil
import threading

import pytest

from cluster.local import free_ports
from service.errors import StorageError, UsageError
from service.storage import ChangedError, ConflictError, MissingError, Storage, open_storage
from service.storage.links import Folders
from tests.conftest import PLACES


@pytest.fixture(params=PLACES)
def storage(request, tmp_path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "store"))
    return open_storage(f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def test_what_was_put_is_got_whole_or_in_parts(storage):
    storage.put("a/b.bin", b"0123456789")
    assert storage.get("a/b.bin") == b"0123456789"
    assert storage.get("a/b.bin", 3, 4) == b"3456"
    assert storage.get("a/b.bin", 8) == b"89"
    assert storage.get("a/b.bin", 2, 0) == b""
    storage.put("a/b.bin", b"new")
    assert storage.get("a/b.bin") == b"new"


def test_sizes_lists_a_prefix_sorted_and_delete_takes_what_is_gone(storage):
    for key in ("b/2", "b/1", "c", "b2/x"):
        storage.put(key, key.encode())
    assert storage.sizes() == {"b/1": 3, "b/2": 3, "b2/x": 4, "c": 1}
    assert list(storage.sizes("b/")) == ["b/1", "b/2"]
    storage.delete(["b/1", "never/was"])
    assert list(storage.sizes()) == ["b/2", "b2/x", "c"]
    assert open_storage(storage.address + "/empty").sizes() == {}


def test_a_folder_that_is_deleted_while_it_is_listed_is_no_error(tmp_path, monkeypatch):
    """A worker sweeps an old checkpoint while another process looks for the newest."""
    storage = open_storage(str(tmp_path))
    for key in ("new/1", "old/1"):
        storage.put(key, b"")
    enter = Folders.enter

    def late(self, path: str, link: bool) -> bool:
        shutil.rmtree(tmp_path / "old", ignore_errors=True)
        return enter(self, path, link)

    monkeypatch.setattr(Folders, "enter", late)
    assert list(storage.sizes()) == ["new/1"]


def test_a_missing_object_is_named(storage):
    with pytest.raises(MissingError, match="no/such"):
        storage.get("no/such")


def test_a_conditional_write_wins_only_on_the_version_it_has_seen(storage):
    first = storage.put_if("lock", b"one", None)
    with pytest.raises(ConflictError):
        storage.put_if("lock", b"two", None)
    data, version = storage.get_versioned("lock")
    assert (data, version) == (b"one", first)
    second = storage.put_if("lock", b"two", version)
    with pytest.raises(ConflictError):
        storage.put_if("lock", b"three", first)
    assert storage.get_versioned("lock") == (b"two", second)


def test_of_many_that_write_at_once_one_wins(storage):
    outcomes = []

    def write(number):
        try:
            storage.put_if("race", b"%d" % number, None)
            outcomes.append(number)
        except ConflictError:
            pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert storage.get("race") == b"%d" % outcomes[0]


def test_a_missing_bucket_says_so(s3):
    for act in (lambda s: s.sizes(), lambda s: s.put("x", b""), lambda s: s.get("x")):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket: no such bucket|x: no such"):
            act(open_storage("s3://no-such-bucket/data"))


def test_wrong_keys_say_which_variables_to_check(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as error:
        open_storage(f"{s3}/x").get("y")
    assert "wrong-secret-value" not in str(error.value)


@pytest.fixture
def no_keys(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def public(s3) -> str:
    """A bucket that anyone may read."""
    client = open_storage(s3).client
    client.create_bucket(Bucket="public")
    resources = ["arn:aws:s3:::public", "arn:aws:s3:::public/*"]
    allow = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    policy = {"Version": "2012-10-17", "Statement": [allow | {"Resource": resources}]}
    client.put_bucket_policy(Bucket="public", Policy=json.dumps(policy))
    open_storage("s3://public").put("data/x", b"for all")
    return "s3://public/data"


def test_a_public_bucket_is_read_without_keys(public, no_keys):
    storage = open_storage(public)
    assert storage.get("x") == b"for all"
    assert storage.sizes() == {"x": 7}
    with pytest.raises(StorageError, match=r"not public .*; set AWS_ACCESS_KEY_ID"):
        storage.put("y", b"")


def test_missing_keys_say_which_variables_to_set(s3, no_keys):
    with pytest.raises(StorageError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        open_storage(f"{s3}/x").get("y")


def test_a_dead_endpoint_is_retried_then_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(StorageError, match=r"does not answer.*AWS_ENDPOINT_URL"):
        open_storage(f"{s3}/x", retry_s=0.5).get("y")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UsageError, match="gs://bucket"):
        open_storage("gs://bucket/x")


def test_a_folder_that_cannot_be_made_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/x"):
        open_storage(str(tmp_path / "file")).put("x", b"")


def test_an_object_written_in_pieces_is_there_whole_or_not_at_all(storage):
    """More than one part of a multipart upload, and not a whole number of them."""
    pieces = [bytes([i]) * (3 << 20) for i in range(7)]
    with storage.writer("big/a.bin") as writer:
        for piece in pieces:
            writer.write(piece)
        assert "big/a.bin" not in storage.sizes()
    assert storage.get("big/a.bin") == b"".join(pieces)
    with contextlib.suppress(KeyError), storage.writer("big/a.bin") as writer:
        for piece in pieces[::-1]:
            writer.write(piece)
        raise KeyError
    assert storage.sizes("big/") == {"big/a.bin": 21 << 20}
    assert storage.get("big/a.bin", 0, 4) == bytes(4)
    with storage.writer("big/empty"):
        pass
    assert storage.get("big/empty") == b""


def test_what_a_dead_writer_left_is_swept(storage):
    writer = storage.writer("swept/a.bin")
    writer.__enter__().write(bytes(20 << 20))
    with storage.writer("kept/a.bin") as other:
        storage.sweep("swept/")
        other.write(bytes(20 << 20))
    assert storage.sizes() == {"kept/a.bin": 20 << 20}
    with pytest.raises(StorageError):
        writer.__exit__(None, None, None)


def test_reading_past_the_end_gives_what_there_is(storage):
    storage.put("a", b"0123")
    assert storage.get("a", 2, 10) == b"23"
    assert storage.get("a", 4, 10) == b""
    assert storage.get("a", 100) == b""


def test_an_etag_tells_an_object_from_a_later_one(s3, tmp_path):
    storage = open_storage(f"{s3}/{tmp_path.name}")
    storage.put("a", b"old")
    etag = storage.entries()["a"].etag
    assert storage.get("a", 1, 2, etag) == b"ld"
    storage.put("a", b"new")
    with pytest.raises(ChangedError, match="a: its ETag"):
        storage.get("a", 1, 2, etag)
