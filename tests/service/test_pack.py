"""Packing: what lands in the shards, that it is the same bytes again, and bad input."""

import gzip
import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from service import pack
from service.data.index import find_index, read_index
from service.data.stream import read_samples
from service.errors import DataError, LockError, UsageError
from service.sources import open_source
from service.storage import open_storage
from tests.conftest import need_package, start_command


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


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


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_after_a_kill_the_same_command_makes_only_what_is_missing(place, tmp_path, request):
    """And ends in the bytes of a packing that nobody disturbed."""
    common = ["--channels", "gray", "--shard-samples", "100", "--workers", "1"]
    pack.main(["digits", str(tmp_path / "whole"), *common])
    whole = open_storage(str(tmp_path / "whole"))
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


def test_the_same_recipe_again_does_nothing_and_another_is_refused(tmp_path, capsys):
    arguments = ["digits", str(tmp_path), "--channels", "gray"]
    pack.main(arguments)
    before = contents(tmp_path)
    pack.main(arguments)
    assert "packed already" in capsys.readouterr().out
    with pytest.raises(UsageError, match="seed"):
        pack.main([*arguments, "--seed", "1"])
    assert contents(tmp_path) == before
    pack.main([*arguments, "--seed", "1", "--shard-samples", "1797", "--overwrite"])
    assert list(contents(tmp_path)) == ["index.parquet", "shard-000000.tar"]


def test_a_folder_gives_classes_and_unreadable_files_are_named(tmp_path, capsys):
    source = tmp_path / "source"
    for name, colour in (("cat", "red"), ("dog", "blue")):
        (source / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40 + i, 64), colour).save(source / name / f"{i}.jpg")
    (source / "dog" / "broken.png").write_bytes(b"no image")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(source / "cat" / "clear.png")
    pack.main([str(source), str(tmp_path / "out"), "--resolution", "16"])
    output = capsys.readouterr()
    assert str(source / "dog" / "broken.png") in output.out
    storage = open_storage(str(tmp_path / "out"))
    index = read_index(storage)
    assert index.about["classes"] == ["cat", "dog"]
    assert sorted(index.label.tolist()) == [0, 0, 0, 0, 1, 1, 1]
    for row, data in enumerate(read_samples(storage, index, np.arange(7))):
        image = Image.open(io.BytesIO(data))
        assert (image.size, image.mode) == ((16, 16), "RGB")
        colour = {(255, 255, 255), (254, 0, 0)} if index.label[row] == 0 else {(0, 0, 254)}
        assert image.getpixel((8, 8)) in colour


def test_too_many_unreadable_files_end_it_without_an_index(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for i in range(4):
        (source / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="4 unreadable images"):
        pack.main([str(source), str(tmp_path / "out"), "--max-unreadable", "3"])
    assert not (tmp_path / "out" / "index.parquet").exists()


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


def test_pixels_are_read_as_people_see_them(tmp_path):
    """16-bit grays keep their range, and a photo's orientation is followed."""
    ramp = (np.arange(16) * 4096).astype(np.uint16)
    deep = Image.fromarray(np.tile(ramp, (16, 1)))
    assert np.asarray(pack.prepare(deep, 16, "L"))[0].tolist() == [round(v / 257) for v in ramp]
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.jpg", exif=exif, quality=100)
    upright = open_source(str(tmp_path / "photos"), None).load(0)
    assert upright.getpixel((8, 2))[0] < 10
    assert upright.getpixel((8, 13))[0] > 245


def test_more_images_in_a_folder_are_another_source(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (16, 16)).save(source / "a.png")
    arguments = [str(source), str(tmp_path / "out"), "--resolution", "16"]
    pack.main(arguments)
    Image.new("RGB", (16, 16)).save(source / "b.png")
    with pytest.raises(UsageError, match="source_digest"):
        pack.main(arguments)


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_an_idx_pair_is_read_gzipped_or_not(tmp_path):
    images = np.arange(5 * 28 * 28).reshape(5, 28, 28) % 251
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([3, 1, 4, 1, 5])))
    for name in ("images-idx3", "labels-idx1"):
        plain = (tmp_path / f"train-{name}-ubyte").read_bytes()
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(plain))
    results = []
    for suffix in ("", ".gz"):
        source = str(tmp_path / f"train-images-idx3-ubyte{suffix}")
        pack.main([source, str(tmp_path / f"out{suffix}"), "--channels", "gray"])
        index = read_index(open_storage(str(tmp_path / f"out{suffix}")))
        results.append(index.fingerprint())
        keys = [int(key) for key in index.keys.to_pylist()]
        assert [[3, 1, 4, 1, 5][key] for key in keys] == index.label.tolist()
    assert results[0] == results[1]


def test_fashion_mnist_is_packed_whole(tmp_path):
    folder = "/usr/share/datasets/fashion-mnist"
    images = need_package(f"{folder}/t10k-images-idx3-ubyte.gz", "dataset-fashion-mnist")
    pack.main([str(images), str(tmp_path), "--channels", "gray", "--held-out", "0.1"])
    index = read_index(open_storage(str(tmp_path)))
    assert np.bincount(index.label).tolist() == [1000] * 10
    assert 900 < index.held_out.sum() < 1100


@pytest.mark.parametrize(
    ("content", "labels"),
    [(b"", b""), (b"\0\0\x08\x03\0\0", b"x"), (idx(np.zeros((3, 4, 4))), idx(np.zeros(2)))],
)
def test_a_file_that_is_no_idx_pair_is_refused(tmp_path, content, labels):
    (tmp_path / "a-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(DataError, match="images-idx3"):
        pack.main([str(tmp_path / "a-images-idx3-ubyte"), str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere/at/all", "out"], "nowhere/at/all"),
        (["digits", "out", "--resolution", "30"], "--resolution 30"),
        (["digits", "out", "--held-out", "1"], "--held-out"),
        (["digits", "out", "--shard-samples", "0"], "--shard-samples"),
        (["digits", "out", "--resolution", "0"], "--resolution 0"),
        (["digits", "out", "--base", "0"], "--base 0"),
        (["digits", "out", "--quality", "101"], "--quality 101"),
        (["digits", "out", "--labels", "x"], "--labels x"),
        (["digits", "out", "--background", "nowhere-blue"], "--background nowhere-blue"),
        (["digits", "out", "--workers", "0"], "--workers 0"),
        (["digits", ""], "destination"),
    ],
)
def test_bad_arguments_say_what_to_do(tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=word):
        pack.main(arguments)
    assert list(tmp_path.iterdir()) == []


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
    assert (about["source"], about["resolution"], about["channels"]) == ("digits", 32, 1)
    assert json.dumps(about)


def write_zip(
    path: Path,
    labels: object = "none",
    names=("b/1.png", "b/2.png", "a/1.png"),
    compression=zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for i, name in enumerate(names):
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(buffer, "PNG")
            archive.writestr(name, buffer.getvalue())
        archive.writestr("__MACOSX/b/1.png", b"")
        if labels != "none":
            archive.writestr("dataset.json", labels if isinstance(labels, bytes) else json.dumps(labels))
    return path


@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        ("none", {"b/1.png": 1, "b/2.png": 1, "a/1.png": 0}, ["a", "b"]),
        ({"labels": None}, {"b/1.png": 1, "b/2.png": 1, "a/1.png": 0}, ["a", "b"]),
        (
            {"labels": [["b/1.png", 2], ["b/2.png", 0], ["a/1.png", 5], ["elsewhere.png", 9]]},
            {"b/1.png": 2, "b/2.png": 0, "a/1.png": 5},
            ["0", "1", "2", "3", "4", "5"],
        ),
    ],
)
def test_a_zip_gives_labels_by_its_list_or_its_folders(tmp_path, labels, expected, classes):
    source = open_source(str(write_zip(tmp_path / "a.zip", labels)), None)
    named = [name.removeprefix(f"{tmp_path}/a.zip/") for name in source.names]
    assert dict(zip(named, source.labels, strict=True)) == expected
    assert source.classes == classes
    pack.main([str(tmp_path / "a.zip"), str(tmp_path / "zip"), "--resolution", "16", "--verify"])
    folder = tmp_path / "a"
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(folder)
    shutil.rmtree(folder / "__MACOSX")
    pack.main([str(folder), str(tmp_path / "folder"), "--resolution", "16"])
    indexes = [read_index(open_storage(str(tmp_path / name))) for name in ("zip", "folder")]
    assert indexes[0].fingerprint() == indexes[1].fingerprint()


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (b"not json", "cannot be read"),
        ({"labels": [["b/1.png"]]}, "cannot be read"),
        ({"labels": [["b/1.png", 0]]}, "no label for a/1.png"),
        ({"labels": [["b/1.png", [0.5, 1]], ["b/2.png", 0], ["a/1.png", 0]]}, "label of b/1.png is"),
        ({"labels": [["b/1.png", 2**31 - 1], ["b/2.png", 0], ["a/1.png", 0]]}, "number the classes"),
        ({"labels": [["b/1.png", -1], ["b/2.png", 0], ["a/1.png", 0]]}, "label of b/1.png is -1"),
    ],
)
def test_a_list_of_labels_that_does_not_fit_says_what_is_wrong(tmp_path, labels, word):
    write_zip(tmp_path / "a.zip", labels)
    with pytest.raises(DataError, match=word):
        pack.main([str(tmp_path / "a.zip"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_was_zipped_whole_lies_below_its_own_name(tmp_path):
    labels = {"labels": [["b/1.png", 2], ["b/2.png", 0], ["a/1.png", 1]]}
    names = ["top/b/1.png", "top/b/2.png", "top/a/1.png"]
    path = write_zip(tmp_path / "a.zip", names=names)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("top/dataset.json", json.dumps(labels))
    source = open_source(str(path), None)
    assert sorted(zip(source.names, source.labels, strict=True)) == [
        (f"{path}/top/a/1.png", 1),
        (f"{path}/top/b/1.png", 2),
        (f"{path}/top/b/2.png", 0),
    ]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_a_zip_is_left_out_and_named(tmp_path, capsys, compression):
    path = write_zip(tmp_path / "a.zip", compression=compression)
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    pack.main([str(path), str(tmp_path / "out"), "--resolution", "16"])
    assert "a.zip/b/1.png" in capsys.readouterr().out
    assert len(read_index(open_storage(str(tmp_path / "out")))) == 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("#000000", 0), ("gray", 128)])
def test_what_is_transparent_shows_the_background(mode, background, expected):
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0)).convert(mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    prepared = pack.prepare(image, 16, "RGB", background)
    assert prepared.getpixel((8, 8)) == (expected,) * 3


def test_verify_finds_an_image_that_is_damaged_and_an_index_of_other_shards(tmp_path):
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
    with pytest.raises(DataError, match="index does not fit the shards"):
        pack.main(arguments)


def test_shards_that_others_wrote_are_not_touched(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "shard-000000.tar")) as writer:
        writer.write({"__key__": "a", "txt": "precious"})
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"1 shards that pack did not write, such as shard-000000\.tar"):
        pack.main(["digits", str(tmp_path), "--channels", "gray"])
    assert {k: v for k, v in contents(tmp_path).items() if k in before} == before
    pack.main(["digits", str(tmp_path), "--channels", "gray", "--overwrite"])
    assert len(read_index(open_storage(str(tmp_path)))) == 1797


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


def test_an_image_that_was_mended_makes_another_source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no image")
    arguments = [str(folder), str(tmp_path / "out"), "--resolution", "16"]
    pack.main(arguments)
    Image.new("RGB", (16, 16)).save(folder / "bad.png")
    with pytest.raises(UsageError, match="source_digest"):
        pack.main(arguments)
    pack.main([*arguments, "--overwrite"])
    assert len(read_index(open_storage(str(tmp_path / "out")))) == 2


def test_the_number_of_workers_changes_no_byte(digits, tmp_path):
    arguments = ["digits", str(tmp_path), "--channels", "gray", "--shard-samples", "500"]
    pack.main([*arguments, "--workers", "7"])
    assert contents(tmp_path) == contents(digits)
