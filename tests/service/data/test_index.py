"""The index of shards that any webdataset tool wrote: the samples are those of its own reader."""

import dataclasses
import io
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.data.checks import check_labels
from service.data.dataset import Dataset, Request, read
from service.data.index import INDEX_KEY, is_held_out, read_index, write_index
from service.data.indexing import check_shards, find_index, make_index
from service.data.order import Order
from service.data.stream import read_samples
from service.data.tar import NO_LABEL, scan
from service.errors import DataError
from service.storage import FolderStorage, Storage, open_storage


def png(value: int = 0, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, shards: int = 3, samples: int = 7, **extra: bytes) -> None:
    """As webdataset's own writer makes them, with other members before and after the image."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"part-{shard:03d}.tar")) as writer:
            for i in range(samples):
                number = shard * samples + i
                sample = {
                    "__key__": f"dir/{number:05d}",
                    "png": png(number),
                    "cls": str(number % 5).encode(),
                }
                writer.write(sample | {"json": b"{}", "zz.npy": b"1" * (i * 700)} | extra)


def indexed(folder: Path | str, held_out: float | None = 0.0):
    storage = open_storage(str(folder))
    return storage, find_index(storage, storage, held_out)


def assert_as_webdataset(storage, index, urls) -> None:
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    ours = read_samples(storage, index, np.arange(len(index)))
    assert len(theirs) == len(ours)
    for row, sample in enumerate(theirs):
        assert sample["__key__"] == index.keys[row].as_py()
        assert sample["png"] == ours[row]
        assert int(sample["cls"]) == index.label[row]


def test_webdatasets_own_reader_finds_the_same_samples(tmp_path):
    write_shards(tmp_path)
    storage, index = indexed(tmp_path)
    assert len(index) == 21
    assert_as_webdataset(storage, index, [str(tmp_path / name) for name in index.names])
    check_shards(storage, index)


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.booleans()), min_size=1, max_size=8),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(1, 200),
)
def test_any_tar_of_any_format_is_read_as_it_is(tmp_path_factory, members, form, name_length):
    """Long names, members of any size, samples with the image first or last."""
    folder = tmp_path_factory.mktemp("tar")
    if form == tarfile.USTAR_FORMAT:
        name_length = min(name_length, 90)
    with tarfile.open(folder / "a.tar", "w", format=form) as tar:
        for i, (size, first) in enumerate(members):
            key = "k" * name_length + str(i)
            parts = [(f"{key}.png", b"p" * size + b"!"), (f"{key}.cls", b"3\n")]
            for name, data in parts if first else parts[::-1]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    storage, index = indexed(folder)
    assert_as_webdataset(storage, index, [str(folder / "a.tar")])


def test_large_members_are_jumped_over(tmp_path):
    write_shards(tmp_path, shards=1, samples=5, bin=b"x" * (6 << 20))
    storage = open_storage(str(tmp_path))
    found = scan(storage, "part-000.tar", storage.sizes()["part-000.tar"])
    assert len(found.samples) == 5
    assert storage.traffic.bytes < 12 << 20


def test_the_index_is_made_once_and_kept_beside_the_shards(tmp_path):
    write_shards(tmp_path)
    _, first = indexed(tmp_path, held_out=0.3)
    before = (tmp_path / INDEX_KEY).read_bytes()
    storage, second = indexed(tmp_path, held_out=None)
    assert (tmp_path / INDEX_KEY).read_bytes() == before
    assert first.fingerprint() == second.fingerprint()
    keys = second.keys.to_pylist()
    assert second.held_out.tolist() == [is_held_out(key, 0.3) for key in keys]
    assert storage.traffic.requests == 2  # the index, and the files' marks
    with pytest.raises(DataError, match=r"data\.held_out: 0\.9, but .* made with 0\.3"):
        indexed(tmp_path, held_out=0.9)


def test_a_bucket_and_a_folder_give_the_same_index(tmp_path, s3):
    write_shards(tmp_path / "shards")
    local, remote = open_storage(str(tmp_path / "shards")), open_storage(f"{s3}/foreign")
    for name in local.sizes():
        remote.put(name, local.get(name))
    kept = open_storage(str(tmp_path / "kept"))  # as if the bucket could only be read
    here, there = find_index(local, local, 0.2), find_index(remote, kept, 0.2)
    assert INDEX_KEY not in remote.sizes()
    assert read_index(kept).etags.keys() == there.etags.keys() == there.shards.keys()
    assert here.fingerprint() == there.fingerprint()
    check_shards(remote, there)
    name = there.names[0]
    changed = bytearray(remote.get(name))
    changed[-1] = 1
    remote.put(name, bytes(changed))
    with pytest.raises(DataError, match="ETag"):
        check_shards(remote, there)
    with pytest.raises(DataError, match="changed since the index was made"):
        read_samples(remote, there, np.arange(3))


def test_an_index_that_cannot_be_kept_says_where_it_could_be(tmp_path, monkeypatch):
    write_shards(tmp_path)

    def refuse(self, key, data):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FolderStorage, "_write", refuse)
    with pytest.raises(DataError, match=r"data\.index_url"):
        indexed(tmp_path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "b.tar"])
def test_a_compressed_shard_is_refused_with_the_remedy(tmp_path, name):
    with tarfile.open(tmp_path / name, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    with pytest.raises(DataError, match=f"{name}: compressed.*gunzip"):
        indexed(tmp_path)


@pytest.mark.parametrize("cut", [100, 700, 5000])
def test_a_tar_that_is_cut_short_is_named(tmp_path, cut):
    write_shards(tmp_path)
    path = tmp_path / "part-001.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"part-001\.tar: not a complete tar file"):
        indexed(tmp_path)


def test_a_damaged_header_in_the_middle_is_named_and_loses_nothing_in_silence(tmp_path):
    write_shards(tmp_path)
    path = tmp_path / "part-002.tar"
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[9].offset
    with open(path, "r+b") as file:
        file.seek(middle)
        file.write(b"junk" * 100)
    with pytest.raises(DataError, match=rf"part-002\.tar.*damaged header at byte {middle}"):
        indexed(tmp_path)


def test_two_members_of_one_name_are_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("x.png"))
    with pytest.raises(DataError, match=r"a\.tar.*duplicate"):
        indexed(tmp_path)


def test_samples_without_an_image_are_counted(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "txt": "no image"})
        writer.write({"__key__": "b", "left.png": png(1), "txt": "an image under another name"})
        writer.write({"__key__": "c", "left.png": png(1), "png": png(2)})
    storage, index = indexed(tmp_path)
    assert index.keys.to_pylist() == ["b", "c"]
    assert index.about.without_image == 1
    assert read_samples(storage, index, np.array([1]))[0] == png(2)


def test_no_image_at_all_is_an_error(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "txt": "no image"})
    with pytest.raises(DataError, match=r"no images in its shards \(1\)"):
        indexed(tmp_path)


def test_a_label_that_is_no_number_makes_a_bad_sample_where_labels_are_used(tmp_path):
    write_shards(tmp_path)
    with webdataset.TarWriter(str(tmp_path / "part-003.tar")) as writer:
        for i, label in enumerate([b"cat", b"-1", b"", b"99999999999", b"4"]):
            writer.write({"__key__": f"x{i}", "png": png(i), "cls": label})
    _, index = indexed(tmp_path)
    assert (index.label == NO_LABEL).sum() == 4
    check_labels(index, 5)
    order = Order(index, index.rows(False), 0, 1, len(index))
    everything = Request(np.arange(len(index)), 8)
    dataset = Dataset(str(tmp_path), index, order, 1, labelled=True, max_bad_samples=4)
    assert read(dataset, everything).labels.min() == 0
    with pytest.raises(DataError, match=r"max_bad_samples is 3.*not a number"):
        read(Dataset(str(tmp_path), index, order, 1, labelled=True, max_bad_samples=3), everything)
    assert len(read(Dataset(str(tmp_path), index, order, 1), everything).rows) == len(index)


def test_data_without_any_label_says_so(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "png": png()})
    _, index = indexed(tmp_path)
    check_labels(index, None)
    with pytest.raises(DataError, match=r"model\.classes to null"):
        check_labels(index, 3)


def test_shards_that_came_later_are_named(tmp_path):
    write_shards(tmp_path)
    storage, index = indexed(tmp_path)
    shutil.copy(tmp_path / "part-000.tar", tmp_path / "part-999.tar")
    with pytest.raises(DataError, match=r"part-999\.tar: not in the index"):
        check_shards(storage, index)


def test_a_missing_shard_is_named(digits, tmp_path):
    copied = tmp_path / "missing"
    shutil.copytree(digits, copied)
    (copied / "shard-000002.tar").unlink()
    storage = open_storage(str(copied))
    with pytest.raises(DataError, match=r"shard-000002\.tar: missing, but in the index"):
        check_shards(storage, read_index(storage))


def test_a_label_outside_the_classes_is_named(digits):
    with pytest.raises(DataError, match=r"sample \d+: label 9 is outside 0 … 8"):
        check_labels(read_index(open_storage(str(digits))), 9)


@given(st.integers(0, 10**9), st.sampled_from([1, 50]), st.integers(0, 255))
def test_no_damage_to_an_index_goes_unseen(digits, place, count, value):
    data = bytearray((digits / INDEX_KEY).read_bytes())
    place %= len(data) - count
    data[place : place + count] = bytes([value]) * count
    index = read_index(open_storage(str(digits)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderStorage, "get", lambda self, key: bytes(data))
        try:
            damaged = read_index(open_storage(str(digits)))
        except DataError:
            return
    assert damaged.fingerprint() == index.fingerprint()


def test_names_that_are_no_text_are_written_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, data in (("caf\xe9.png", png(3)), ("caf\xe9.cls", b"7")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    _, index = indexed(tmp_path)
    assert index.keys.to_pylist() == ["caf\\xe9"]
    assert index.label.tolist() == [7]


def test_linked_folders_are_read_and_dead_links_are_told(tmp_path):
    write_shards(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dead.tar").symlink_to(tmp_path / "nowhere")
    (tmp_path / "data" / "circle.tar").symlink_to(tmp_path / "data" / "circle.tar")
    _, index = indexed(tmp_path / "data")
    assert index.about.passed_over["links to nothing beside the shards"] == 2
    assert index.names == [f"linked/part-{i:03d}.tar" for i in range(3)]


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet PAR1"])
def test_a_damaged_index_says_pack_again(tmp_path, content):
    (tmp_path / INDEX_KEY).write_bytes(content)
    with pytest.raises(DataError, match=r"index\.parquet: damaged .*pack again"):
        read_index(open_storage(str(tmp_path)))


def rewrite(folder: Path, digits: Path, head: Callable[[dict], object], **columns: object) -> Storage:
    """The digits' index in the folder, with its head changed by `head`, and these columns."""
    table = pq.read_table(digits / INDEX_KEY)
    content = json.loads(table.schema.metadata[b"index"])
    head(content)
    for name, values in columns.items():
        table = table.drop([name]) if values is None else table.set_column(
            table.column_names.index(name), name, pa.array(values)
        )  # fmt: skip
    table = table.replace_schema_metadata({"index": json.dumps(content)})
    pq.write_table(table, folder / INDEX_KEY)
    return open_storage(str(folder))


def test_an_index_that_is_written_anew_is_read_as_it_was(digits, tmp_path):
    index = read_index(rewrite(tmp_path, digits, lambda head: None))
    packed = read_index(open_storage(str(digits)))
    assert (index.about, index.shards, index.etags) == (packed.about, packed.shards, packed.etags)
    assert index.about.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "has version 2, but this service reads version 3; use the version of the"),
        ({"version": None}, "has no version, but this service reads version 3"),
        ({"fingerprint": "12ab"}, r"damaged \(fingerprint: String should match"),
        ({"fingerprint": "0" * 64}, r"damaged \(its content does not match its fingerprint\)"),
        ({"shards": {"a.tar": -1}}, r"damaged \(shards\.a\.tar: Input should be greater than or equal"),
        ({"shards": {"a.tar": "1"}}, r"damaged \(shards\.a\.tar: Input should be a valid integer"),
        ({"shards": {"a.tar": 1 << 40}}, r"damaged \(a sample lies in an unknown shard\)"),
        ({"etags": []}, r"damaged \(etags: Input should be an object"),
        ({"mood": "good"}, r"damaged \(mood: Extra inputs are not permitted"),
        ({"about": {"held_out": 1.0}}, r"damaged \(about\.held_out: Input should be less than 1"),
        ({"about": {"held_out": math.nan}}, r"damaged \(about\.held_out: Input should be"),
        ({"about": {"channels": 2}}, r"damaged \(about\.channels: Input should be 1 or 3"),
        ({"about": {"resolution": 0}}, r"damaged \(about\.resolution: Input should be greater"),
        ({"about": {"classes": [7]}}, r"damaged \(about\.classes\.0: Input should be a valid string"),
        ({"about": {"mood": "good"}}, r"damaged \(about\.mood: Unexpected keyword"),
    ],
    ids=str,
)
def test_a_head_that_no_pack_writes_is_told_with_its_field(digits, tmp_path, change, words):
    storage = rewrite(tmp_path, digits, lambda head: head.update(change))
    with pytest.raises(DataError, match=rf"^{tmp_path}/index\.parquet: {words}"):
        read_index(storage)


def test_an_index_without_a_head_is_damaged(digits, tmp_path):
    table = pq.read_table(digits / INDEX_KEY)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / INDEX_KEY)
    words = r"index\.parquet: damaged .*; pack again, or delete index\.parquet to have it"
    with pytest.raises(DataError, match=words):
        read_index(open_storage(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "values"),
    [("size", None), ("key", None), ("label", [0.5] * 1797), ("offset", ["1"] * 1797),
     ("shard", [1 << 40] * 1797), ("held_out", [None] * 1797), ("key", [*range(1797)])],
)  # fmt: skip
def test_a_column_that_is_missing_or_of_another_kind_is_damage(digits, tmp_path, name, values):
    storage = rewrite(tmp_path, digits, lambda head: None, **{name: values})
    with pytest.raises(DataError, match=r"index\.parquet: damaged \(.*pack again"):
        read_index(storage)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("shard", 9, "in an unknown shard"),
        ("shard", -1, "in an unknown shard"),
        ("offset", -512, "outside its shard"),
        ("offset", 1 << 40, "outside its shard"),
        ("size", 1 << 30, "outside its shard"),
        ("size", -1, "outside its shard"),
    ],
)
def test_a_sample_that_lies_nowhere_is_damage_though_the_fingerprint_fits(
    digits, tmp_path, column, value, words
):
    index = read_index(open_storage(str(digits)))
    values = getattr(index, column).copy()
    values[1000] = value
    storage = open_storage(str(tmp_path))
    write_index(storage, dataclasses.replace(index, **{column: values}))
    with pytest.raises(DataError, match=rf"index\.parquet: damaged \(a sample lies {words}\)"):
        read_index(storage)


def test_a_shard_whose_name_is_no_text_is_told(digits, tmp_path):
    shutil.copy(digits / "shard-000000.tar", os.fsencode(tmp_path) + b"/caf\xe9.tar")
    with pytest.raises(DataError, match=r"'caf\\udce9\.tar': not valid UTF-8, .*; rename it"):
        indexed(tmp_path)
    assert not (tmp_path / INDEX_KEY).exists()


def test_no_shards_at_all_says_pack_first(tmp_path):
    with pytest.raises(DataError, match="pack first"):
        indexed(tmp_path)


def test_packed_shards_are_indexed_anew_as_pack_indexed_them(digits):
    storage = open_storage(str(digits))
    packed, anew = read_index(storage), make_index(storage, storage.entries(), 0.05)
    assert anew.fingerprint() == packed.fingerprint()


@pytest.mark.parametrize(
    ("rows", "key", "codec", "words"),
    [
        (5_000_000, "k", "snappy", "damaged .5000000 samples in"),
        (4_000, "k" * 100_000, "snappy", "its keys may take 400000000 bytes"),
        (4_000, "k" * 100_000, "zstd", "compressed by ZSTD"),
    ],
    ids=str.split("rows keys codec"),
)
def test_an_index_that_would_take_far_more_memory_than_its_file_is_damaged(
    digits, tmp_path, rows, key, codec, words
):
    original = pq.read_table(digits / INDEX_KEY)
    numbers = pa.array(np.random.default_rng(0).permutation(rows) if rows < 10**5 else np.zeros(rows))
    columns = {name: pa.array(np.zeros(rows, np.int32)) for name in ("shard", "size", "label")}
    columns |= {"offset": numbers.cast(pa.int64()), "held_out": pa.array(np.zeros(rows, bool))}
    columns["key"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [key])
    table = pa.table(columns).replace_schema_metadata(original.schema.metadata)
    pq.write_table(table, tmp_path / INDEX_KEY, compression=codec)
    assert (tmp_path / INDEX_KEY).stat().st_size < 500_000
    with pytest.raises(DataError, match=words):
        read_index(open_storage(str(tmp_path)))


def test_an_index_that_is_refused_when_it_is_made_does_not_stay(tmp_path):
    """So a label that is corrected is read, though no shard has another size than before."""
    folder = tmp_path / "shards"
    write_shards(folder)
    storage = open_storage(str(folder))

    def check(index):
        check_labels(index, 4)

    for _ in range(2):
        with pytest.raises(DataError, match=r"dir/00004: label 4 is outside 0 … 3"):
            find_index(storage, storage, 0.0, check)
        assert not (folder / INDEX_KEY).exists()
    for shard in folder.glob("*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"4" + bytes(511), b"3" + bytes(511)))
    assert find_index(storage, storage, 0.0, check).label.max() == 3
    assert (folder / INDEX_KEY).exists()


def test_more_classes_than_the_data_has_are_refused(digits):
    index = read_index(open_storage(str(digits)))
    check_labels(index, 10)
    with pytest.raises(
        DataError, match=r"model.classes: 11, but the data's labels are 0 … 9; set it to 10"
    ):
        check_labels(index, 11)
