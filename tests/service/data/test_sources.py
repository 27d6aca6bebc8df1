"""Where images come from: folders, zip archives and IDX files, with their labels; and what is none."""

import gzip
import io
import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service import pack
from service.data import sources
from service.data.index import read_index
from service.data.sources import open_source
from service.data.stream import read_samples
from service.errors import DataError, UsageError
from service.storage import open_storage
from tests.conftest import need_package


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
    assert index.about.classes == ("cat", "dog")
    assert sorted(index.label.tolist()) == [0, 0, 0, 0, 1, 1, 1]
    for row, data in enumerate(read_samples(storage, index, np.arange(7))):
        image = Image.open(io.BytesIO(data))
        assert (image.size, image.mode) == ((16, 16), "RGB")
        colour = {(255, 255, 255), (254, 0, 0)} if index.label[row] == 0 else {(0, 0, 254)}
        assert image.getpixel((8, 8)) in colour


def test_a_drawing_that_was_interrupted_is_no_source(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "00000000.png")
    (tmp_path / "UNFINISHED").touch()
    with pytest.raises(UsageError, match=r"its drawing was interrupted; draw it anew, or delete that"):
        open_source(str(tmp_path))


def test_more_images_in_a_folder_are_another_source(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (16, 16)).save(source / "a.png")
    arguments = [str(source), str(tmp_path / "out"), "--resolution", "16"]
    pack.main(arguments)
    Image.new("RGB", (16, 16)).save(source / "b.png")
    with pytest.raises(UsageError, match="source_digest"):
        pack.main(arguments)


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


@pytest.mark.slow
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
        (b"[" * 100_000, "cannot be read"),
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


def test_names_that_are_no_text_are_written_out(tmp_path, capsys):
    """As Linux allows them: bytes that are no UTF-8, in the names of folders and of files."""
    folder = os.fsencode(tmp_path) + b"/source/caf\xe9"
    os.makedirs(folder)
    for name in (b"a.png", b"b\xff.png"):
        with open(folder + b"/" + name, "wb") as file:
            Image.new("RGB", (16, 16)).save(file, "PNG")
    with open(folder + b"/broken\xe9.png", "wb") as file:
        file.write(b"no image")
    source = tmp_path / "source"
    assert open_source(str(source), None).classes == ["caf\\xe9"]
    pack.main([str(source), str(tmp_path / "out"), "--resolution", "16"])
    index = read_index(open_storage(str(tmp_path / "out")))
    assert len(index) == 2
    assert index.about.classes == ("caf\\xe9",)
    (unreadable,) = index.about.unreadable
    assert unreadable.startswith(f"{source}/caf\\xe9/broken\\xe9.png: ")
    assert "caf\\xe9/broken\\xe9.png" in capsys.readouterr().out


def test_a_source_whose_own_name_is_no_text_is_refused_with_that_reason(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(UsageError, match=r"source .*/caf\udce9: not valid UTF-8; rename it"):
        pack.main([f"{tmp_path}/caf\udce9", str(tmp_path / "out")])


def write_names(path: Path, names: list[str]) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # as other tools write it
            archive.writestr(info, buffer.getvalue())
    return str(path)


@pytest.mark.parametrize("names", [["cat\\1.png", "dog\\1.png"], ["./cat/1.png", "dog//1.png"]])
def test_names_in_a_zip_mean_the_same_however_they_are_written(tmp_path, names):
    source = open_source(write_names(tmp_path / "a.zip", names))
    assert (source.classes, source.labels) == (["cat", "dog"], [0, 1])
    assert source.load(1, "RGB").size == (8, 8)


def test_two_members_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.zip: holds cat/1\.png twice"):
        open_source(write_names(tmp_path / "a.zip", ["cat/1.png", "./cat/1.png"]))


def test_names_in_a_zip_are_printed_as_one_line(tmp_path):
    source = open_source(write_names(tmp_path / "a.zip", ["c\nat\x1b[31m/1.png"]))
    assert source.classes == ["c\\nat\\x1b[31m"]


def test_links_to_themselves_are_left_out_and_counted(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "a" / "2.png").symlink_to("2.png")
    source = open_source(str(tmp_path))
    assert source.left_out == {"a link to itself": 2}


@pytest.mark.parametrize("cut", [40, -40])
def test_a_damaged_idx_file_is_named(tmp_path, cut):
    header = struct.pack(">HBBIII", 0, 8, 3, 4, 8, 8)
    data = gzip.compress(header + bytes(range(256)))
    (tmp_path / "x-images-idx3-ubyte.gz").write_bytes(data[:cut])
    with pytest.raises(DataError, match=r"x-images-idx3-ubyte\.gz: not an IDX file"):
        open_source(str(tmp_path / "x-images-idx3-ubyte.gz"))


def test_a_table_in_a_zip_that_cannot_be_unpacked_is_named(tmp_path):
    path = Path(write_names(tmp_path / "a.zip", ["a/1.png"]))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.csv", "file_name,label\na/1.png,x\n" * 50)
    data = path.read_bytes()
    place = data.index(b"metadata.csv") + len("metadata.csv")
    path.write_bytes(data[:place] + bytes(8) + data[place + 8 :])
    with pytest.raises(DataError, match=r"a\.zip/metadata\.csv: cannot be unpacked"):
        open_source(str(path))


def test_a_member_that_unpacks_to_far_more_than_any_image_is_unreadable(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/bomb.png", bytes(5_000_000))
    assert (tmp_path / "bomb.zip").stat().st_size < 10_000
    monkeypatch.setattr(sources, "LARGEST_FILE_BYTES", 1_000_000)
    source = open_source(str(tmp_path / "bomb.zip"))
    with pytest.raises(DataError, match=r"bomb\.png: 5000000 bytes, above the limit of 1000000"):
        source.load(0, "RGB")


def test_stacked_digits_show_three_digits_in_the_order_of_their_number():
    plain, stacked = open_source("digits"), open_source("stacked-digits")
    assert stacked.classes == [f"{number:03}" for number in range(1000)]
    assert len(set(stacked.labels)) == 1000
    assert np.bincount(stacked.labels).std() < 1.2 * 50**0.5  # 50,000 even draws
    for number in (0, 1, 49_999):
        image = np.asarray(stacked.load(number, "RGB"))
        drawn = [int(word.strip(",")) for word in stacked.names[number].split() if word[0].isdigit()]
        for channel, digit in enumerate(drawn):
            assert np.array_equal(image[:, :, channel], np.asarray(plain.load(digit, "L")))
        assert [plain.labels[digit] for digit in drawn] == [*map(int, f"{stacked.labels[number]:03}")]
    assert stacked.digest() == open_source("stacked-digits").digest()


def test_stacked_digits_are_packed_in_colour_alone(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--channels gray: each channel shows a digit; take rgb"):
        pack.main(["stacked-digits", str(tmp_path / "gray"), "--channels", "gray"])
    monkeypatch.setattr(sources, "STACKED_IMAGES", 20)
    pack.main(["stacked-digits", str(tmp_path / "rgb"), "--resolution", "8"])
    index = read_index(open_storage(str(tmp_path / "rgb")))
    assert len(index) == 20
    assert sources.shows_stacked_digits(index.about)
