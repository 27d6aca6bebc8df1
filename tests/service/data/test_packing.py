"""Packing: what lands in the shards, that it is the same bytes again, and bad input."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from service import pack
from service.data import packing
from service.data.index import read_index
from service.data.indexing import MARKS_KEY, find_index
from service.data.packing import check_digests
from service.data.stream import read_samples
from service.errors import DataError, LockError, UsageError
from service.storage import open_storage
from tests.conftest import PLACES, start_command


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the marks, which hold times."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != MARKS_KEY}


def test_webdatasets_own_reader_finds_every_sample_where_the_index_says(digits):
    storage = open_storage(str(digits))
    index = read_index(storage)
    urls = [str(digits / name) for name in index.names]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    ours = read_samples(storage, index, np.arange(len(index)))
    assert len(theirs) == len(ours) == 1797
    for row, sample in enumerate(theirs):
        assert sample["__key__"] == index.keys[row].as_py()
        assert sample["png"] == ours[row]
        assert int(sample["cls"]) == index.label[row]


def test_the_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    storage = open_storage(str(digits))
    index = read_index(storage)
    bunch = load_digits()
    for row in range(0, len(index), 100):
        number = int(index.keys[row].as_py())
        (data,) = read_samples(storage, index, np.array([row]))
        pixels = np.asarray(Image.open(io.BytesIO(data)), float)
        assert pixels.shape == (32, 32)
        small = pixels.reshape(8, 4, 8, 4).mean((1, 3))
        assert np.corrcoef(small.ravel(), bunch.images[number].ravel())[0, 1] > 0.9
        assert index.label[row] == bunch.target[number]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_after_a_kill_the_same_command_makes_only_what_is_missing(place, tmp_path, request):
    """And ends in the bytes of a packing that nobody disturbed."""
    common = ["--channels", "gray", "--shard-samples", "100", "--workers", "1"]
    pack.main(["digits", str(tmp_path / "whole"), *common])
    whole = open_storage(str(tmp_path / "whole"))
    if place == "s3":
        whole.delete([MARKS_KEY])  # buckets need no marks: they have ETags
    address = str(tmp_path / "out") if place == "folder" else f"{request.getfixturevalue('s3')}/killed"
    storage = open_storage(address)
    command = start_command("service.pack", "digits", address, *common)
    while len(storage.sizes("packing/shard-")) < 3:
        assert command.poll() is None, command.communicate()[0]
    command.kill()
    command.communicate()
    finished = [
        key.removeprefix("packing/").removesuffix(".json") for key in storage.sizes("packing/shard-")
    ]
    assert "index.parquet" not in storage.sizes()
    assert len(finished) < len(whole.sizes()) - 1
    with pytest.raises(DataError, match="the same pack command again"):
        find_index(storage, storage, 0.0)
    changed = {finished[0]: b"not of this size"}
    for key, data in changed.items():
        storage.put(key, data)
    made: list[str] = []
    writer = type(storage).writer

    def watch(self, key):
        made.append(key)
        return writer(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(storage), "writer", watch)
        pack.main(["digits", address, *common])
    assert set(made) == {k for k in whole.sizes("shard-") if k not in finished or k in changed}
    assert storage.sizes().keys() == whole.sizes().keys()
    for key in whole.sizes("shard-"):
        assert storage.get(key) == whole.get(key)
    assert read_index(storage).fingerprint() == read_index(whole).fingerprint()


def test_too_many_unreadable_files_end_it_without_an_index(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for i in range(4):
        (source / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="4 unreadable images"):
        pack.main([str(source), str(tmp_path / "out"), "--max-unreadable", "3"])
    assert not (tmp_path / "out" / "index.parquet").exists()


@pytest.mark.slow
def test_a_missing_shard_or_a_damaged_index_is_mended_by_packing_again(digits, tmp_path):
    arguments = ["digits", str(tmp_path), "--channels", "gray", "--shard-samples", "500"]
    for damage in (
        lambda: (tmp_path / "shard-000001.tar").unlink(),
        lambda: (tmp_path / "index.parquet").write_bytes(b"junk"),
    ):
        pack.main(arguments)
        damage()
        pack.main(arguments)
        assert contents(tmp_path) == contents(digits)


def test_an_s3_destination_gets_the_same_bytes(digits, s3):
    pack.main(["digits", f"{s3}/packed", "--channels", "gray", "--shard-samples", "500"])
    storage = open_storage(f"{s3}/packed")
    shards = {key: data for key, data in contents(digits).items() if key.endswith(".tar")}
    assert {key: storage.get(key) for key in storage.sizes("shard-")} == shards
    index = read_index(storage)
    assert index.fingerprint() == read_index(open_storage(str(digits))).fingerprint()
    assert index.etags == {key: entry.etag for key, entry in storage.entries("shard-").items()}


def test_the_index_says_how_it_was_made(digits):
    about = read_index(open_storage(str(digits))).about
    assert (about.source, about.resolution, about.channels) == ("digits", 32, 1)
    assert about.recipe is not None
    assert about.recipe["shard_samples"] == 500


@pytest.mark.slow
def test_verify_finds_an_image_that_is_damaged_and_packing_again_mends_a_changed_shard(tmp_path, capsys):
    arguments = ["digits", str(tmp_path), "--channels", "gray", "--verify"]
    pack.main(arguments)
    storage = open_storage(str(tmp_path))
    index = read_index(storage)
    shard = tmp_path / index.names[0]
    data = bytearray(shard.read_bytes())
    good = bytes(data)
    data[int(index.offset[7]) + 60 : int(index.offset[7]) + 90] = bytes(30)
    shard.write_bytes(data)
    with pytest.raises(DataError, match=index.describe(7)):
        pack.main(arguments)
    renamed = bytearray(good)
    at = good.index(b".cls")
    renamed[at - 1] ^= 1
    start = at - at % 512
    header = renamed[start : start + 512]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    renamed[start : start + 512] = header
    shard.write_bytes(renamed)
    pack.main(arguments)
    printed = capsys.readouterr()
    assert f"packing again: {shard}: holds other samples" in printed.err
    assert "verified: 1797 images" in printed.out
    assert shard.read_bytes() == good


def test_verify_finds_a_byte_that_no_image_holds(tmp_path):
    arguments = ["digits", str(tmp_path), "--channels", "gray", "--resolution", "8", "--verify"]
    pack.main(arguments)
    shard = next(tmp_path.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[-1] = 0xFF  # behind the end mark
    shard.write_bytes(data)
    index = read_index(open_storage(str(tmp_path)))
    with pytest.raises(DataError, match="its SHA-256 is not the one that pack wrote"):
        check_digests(open_storage(str(tmp_path)), index)


def test_shards_that_others_wrote_are_not_touched(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard-000000.tar")) as writer:
        writer.write({"__key__": "a", "txt": "precious"})
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"1 shards that pack did not write, such as shard-000000\.tar"):
        pack.main(["digits", str(tmp_path), "--channels", "gray"])
    assert {k: v for k, v in contents(tmp_path).items() if k in before} == before
    pack.main(["digits", str(tmp_path), "--channels", "gray", "--overwrite"])
    assert len(read_index(open_storage(str(tmp_path)))) == 1797


def test_packing_over_what_is_there_reads_an_image_before_it_deletes(tmp_path):
    out, images = tmp_path / "out", tmp_path / "images"
    pack.main(["digits", str(out), "--channels", "gray"])
    before = contents(out)
    images.mkdir()
    (images / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no image could be read; check its files"):
        pack.main([str(images), str(out), "--overwrite"])
    assert contents(out) == before


@pytest.mark.slow
def test_two_packs_of_one_destination_do_not_disturb_each_other(tmp_path):
    storage = open_storage(str(tmp_path / "out"))
    first = start_command("service.pack", "digits", storage.address, "--shard-samples", "20")
    while not storage.sizes("packing/shard-"):
        assert first.poll() is None, first.communicate()[0]
    with pytest.raises(LockError, match=f"in use by process {first.pid}"):
        pack.main(["digits", storage.address, "--seed", "1"])
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output
    assert not (tmp_path / "out" / "packing").exists()
    pack.main(["digits", storage.address, "--shard-samples", "20", "--verify"])


def test_the_number_of_workers_changes_no_byte(digits, tmp_path):
    arguments = ["digits", str(tmp_path), "--channels", "gray", "--shard-samples", "500"]
    pack.main([*arguments, "--workers", "7"])
    assert contents(tmp_path) == contents(digits)


def spoiled(part: dict, **changes: object) -> bytes:
    return json.dumps(part | {"part": part["part"] | changes}).encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda part: b"",
        lambda part: b"\0",
        lambda part: b"[]",
        lambda part: json.dumps(part["part"]).encode(),  # as written before documents had versions
        lambda part: json.dumps(part | {"version": 3}).encode(),
        lambda part: json.dumps(part | {"more": 1}).encode(),
        lambda part: spoiled(part, more=1),
        lambda part: spoiled(part, size=-1),
        lambda part: spoiled(part, size="1"),
        lambda part: spoiled(part, labels=[0, "1"]),
        lambda part: spoiled(part, offsets=part["part"]["offsets"][:1]),
    ],
)
def test_a_shard_whose_notes_are_damaged_or_of_another_version_is_packed_anew(
    spoil, tmp_path, monkeypatch, caplog
):
    """And no other one."""
    for i in range(6):
        (tmp_path / "source").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(tmp_path / "source" / f"{i}.png")
    arguments = [str(tmp_path / "source"), "--resolution", "16", "--shard-samples", "2"]
    pack.main([*arguments, str(tmp_path / "whole")])
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_index", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pack.main([*arguments, str(folder)])
    file = folder / "packing" / "shard-000001.tar.json"
    file.write_bytes(spoil(json.loads(file.read_text())))
    made = []
    writer = packing._write_shard
    monkeypatch.setattr(packing, "_write_shard", lambda *a: made.append(a[3]) or writer(*a))
    pack.main([*arguments, str(folder)])
    assert made == ["shard-000001.tar"]
    assert f"{file}: " in caplog.text
    assert contents(folder) == contents(tmp_path / "whole")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
