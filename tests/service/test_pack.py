"""Packing: what lands in the shards, that it is the same bytes again, and bad input."""

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from service import pack
from service.data.index import read_index
from service.data.stream import read_samples
from service.errors import DataError, UsageError
from service.storage import open_storage
from tests.conftest import need_package


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


def test_packing_again_after_a_crash_ends_in_the_same_bytes(digits, tmp_path, monkeypatch):
    arguments = ["digits", str(tmp_path), "--channels", "gray", "--shard-samples", "500"]

    class Crash(Exception):
        pass

    written = []
    write = pack._write_shard

    def crash_at_the_third(members, recipe):
        written.append(1)
        if len(written) == 3:
            raise Crash
        return write(members, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(pack, "_write_shard", crash_at_the_third)
        with pytest.raises(Crash):
            pack.main(arguments)
    assert "index.parquet" not in contents(tmp_path)
    (tmp_path / "shard-000001.tar").write_bytes(b"half a sh")
    pack.main(arguments)
    assert contents(tmp_path) == contents(digits)


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
    upright = pack.open_source(str(tmp_path / "photos"), None).load(0)
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
    assert {key: storage.get(key) for key in storage.sizes()} == contents(digits)


def test_the_index_says_how_it_was_made(digits):
    about = read_index(open_storage(str(digits))).about
    assert (about["source"], about["resolution"], about["channels"]) == ("digits", 32, 1)
    assert json.dumps(about)
