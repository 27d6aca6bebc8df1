"""Checkpoints: committed or not there, verified on load, fenced, kept and swept."""

import os
import subprocess

import pytest
import torch

from service.config import Config
from service.engine.state import new_state
from service.errors import DataError, LockError, StorageError
from service.storage import open_storage
from service.storage.lock import RunLock
from service.training import checkpoint
from service.training.checkpoint import Checkpointer, Keep, Name
from tests.conftest import tiny_config


@pytest.fixture
def config(tmp_path) -> Config:
    return tiny_config("unused", tmp_path / "run")


@pytest.fixture
def storage(config):
    return open_storage(config.run.dir)


@pytest.fixture
def state(config):
    return new_state(config, torch.device("cpu"))


@pytest.fixture
def token(storage):
    lock = RunLock(storage)
    yield lock.acquire()
    lock.release()


def saver(storage, token, keep=3):
    return Checkpointer(storage, token, Keep(keep), {"made": "here"})


def save(storage, token, state, *clocks, keep=3):
    writer = saver(storage, token, keep)
    for images in clocks:
        state.images = images
        writer.save(state)
    writer.wait()


def test_what_is_loaded_is_what_was_saved_bit_for_bit(config, storage, state, token):
    for network in (state.generator, state.ema):
        for parameter in network.parameters():
            parameter.data.normal_()
    state.attempt, state.amendments = 1, [(64, {"lr_generator": 0.1})]
    save(storage, token, state, 96)
    loaded = new_state(config, torch.device("cpu"))
    assert checkpoint.resume(storage, loaded)[0].images == 96
    assert loaded.plain() == state.plain()
    for (name, mine), theirs in zip(
        state.generator.state_dict().items(), loaded.generator.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_saving_copies_before_it_returns(config, storage, state, token):
    writer = saver(storage, token)
    before = state.generator.dense.weight.detach().clone()
    writer.save(state)
    state.generator.dense.weight.data.zero_()
    writer.wait()
    loaded = new_state(config, torch.device("cpu"))
    checkpoint.resume(storage, loaded)
    assert torch.equal(loaded.generator.dense.weight, before)


def test_a_checkpoint_without_its_manifest_is_not_there(storage, state, token):
    save(storage, token, state, 16, 32)
    name = checkpoint.find(storage)[0][-1]
    storage.delete([f"{name.folder}/{checkpoint.MANIFEST}"])
    assert checkpoint.resume(storage, state)[0].images == 16


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"\0" + data[1:], lambda data: b""]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(storage, state, token, damage):
    save(storage, token, state, 16, 32)
    key = f"{checkpoint.find(storage)[0][-1].folder}/generator.pt"
    storage.put(key, damage(storage.get(key)))
    assert checkpoint.resume(storage, state)[0].images == 16
    assert state.images == 16


@pytest.mark.parametrize("content", [b"[]", b"{", b"3", b'{"version": 1}', b'{"version": 9}'])
def test_a_manifest_that_is_none_is_passed_over(storage, state, token, content):
    save(storage, token, state, 16, 32)
    storage.put(f"{checkpoint.find(storage)[0][-1].folder}/manifest.json", content)
    assert checkpoint.resume(storage, state)[0].images == 16


def test_where_no_checkpoint_verifies_nothing_begins_anew(storage, state, token):
    save(storage, token, state, 16, 32)
    names = checkpoint.find(storage)[0]
    for name in names:
        storage.put(f"{name.folder}/ema.pt", b"damaged")
    with pytest.raises(DataError, match="none of its checkpoints") as error:
        checkpoint.resume(storage, state)
    assert all(name.folder in str(error.value) for name in names)
    assert checkpoint.find(storage)[0] == names


def test_code_in_a_checkpoint_is_not_run(storage, state, token, tmp_path):
    save(storage, token, state, 16, 32)
    name = checkpoint.find(storage)[0][-1]
    target = tmp_path / "run-by-pickle"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(target),)

    import hashlib
    import io
    import json

    buffer = io.BytesIO()
    torch.save({"x": Evil()}, buffer)
    data = buffer.getvalue()
    manifest = json.loads(storage.get(f"{name.folder}/manifest.json"))
    digest = hashlib.sha256(data).hexdigest()
    manifest["files"]["ema.pt"] = {"bytes": len(data), "sha256": digest}
    storage.put(f"{name.folder}/ema.pt", data)
    storage.put(f"{name.folder}/manifest.json", json.dumps(manifest).encode())
    assert checkpoint.resume(storage, state)[0].images == 16
    assert not target.exists()


def test_the_newest_n_stay_and_debris_is_swept(storage, state, token):
    storage.put("checkpoints/000000000008-000001-000001/generator.pt", b"debris of a crash")
    save(storage, token, state, 16, 32, 48, 64, keep=2)
    committed, everything = checkpoint.find(storage)
    assert [name.images for name in committed] == [48, 64]
    assert sorted(everything) == committed


def test_a_zombie_that_lost_the_lock_commits_nothing(storage, state, token):
    save(storage, token, state, 16)
    zombie = saver(storage, token - 1)
    state.images = 99
    zombie.save(state)
    with pytest.raises(LockError, match="taken over"):
        zombie.wait()
    assert [name.images for name in checkpoint.find(storage)[0]] == [16]


def test_what_a_higher_token_wrote_comes_first_whatever_its_clock(storage, state):
    for images in (64, 32):
        lock = RunLock(storage)
        save(storage, lock.acquire(), state, images)
        lock.release()
    assert checkpoint.resume(storage, state)[0].images == 32


def test_s3_holds_checkpoints_as_a_folder_does(config, state, s3):
    storage = open_storage(f"{s3}/checkpointed")
    lock = RunLock(storage)
    save(storage, lock.acquire(), state, 16, 32)
    lock.release()
    loaded = new_state(config, torch.device("cpu"))
    assert checkpoint.resume(storage, loaded)[0].images == 32


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_is_an_error_and_what_was_committed_stays(state, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        storage = open_storage(str(disk / "run"))
        lock = RunLock(storage)
        token = lock.acquire()
        save(storage, token, state, 16)
        (disk / "filler").write_bytes(b"x" * max(0, free_bytes(disk) - 100_000))
        writer = saver(storage, token)
        state.images = 32
        writer.save(state)
        with pytest.raises(StorageError, match=r"No space left.*make room"):
            writer.wait()
        assert checkpoint.resume(storage, state)[0].images == 16
        lock.release()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def free_bytes(path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def test_one_goes_back_to_the_latest_healthy_checkpoint_without_nan(storage, state, token):
    writer = saver(storage, token)
    weight = state.generator.dense.weight.data
    for images, level, value in (
        (16, "healthy", 1.0),
        (32, "healthy", float("nan")),
        (48, "warning", 1.0),
    ):
        state.images, state.monitor = images, {"verdict": {"level": level}}
        weight.view(-1)[0] = value
        writer.save(state)
    writer.wait()
    assert [name.images for name, *_ in checkpoint.healthy(storage, 48)] == [16]
    assert [name.images for name, *_ in checkpoint.healthy(storage, 15)] == [16]


def test_the_newest_the_best_and_the_last_healthy_stay_together():
    names = [Name(1, i, 16 * i) for i in range(1, 7)]
    keep = Keep(newest=2, best=1)
    assert keep.choose(names, healthy=names[:3], ranked=[names[0], names[1]]) == {
        names[0], names[2], *names[4:]
    }  # fmt: skip
    assert Keep(1).choose(names, healthy=names, ranked=names) == {names[5]}


def test_what_a_rewind_commits_again_pushes_out_nothing():
    names = [Name(1, 1, 16), Name(1, 2, 32), Name(1, 3, 48)]
    again = Name(1, 4, 32)
    assert Keep(2).choose([*names, again], healthy=[], ranked=[]) == {names[2], again}
    assert Keep(3).choose([*names, again], healthy=[], ranked=[]) == {names[0], names[2], again}


def test_the_copy_is_made_into_memory_that_is_kept(state):
    first = checkpoint.copy_to_cpu(state.tensors())
    state.generator.dense.weight.data.add_(1)
    second = checkpoint.copy_to_cpu(state.tensors(), first)
    assert second["generator"]["dense.weight"] is first["generator"]["dense.weight"]
    assert torch.equal(second["generator"]["dense.weight"], state.generator.dense.weight)
