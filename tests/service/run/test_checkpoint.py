"""Checkpoints: committed or not there, verified on load, fenced, kept and swept."""

import contextlib
import hashlib
import io
import json
import math
import os
import subprocess

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.collapse.state import CollapseState, Kind, Level, Measurement, Verdict
from service.config import Config
from service.engine.plain import PARTS
from service.engine.state import new_state
from service.errors import DataError, LockError, StorageError
from service.run import checkpoint, commits
from service.run.checkpoint import Checkpointer, Keep
from service.run.commits import Name
from service.storage import open_storage
from service.storage.lock import RunLock
from tests.conftest import tiny_config
from tests.runs import sealed


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
    for clock in clocks:
        state.clock = clock
        writer.save(state)
    writer.wait()


def test_what_is_loaded_is_what_was_saved_bit_for_bit(config, storage, state, token):
    for network in (state.generator, state.ema):
        for parameter in network.parameters():
            parameter.data.normal_()
    state.attempt, state.amendments = 1, ((64, {"training.lr_generator": 0.1}),)
    save(storage, token, state, 96)
    loaded = new_state(config, torch.device("cpu"))
    assert checkpoint.resume(storage, loaded)[0].clock == 96
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
    name = commits.find(storage)[0][-1]
    storage.delete([f"{name.folder}/{commits.MANIFEST}"])
    assert checkpoint.resume(storage, state)[0].clock == 16


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"\0" + data[1:], lambda data: b""]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(storage, state, token, damage):
    save(storage, token, state, 16, 32)
    key = f"{commits.find(storage)[0][-1].folder}/generator.pt"
    storage.put(key, damage(storage.get(key)))
    assert checkpoint.resume(storage, state)[0].clock == 16
    assert state.clock == 16


@pytest.mark.parametrize("content", [b"[]", b"{", b"3", b'{"version": 1}', b'{"version": 9}'])
def test_a_manifest_that_is_none_is_passed_over(storage, state, token, content):
    save(storage, token, state, 16, 32)
    storage.put(f"{commits.find(storage)[0][-1].folder}/manifest.json", content)
    assert checkpoint.resume(storage, state)[0].clock == 16


def test_where_no_checkpoint_verifies_nothing_begins_anew(storage, state, token):
    save(storage, token, state, 16, 32)
    names = commits.find(storage)[0]
    for name in names:
        storage.put(f"{name.folder}/ema.pt", b"damaged")
    with pytest.raises(DataError, match="all its checkpoints are damaged") as error:
        checkpoint.resume(storage, state)
    assert all(name.folder in str(error.value) for name in names)
    assert commits.find(storage)[0] == names


def test_code_in_a_checkpoint_is_not_run(storage, state, token, tmp_path):
    save(storage, token, state, 16, 32)
    name = commits.find(storage)[0][-1]
    target = tmp_path / "run-by-pickle"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(target),)

    buffer = io.BytesIO()
    torch.save({"x": Evil()}, buffer)
    data = buffer.getvalue()
    manifest = json.loads(storage.get(f"{name.folder}/manifest.json"))
    digest = hashlib.sha256(data).hexdigest()
    manifest["files"]["ema.pt"] = {"bytes": len(data), "sha256": digest}
    storage.put(f"{name.folder}/ema.pt", data)
    storage.put(f"{name.folder}/manifest.json", sealed(manifest))
    assert checkpoint.resume(storage, state)[0].clock == 16
    assert not target.exists()


def test_the_newest_n_stay_and_debris_is_swept(storage, state, token):
    storage.put("checkpoints/000000000008-000001-000001/generator.pt", b"debris of a crash")
    save(storage, token, state, 16, 32, 48, 64, keep=2)
    committed, everything = commits.find(storage)
    assert [name.clock for name in committed] == [48, 64]
    assert sorted(everything) == committed


def test_a_zombie_that_lost_the_lock_commits_nothing(storage, state, token):
    save(storage, token, state, 16)
    zombie = saver(storage, token - 1)
    state.clock = 99
    zombie.save(state)
    with pytest.raises(LockError, match="taken over"):
        zombie.wait()
    assert [name.clock for name in commits.find(storage)[0]] == [16]


def test_one_that_is_overtaken_while_it_commits_sweeps_nothing_of_the_next(storage, state):
    lock = RunLock(storage)
    token = lock.acquire()
    save(storage, token, state, 16, keep=1)
    orphan = saver(storage, token, keep=1)
    orphan.before_commit = lambda: storage.put(
        f"checkpoints/000000000048-{token + 1:06d}-000009/ema.pt", b"what the next group writes"
    )
    orphan.after_commit = lambda *_: lock.advance(storage)
    state.clock = 32
    orphan.save(state)
    orphan.wait()  # it was the holder when it committed
    assert [name.token for name in commits.find(storage)[1]].count(token + 1) == 1
    state.clock = 48
    orphan.save(state)
    with pytest.raises(LockError, match="taken over"):
        orphan.wait()
    assert {name.clock for name in commits.find(storage)[0]} == {32}


def test_what_a_higher_token_wrote_comes_first_whatever_its_clock(storage, state):
    for clock in (64, 32):
        lock = RunLock(storage)
        save(storage, lock.acquire(), state, clock)
        lock.release()
    assert checkpoint.resume(storage, state)[0].clock == 32


def test_s3_holds_checkpoints_as_a_folder_does(config, state, s3):
    storage = open_storage(f"{s3}/checkpointed")
    lock = RunLock(storage)
    save(storage, lock.acquire(), state, 16, 32)
    lock.release()
    loaded = new_state(config, torch.device("cpu"))
    assert checkpoint.resume(storage, loaded)[0].clock == 32


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
        state.clock = 32
        writer.save(state)
        with pytest.raises(StorageError, match=r"No space left.*free some space"):
            writer.wait()
        assert checkpoint.resume(storage, state)[0].clock == 16
        lock.release()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def free_bytes(path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def test_one_goes_back_to_the_latest_healthy_checkpoint_without_nan(storage, state, token):
    writer = saver(storage, token)
    weight = state.generator.dense.weight.data
    for clock, verdict, value in (
        (16, Verdict(), 1.0),
        (32, Verdict(), float("nan")),
        (48, Verdict(Level.WARNING, Kind.DIVERGENCE, "words", 32), 1.0),
    ):
        state.clock, state.collapse = clock, CollapseState(verdict=verdict)
        weight.view(-1)[0] = value
        writer.save(state)
    writer.wait()
    assert [name.clock for name, *_ in checkpoint.healthy(storage, 48)] == [16]
    assert [name.clock for name, *_ in checkpoint.healthy(storage, 15)] == [16]


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


# What is read back --------------------------------------------------------------------------------


def rewrite(storage, change, file: str = "", data: bytes = b"") -> str:
    """Change the newest manifest, as JSON, by `change`; with `file`, put other data in, and its digest.

    Returns the manifest's key.
    """
    key = f"{commits.find(storage)[0][-1].folder}/{commits.MANIFEST}"
    manifest = json.loads(storage.get(key))
    change(manifest)
    if file:
        storage.put(key.replace(commits.MANIFEST, file), data)
        manifest["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    storage.put(key, sealed(manifest))
    return key


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("", {"version": 1}, "has version 1, but this service reads version 2; use the version"),
        ("", {"version": None}, "has no version, but this service reads version 2"),
        ("", {"mood": "good"}, r"damaged \(mood: Extra inputs are not permitted\); restore it"),
        ("", {"token": -1}, r"damaged \(token: Input should be greater than or equal to 0\)"),
        ("", {"sequence": 7}, "belongs to another checkpoint; restore it from a copy, or choose"),
        ("", {"files": []}, r"damaged \(files: Input should be an object\)"),
        (
            "",
            {"files": {"../lock.json": {"bytes": 1, "sha256": "0" * 64}}},
            r"damaged \(files: Value error, files are \['\.\./lock\.json'\], not",
        ),
        ("files", {"ema.pt": {"bytes": 1, "sha256": "ab"}}, r"damaged \(files\.ema\.pt\.sha256: String"),
        (
            "files",
            {"ema.pt": {"bytes": -1, "sha256": "0" * 64}},
            r"damaged \(files\.ema\.pt\.bytes: Input",
        ),
        ("", {"metrics": {"fid": "low"}}, r"damaged \(metrics\.fid: Input should be a valid number\)"),
        ("", {"config": None}, r"damaged \(config: Input should be an object\)"),
        ("", {"state": {"seed": 0}}, r"damaged \(state\.clock: Field required\)"),
        ("state", {"clock": 2**63}, r"damaged \(state\.clock: Input should be less than or equal to"),
        ("state", {"clock": 48}, "belongs to another checkpoint"),
        ("state", {"seed": 0.5}, r"damaged \(state\.seed: Input should be a valid integer"),
        ("state", {"attempt": True}, r"damaged \(state\.attempt: Input should be a valid integer\)"),
        ("state", {"amendments": [[16]]}, r"damaged \(state\.amendments\.0\.1: Field required\)"),
        (
            "state",
            {"amendments": [[16, {}]] * 1001},
            r"damaged \(state\.amendments: .*at most 1000 items",
        ),
        ("state", {"mood": "good"}, r"damaged \(state\.mood: Unexpected keyword"),
        (
            "state",
            {"collapse": {"verdict": {"level": "dire"}}},
            r"damaged \(state\.collapse\.verdict\.lev",
        ),
    ],
    ids=lambda given: str(given)[:60],
)
def test_a_manifest_that_no_training_writes_is_named_and_passed_over(
    storage, state, token, caplog, part, change, words
):
    save(storage, token, state, 16, 32)
    key = rewrite(storage, lambda manifest: (manifest[part] if part else manifest).update(change))
    name = commits.find(storage)[0][-1]
    with pytest.raises(DataError, match=rf"^{storage.url(key)}: {words}"):
        commits.read_manifest(storage, name)
    assert checkpoint.resume(storage, state)[0].clock == 16
    assert f"event=checkpoint_refused name={name.folder} error={storage.url(key)}" in caplog.text
    assert [name.clock for name, *_ in checkpoint.healthy(storage, 48)] == [16]


def test_metrics_that_are_no_numbers_and_what_was_measured_come_back_as_they_were(storage, state, token):
    state.clock, state.attempt = 64, 3
    state.amendments = ((16, {"training.lr_generator": 1e-4}), (32, {"training.d_steps": 2.0}))
    measured = Measurement(48, "hold 8 px", 3, {"loss_d": math.inf, "shift": -0.0})
    verdict = Verdict(Level.COLLAPSED, Kind.NUMERIC, "not a number", 32)
    state.collapse = CollapseState((measured,), verdict, ("checkpoints/a",), 32)
    writer = saver(storage, token)
    writer.save(state, {"fid": math.nan, "loss_d": -math.inf})
    writer.wait()
    (name,) = commits.find(storage)[0]
    manifest = commits.read_manifest(storage, name)
    assert (manifest.token, manifest.sequence, manifest.config) == (token, 1, {"made": "here"})
    assert repr(manifest.metrics) == "{'fid': nan, 'loss_d': -inf}"
    assert repr(manifest.state) == repr(state.plain())
    assert not manifest.is_healthy


@pytest.mark.parametrize("content", [[1, 2], 3, None], ids=str)
def test_a_file_that_holds_no_tensors_by_name_is_passed_over(storage, state, token, content):
    save(storage, token, state, 16, 32)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    rewrite(storage, lambda manifest: None, "ema.pt", buffer.getvalue())
    assert checkpoint.resume(storage, state)[0].clock == 16


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("ema.pt", {"dense.weight": torch.zeros(2)}),
        ("ema.pt", {"dense.weight": 3}),
        ("optimizer_g.pt", {"state": {}, "param_groups": [3]}),
        ("optimizer_g.pt", {"state": 3}),
        ("spectra.pt", {"generator/dense.weight": "long"}),
    ],
    ids=str,
)
def test_tensors_of_other_networks_say_go_on_with_the_version_that_made_them(
    storage, state, token, file, content
):
    save(storage, token, state, 16, 32)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    rewrite(storage, lambda manifest: None, file, buffer.getvalue())
    with pytest.raises(
        DataError, match=r"made by a version of the service with other networks.*use that version"
    ):
        checkpoint.resume(storage, state)


def test_a_checkpoint_that_lacks_a_part_is_not_resumed_from(storage, state, token):
    save(storage, token, state, 16, 32)
    rewrite(storage, lambda manifest: [manifest["files"].pop(f"{part}.pt") for part in PARTS[:4]])
    assert checkpoint.resume(storage, state)[0].clock == 16


def test_a_file_larger_than_its_networks_is_not_opened(storage, state, token, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "SLACK_BYTES", 200_000)
    save(storage, token, state, 16, 32)
    rewrite(storage, lambda manifest: None, "ema.pt", bytes(5_000_000))
    assert checkpoint.resume(storage, state)[0].clock == 16
    assert "5000000 bytes, but its networks have at most" in caplog.text


def test_a_manifest_in_which_a_bit_changed_is_passed_over(storage, state, token):
    save(storage, token, state, 16, 32)
    key = f"{commits.find(storage)[0][-1].folder}/{commits.MANIFEST}"
    manifest = json.loads(storage.get(key))
    manifest["state"]["seed"] += 1
    storage.put(key, json.dumps(manifest).encode())
    with pytest.raises(DataError, match="not as it was written"):
        commits.read_manifest(storage, commits.find(storage)[0][-1])
    del manifest["digest"]  # as an earlier version wrote it
    storage.put(key, json.dumps(manifest).encode())
    assert checkpoint.resume(storage, state)[0].clock == 32


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_committed_as_tensors_nothing_but_a_data_error_comes_of_them(
    storage, state, token, data
):
    if not commits.find(storage)[0]:
        save(storage, token, state, 16, 32)
    buffer = io.BytesIO()
    torch.save({"dense.weight": torch.zeros(3), "kept": {"steps": [1, 2.0]}}, buffer)
    content = bytearray(buffer.getvalue())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        places = st.integers(0, len(content) - 1)
        changes = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)
        for place, value in data.draw(changes, "bytes"):
            content[place] = value
    rewrite(storage, lambda manifest: None, "ema.pt", bytes(content))
    name = commits.find(storage)[0][-1]
    with contextlib.suppress(DataError):
        tensors, _ = checkpoint.read(storage, name, ["ema"])
        assert isinstance(tensors["ema"], dict)
