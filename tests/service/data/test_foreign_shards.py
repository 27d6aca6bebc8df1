"""Shards as people have them: what is passed over is counted, labels are found, changes are seen."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service import pack
from service.data.index import INDEX_KEY, Index, read_index
from service.data.indexing import MARKS_KEY, NEW_CLASS, OTHER_REASONS, find_index, passed_over_in_words
from service.data.stream import read_samples
from service.data.tar import (
    FURTHER_IMAGES,
    LABEL_APART,
    LINKED_OUT,
    NO_LABEL,
    NO_SUFFIX,
    OTHER_IMAGES,
    SPARSE,
    Choice,
)
from service.driver.preflight import check_data
from service.errors import DataError
from service.storage import open_storage
from tests.conftest import tiny_config

Members = list[tuple[str, bytes]]


def picture(value: int = 0, side: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Members, links: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)


def indexed(folder: Path, **settings: str) -> Index:
    storage = open_storage(str(folder))
    return find_index(storage, storage, 0.0, choice=Choice(**settings))


def passed_over(index: Index) -> dict[str, int]:
    return dict(index.about.passed_over)


# What is passed over ------------------------------------------------------------------------------


def test_images_that_share_a_key_are_counted(tmp_path):
    names = [f"photo_{i:03d}.{j}.png" for i in range(5) for j in range(4)]
    write_tar(tmp_path / "a.tar", [(name, picture()) for name in names])
    index = indexed(tmp_path)
    assert len(index) == 5
    assert passed_over(index) == {FURTHER_IMAGES: 15}
    assert "data.image names the one to take" in passed_over_in_words(index.about)[0]


def test_a_setting_picks_the_member_to_take(tmp_path):
    pairs = [(f"{i}.{side}.png", picture(10 * i + j)) for i in range(3) for j, side in enumerate("lr")]
    write_tar(tmp_path / "a.tar", [*pairs, ("3.l.png", picture())])
    index = indexed(tmp_path, image="r.png")
    assert index.keys.to_pylist() == ["0", "1", "2"]
    images = read_samples(open_storage(str(tmp_path)), index, np.arange(3))
    assert [bytes(image) for image in images] == [picture(10 * i + 1) for i in range(3)]
    assert (passed_over(index), index.about.without_image) == ({OTHER_IMAGES: 1}, 0)
    with pytest.raises(DataError, match=r"data\.image: l\.png, but .* was made with r\.png"):
        indexed(tmp_path, image="l.png")


def test_other_members_hidden_ones_and_files_beside_the_shards_are_counted(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            ("./1.png", picture()),
            ("./1.txt", b"a flower"),
            ("./1.heic", b"?"),
            ("./.DS_Store", b""),
            ("./._1.png", b""),
            ("__MACOSX/2.png", picture()),
            ("README", b"none"),
        ],
    )
    (tmp_path / "._a.tar").write_bytes(b"AppleDouble")
    (tmp_path / "labels.csv").write_text("1,daisy")
    index = indexed(tmp_path)
    assert index.keys.to_pylist() == ["./1"]
    assert passed_over(index) == {
        ".txt": 1, ".heic": 1, "hidden members": 3, NO_SUFFIX: 1, "files beside the shards, .csv": 1,
        "files beside the shards, hidden": 1,
    }  # fmt: skip
    assert "1 members of suffix .heic" in passed_over_in_words(index.about)


@pytest.mark.parametrize(
    "name", ["b.TAR.GZ", "b.tgz", "b.TBZ2", "b.txz", "b.tar.lz4", "b.tar.zst", "b.tar.Z"]
)
def test_a_compressed_shard_is_refused_beside_others_and_among_later_ones(tmp_path, name):
    write_tar(tmp_path / "a.tar", samples([b"1", b"0"]))
    indexed(tmp_path)
    (tmp_path / name).write_bytes(b"compressed")
    storage = open_storage(str(tmp_path))
    with pytest.raises(DataError, match=f"{name}: compressed"):
        find_index(storage, storage, grown=True)
    (tmp_path / INDEX_KEY).unlink()
    with pytest.raises(DataError, match=f"{name}: compressed"):
        indexed(tmp_path)


def test_a_tar_that_was_cut_between_two_members_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", samples([b"1"] * 9))
    with tarfile.open(tmp_path / "a.tar") as tar:
        place = tar.getmembers()[8].offset
    os.truncate(tmp_path / "a.tar", place)
    with pytest.raises(
        DataError, match=r"a\.tar: not a complete tar file \(it ends without an end mark"
    ):
        indexed(tmp_path)


def test_long_chains_of_links_are_followed_and_circles_are_not(tmp_path):
    links = {f"c{i:02}.png": f"c{i - 1:02}.png" for i in range(1, 30)} | {
        "x.png": "y.png",
        "y.png": "x.png",
    }
    write_tar(tmp_path / "a.tar", [("c00.png", picture())], links | {"empty.png": ""})
    index = indexed(tmp_path)
    assert len(index) == 30
    assert passed_over(index) == {LINKED_OUT: 3}


def test_as_many_suffixes_as_files_stay_few_lines(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", picture()), *((f"{i}.s{i}", b"") for i in range(300))])
    counts = passed_over(indexed(tmp_path))
    assert (len(counts), sum(counts.values())) == (51, 300)
    assert counts[OTHER_REASONS] == 250


def test_links_are_followed_within_their_tar(tmp_path):
    members = [("real/1.png", picture(1)), ("real/1.cls", b"3"), ("labels/daisy", b"4")]
    links = {
        "linked/2.png": "../real/1.png",
        "linked/2.cls": "../labels/daisy",
        "linked/3.png": "2.png",
        "linked/4.png": "../../outside.png",
        "loop/5.png": "5.png",
    }
    write_tar(tmp_path / "a.tar", members, links)
    index = indexed(tmp_path)
    assert index.keys.to_pylist() == ["real/1", "linked/2", "linked/3"]
    assert index.label.tolist() == [3, 4, NO_LABEL]
    assert passed_over(index) == {LINKED_OUT: 2, NO_SUFFIX: 1}
    images = read_samples(open_storage(str(tmp_path)), index, np.arange(3))
    assert {bytes(image) for image in images} == {picture(1)}


def test_sparse_members_are_left_out_and_counted(tmp_path):
    write_tar(tmp_path / "data" / "a.tar", [("1.png", picture())])
    with open(tmp_path / "2.png", "wb") as file:
        file.write(picture())
        file.truncate(1 << 20)
    command = ["tar", "-C", str(tmp_path), "--sparse", "-cf", str(tmp_path / "data" / "b.tar"), "2.png"]
    subprocess.run(command, check=True)
    index = indexed(tmp_path / "data")
    assert index.keys.to_pylist() == ["1"]
    assert passed_over(index) == {SPARSE: 1}


def test_tars_that_were_joined_are_read_to_the_end(tmp_path):
    for name in "ab":
        write_tar(tmp_path / "parts" / name, [(f"{name}.png", picture()), (f"{name}.cls", b"1")])
    joined = b"".join((tmp_path / "parts" / name).read_bytes() for name in "ab")
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "ab.tar").write_bytes(joined)
    index = indexed(tmp_path / "joined")
    assert index.keys.to_pylist() == ["a", "b"]
    images = read_samples(open_storage(str(tmp_path / "joined")), index, np.arange(2))
    assert {bytes(image) for image in images} == {picture()}


def test_what_is_no_tar_behind_an_end_mark_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", picture())])
    place = (tmp_path / "a.tar").stat().st_size
    with open(tmp_path / "a.tar", "ab") as file:
        file.write(b"something else" * 100)
    with pytest.raises(DataError, match=rf"a\.tar: not a complete tar file .*header at byte {place}"):
        indexed(tmp_path)


def test_labels_apart_from_their_images_are_told_with_the_remedy(tmp_path):
    images = [(f"{i}.png", picture()) for i in range(4)]
    write_tar(tmp_path / "a.tar", [*images, *((f"{i}.cls", b"1") for i in range(3)), ("9.cls", b"1")])
    index = indexed(tmp_path)
    assert passed_over(index) == {LABEL_APART: 3}
    assert index.about.without_image == 1
    assert any("--sort=name" in line for line in passed_over_in_words(index.about))


def test_links_in_circles_pipes_and_copies_of_macos_are_no_shards(tmp_path):
    write_tar(tmp_path / "inner" / "a.tar", [("1.png", picture())])
    (tmp_path / "inner" / "around").symlink_to(tmp_path)
    (tmp_path / "inner" / "self").symlink_to(".")
    (tmp_path / "again").symlink_to("inner")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "._b.tar").write_bytes(b"AppleDouble")
    assert indexed(tmp_path).names == ["inner/a.tar"]


# Labels -------------------------------------------------------------------------------------------


def samples(labels: list[bytes], suffix: str = "cls") -> Members:
    pairs = [[(f"{i}.png", picture()), (f"{i}.{suffix}", label)] for i, label in enumerate(labels)]
    return [member for pair in pairs for member in pair]


def test_text_labels_become_classes_with_names(tmp_path):
    write_tar(tmp_path / "a.tar", samples([b"rose", b"daisy\n", b"", b"rose", "œillet".encode()]))
    index = indexed(tmp_path)
    assert index.about.classes == ("daisy", "rose", "œillet")
    assert index.label.tolist() == [1, 0, NO_LABEL, 1, 2]


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        ([b"1_0", b"2_1"], ("1_0", "2_1")),
        (["１".encode(), b"+1"], ("+1", "１")),
        ([b"x" * 255 + b"a", b"x" * 255 + b"b"], ("x" * 255 + "a", "x" * 255 + "b")),
    ],
)
def test_text_that_python_takes_for_a_number_is_text(tmp_path, texts, names):
    write_tar(tmp_path / "a.tar", samples(texts))
    assert indexed(tmp_path).about.classes == names


def test_whole_numbers_with_a_point_are_the_numbers(tmp_path):
    write_tar(tmp_path / "a.tar", samples([b"0.0", b"11.0", b"2.0", b"0.5"]))
    assert indexed(tmp_path).label.tolist() == [0, 11, 2, NO_LABEL]


def test_a_label_longer_than_any_name_is_no_label_rather_than_a_part_of_it(tmp_path):
    contents = [json.dumps({"label": "x" * 256 + end}).encode() for end in "ab"]
    write_tar(tmp_path / "a.tar", samples([*contents, b'{"label": "\\ud800"}'], "json"))
    index = indexed(tmp_path, label="label")
    assert index.label.tolist() == [NO_LABEL, NO_LABEL, 0]


def test_a_usable_label_comes_before_an_empty_one(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", picture()), ("1.cls", b""), ("1.fine.cls", b"7")])
    assert indexed(tmp_path).label.tolist() == [7]


def test_text_beside_numbers_is_no_label(tmp_path):
    write_tar(tmp_path / "a.tar", samples([b"0", b"cat", b"2"]))
    index = indexed(tmp_path)
    assert index.label.tolist() == [0, NO_LABEL, 2]
    assert passed_over(index) == {"labels that are no number, beside others that are": 1}


@pytest.mark.parametrize(
    ("contents", "label", "numbers", "names"),
    [
        ([{"label": 3}, {"label": 0}], "label", [3, 0], ()),
        ([{"label": "3"}, {"label": "0"}], "label", [3, 0], ()),
        ([{"a": {"b": "cat"}}, {"a": {"b": "ant"}}, {"a": 1}], "a.b", [1, 0, NO_LABEL], ("ant", "cat")),
        ([{"label": True}, {"label": [1]}, {"label": 1}], "label", [NO_LABEL, NO_LABEL, 1], ()),
    ],
)
def test_labels_from_a_field_of_json_members(tmp_path, contents, label, numbers, names):
    write_tar(tmp_path / "a.tar", samples([json.dumps(c).encode() for c in contents], "json"))
    index = indexed(tmp_path, label=label)
    assert (index.label.tolist(), index.about.classes) == (numbers, names)
    assert passed_over(index) == {}


def test_damaged_json_is_no_label(tmp_path):
    write_tar(tmp_path / "a.tar", samples([b'{"label": 1}', b"{", b"[" * 10**5, b"\xff"], "json"))
    assert indexed(tmp_path, label="label").label.tolist() == [1, NO_LABEL, NO_LABEL, NO_LABEL]


# Changed and copied files ---------------------------------------------------------------------------


def test_a_label_that_was_changed_in_place_is_noticed(tmp_path):
    write_tar(tmp_path / "a.tar", samples([b"0", b"1", b"2", b"3"]))
    indexed(tmp_path)
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data.replace(b"3" + bytes(511), b"2" + bytes(511)))
    assert (tmp_path / "a.tar").stat().st_size == len(data)
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.tar: holds other samples or labels than in the index"):
            indexed(tmp_path)
    (tmp_path / "a.tar").write_bytes(data)
    assert indexed(tmp_path).label.tolist() == [0, 1, 2, 3]


def test_a_copy_goes_on_and_is_looked_at_once(tmp_path):
    write_tar(tmp_path / "here" / "a.tar", samples([b"daisy", b"rose"]))
    before = indexed(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    os.utime(tmp_path / "there" / "a.tar", (1, 1))
    storage = open_storage(str(tmp_path / "there"))
    assert find_index(storage, storage).fingerprint() == before.fingerprint()
    looked_at = storage.traffic.requests
    assert find_index(storage, storage).fingerprint() == before.fingerprint()
    assert storage.traffic.requests == looked_at + 2  # the index and the marks, no shard


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 2, "marks": {}}'])
def test_damaged_marks_only_make_it_look_again(tmp_path, damage):
    write_tar(tmp_path / "a.tar", samples([b"0", b"1"]))
    before = indexed(tmp_path)
    (tmp_path / MARKS_KEY).write_bytes(damage)
    assert indexed(tmp_path).fingerprint() == before.fingerprint()
    assert (tmp_path / MARKS_KEY).read_bytes() != damage


# Data that grew -----------------------------------------------------------------------------------


def test_shards_that_came_later_join_and_keep_what_was_known(tmp_path):
    write_tar(tmp_path / "b.tar", samples([b"daisy", b"rose"]))
    before = indexed(tmp_path)
    write_tar(tmp_path / "a.tar", samples([b"rose", b"tulip"]))
    storage = open_storage(str(tmp_path))
    with pytest.raises(DataError, match=r"a\.tar: not in the index .*data\.grown to true"):
        find_index(storage, storage)
    grown = find_index(storage, storage, grown=True)
    assert grown.names == ["b.tar", "a.tar"]  # what was there stays in its place
    assert grown.label.tolist() == [0, 1, 1, NO_LABEL]
    assert grown.about.classes == before.about.classes
    assert passed_over(grown) == {NEW_CLASS: 1}
    assert [part.fingerprint for part in grown.grown] == [before.fingerprint()]
    assert read_index(storage).fingerprint() == grown.fingerprint()
    assert find_index(storage, storage, grown=True).grown == grown.grown


def test_a_number_in_a_later_shard_is_the_name_of_no_text_class(tmp_path):
    write_tar(tmp_path / "a.tar", samples([b"daisy", b"rose"]))
    indexed(tmp_path)
    write_tar(tmp_path / "b.tar", samples([b"0", b"rose"]))
    storage = open_storage(str(tmp_path))
    grown = find_index(storage, storage, grown=True)
    assert grown.label.tolist() == [0, 1, NO_LABEL, 1]
    assert passed_over(grown) == {NEW_CLASS: 1}


def test_packed_shards_with_names_grow_twice_and_may_be_copied(tmp_path):
    for name in ("daisy", "rose"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(picture())
    data = tmp_path / "data"
    pack.main([str(tmp_path / "images"), str(data), "--resolution", "32", "--held-out", "0"])
    storage = open_storage(str(data))
    for count, name in ((2, "x.tar"), (4, "y.tar")):
        write_tar(data / name, samples([b"1", b"0"]))
        grown = find_index(storage, storage, grown=True)
        assert grown.label[count:].tolist() == [1, 0]
    assert grown.about.classes == ("daisy", "rose")
    for shard in data.glob("*.tar"):
        os.utime(shard, (1, 1))
    assert find_index(storage, storage).fingerprint() == grown.fingerprint()


def test_later_shards_are_read_once(tmp_path):
    write_tar(tmp_path / "a.tar", samples([b"0", b"1"]))
    indexed(tmp_path)
    write_tar(tmp_path / "b.tar", samples([b"0", b"1"]))
    storage = open_storage(str(tmp_path))
    find_index(storage, storage, grown=True)
    assert storage.traffic.requests == 3  # the index, the shard, the marks
    find_index(storage, storage)
    assert storage.traffic.requests == 5


# Known at the start -------------------------------------------------------------------------------


def foreign(folder: Path, count: int, small_every: int = 0, bare_every: int = 0) -> Path:
    members = []
    for i in range(count):
        side = 24 if small_every and i % small_every == 0 else 32
        members.append((f"{i:05d}.png", picture(i % 256, side)))
        if not (bare_every and i % bare_every == 0):
            members.append((f"{i:05d}.cls", str(i % 10).encode()))
    write_tar(folder / "a.tar", members)
    return folder


def test_images_below_the_last_rung_are_told_at_the_start(tmp_path, capsys):
    data = foreign(tmp_path / "data", 300, small_every=10)
    with pytest.raises(DataError, match=r"at least 2\d of 2\d\d images cannot be shown at 32 px"):
        check_data(tiny_config(data, tmp_path / "run"))
    assert not (data / INDEX_KEY).exists()
    check_data(tiny_config(data, tmp_path / "run", data={"max_bad_samples": 0.2}))
    assert "smaller than the last rung's 32 px, such as a.tar: sample 00" in capsys.readouterr().err


def test_samples_without_a_label_are_held_against_the_limit_at_the_start(tmp_path):
    data = foreign(tmp_path / "data", 100, bare_every=4)
    with pytest.raises(DataError, match=r"2\d of 9\d samples have no label, such as a\.tar: sample 000"):
        check_data(tiny_config(data, tmp_path / "run"))
    assert len(check_data(tiny_config(data, tmp_path / "run", data={"max_bad_samples": 30}))) == 100


def test_what_is_left_out_is_told_at_the_start(tmp_path, capsys):
    data = foreign(tmp_path / "data", 100)
    write_tar(data / "b.tar", [("x.txt", b"")])
    check_data(tiny_config(data, tmp_path / "run"))
    assert "left out: 1 members of suffix .txt" in capsys.readouterr().err
