"""`service.sample … images`: separate images, the same by any path, in every format, or refused."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service import pack, sample
from service.data.index import read_index
from service.data.indexing import find_index
from service.data.packing import check_digests
from service.data.stream import read_samples
from service.errors import DataError, StorageError, UsageError
from service.generation import destinations, images
from service.storage import open_storage
from service.storage.folder import FolderStorage
from tests import runs

FAMILIES = ("biggan", "stylegan", "dcgan", "progan")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, str]:
    """A run of each family."""
    folder = tmp_path_factory.mktemp("runs")
    return {family: runs.make_run(folder / family, family) for family in FAMILIES}


def draw(run: str, out: Path | str, count: int, *flags: str) -> None:
    sample.main(
        [run, "images", "--out", str(out), "--count", str(count), "--standing-batches", "2", *flags]
    )


def arrays(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file) as archive:
        assert sorted(archive.files) == ["images", "labels"]
        return archive["images"], archive["labels"]


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def pngs(folder: Path) -> np.ndarray:
    return np.stack([pixels(file.read_bytes()) for file in sorted(folder.glob("*.png"))])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_is_the_same_to_the_bit_in_any_batch_and_share_and_on_any_cores(
    family, trained, tmp_path
):
    draw(trained[family], tmp_path / "whole.npz", 150)
    whole, _ = arrays(tmp_path / "whole.npz")
    assert whole.shape == (150, 16, 16, 3 if family == "dcgan" else 1)
    assert whole.dtype == np.uint8
    for batch in (1, 7, 1000):
        draw(trained[family], tmp_path / "again.npz", 150, "--batch", str(batch))
        assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    cores = torch.get_num_threads()
    try:
        for other in {1, 2, 3} - {cores}:
            torch.set_num_threads(other)
            draw(trained[family], tmp_path / "again.npz", 150)
            assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
            assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(cores)
    parts = []
    for start, count in ((0, 1), (1, 62), (63, 66), (129, 21)):
        draw(trained[family], tmp_path / "part.npz", count, "--start", str(start))
        parts.append(arrays(tmp_path / "part.npz")[0])
    assert np.array_equal(np.concatenate(parts), whole)


def test_images_are_those_of_a_grid_with_the_same_seed(trained, tmp_path):
    draw(trained["biggan"], tmp_path / "a.npz", 6, "--seed", "5")
    grid = ["grid", "--rows", "2", "--pixels", "16", "--standing-batches", "2", "--seed", "5"]
    sample.main([trained["biggan"], *grid, "--out", str(tmp_path / "g.png")])
    with Image.open(tmp_path / "g.png") as image:
        sheet = np.asarray(image)
    first, _ = arrays(tmp_path / "a.npz")
    below = sheet[len(sheet) - (2 * 18 - 2) :]
    for i in range(6):
        top, left = 18 * (i // 3), 18 * (i % 3)
        cell = below[top : top + 16, left : left + 16].astype(int)
        assert np.abs(cell - first[i, :, :, 0]).max() <= 1


def test_classes_come_in_turn_by_number_and_those_chosen_by_name(trained, tmp_path):
    draw(trained["biggan"], tmp_path / "a.npz", 8, "--start", "2")
    assert arrays(tmp_path / "a.npz")[1].tolist() == [2, 0, 1, 2, 0, 1, 2, 0]
    draw(trained["biggan"], tmp_path / "b.npz", 4, "--classes", "rose,0")
    assert arrays(tmp_path / "b.npz")[1].tolist() == [2, 0, 2, 0]
    draw(trained["progan"], tmp_path / "c.npz", 3)
    assert arrays(tmp_path / "c.npz")[1].tolist() == [0, 0, 0]


def test_the_look_is_that_of_the_sheets(trained, tmp_path):
    def images_of(family: str, *flags: str) -> np.ndarray:
        draw(trained[family], tmp_path / "x.npz", 20, *flags)
        return arrays(tmp_path / "x.npz")[0].astype(float)

    same = images_of("stylegan", "--psi", "0", "--noise", "off", "--classes", "1")
    assert len(np.unique(same.reshape(20, -1), axis=0)) == 1
    assert len(np.unique(images_of("stylegan", "--psi", "0").reshape(20, -1), axis=0)) == 20
    beyond = images_of("stylegan", "--psi", "0", "--cutoff", "0")
    assert np.array_equal(beyond, images_of("stylegan"))
    near = images_of("dcgan", "--truncation", "0.05", "--classes", "1")
    far = images_of("dcgan", "--classes", "1")
    assert near.std(axis=0).mean() < 0.3 * far.std(axis=0).mean()
    assert not np.array_equal(far, images_of("dcgan", "--classes", "1", "--seed", "1"))
    assert images_of("progan", "--resolution", "8").shape == (20, 8, 8, 1)


@pytest.mark.parametrize("family", ["dcgan", "progan"])
def test_every_format_holds_the_same_images_and_labels(family, trained, tmp_path):
    run = trained[family]
    flags = ("--start", "7")
    draw(run, tmp_path / "folder", 70, *flags)
    draw(run, tmp_path / "a.zip", 70, *flags)
    draw(run, tmp_path / "a.npz", 70, *flags)
    draw(run, tmp_path / "shards", 70, *flags, "--format", "shards", "--shard-samples", "32")
    expected, labels = arrays(tmp_path / "a.npz")
    assert np.array_equal(pngs(tmp_path / "folder"), expected)
    names = [f"{number:08d}.png" for number in range(7, 77)]
    listed = [*names, "dataset.json"] if family == "dcgan" else names
    assert sorted(file.name for file in (tmp_path / "folder").iterdir()) == listed
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == listed
        for name in listed:
            assert archive.read(name) == (tmp_path / "folder" / name).read_bytes()
        if family == "dcgan":
            pairs = json.loads(archive.read("dataset.json"))["labels"]
            assert pairs == [list(pair) for pair in zip(names, labels.tolist(), strict=True)]
    storage = open_storage(str(tmp_path / "shards"))
    index = read_index(storage)
    assert list(index.shards) == ["shard-00000007.tar", "shard-00000039.tar", "shard-00000071.tar"]
    read = [pixels(data) for data in read_samples(storage, index, np.arange(70))]
    assert np.array_equal(np.stack(read), expected)
    assert index.label.tolist() == labels.tolist()
    assert index.about.classes == (runs.NAMES if family == "dcgan" else ())
    assert (index.about.resolution, index.about.channels) == (16, expected.shape[-1])
    check_digests(storage, index)
    made = find_index(storage, open_storage(str(tmp_path / "elsewhere")))  # from the tar headers
    assert made.fingerprint() == index.fingerprint()


@pytest.mark.parametrize("name", ["drawn", "drawn.zip"])
def test_pack_takes_what_was_drawn_with_its_labels(name, trained, tmp_path):
    draw(trained["dcgan"], tmp_path / name, 30)
    arguments = [str(tmp_path / name), str(tmp_path / "packed"), "--resolution", "16"]
    pack.main([*arguments, "--format", "png"])
    index = read_index(open_storage(str(tmp_path / "packed")))
    assert np.bincount(index.label).tolist() == [10, 10, 10]


def test_the_same_command_gives_the_same_bytes_in_s3_and_in_a_folder(s3, trained, tmp_path):
    for name, flags in (("a.zip", []), ("a.npz", []), ("pngs", []), ("t", ["--format", "shards"])):
        for place in (f"{s3}/images", str(tmp_path)):
            draw(trained["dcgan"], f"{place}/{name}", 20, *flags)
    there, here = open_storage(f"{s3}/images"), open_storage(str(tmp_path))
    keys = [key for key in here.sizes() if "index" not in key]
    assert len(keys) == 2 + 21 + 1
    assert all(there.get(key) == here.get(key) for key in keys)
    assert [key for key in there.sizes() if "index" not in key] == keys
    fingerprints = [
        read_index(open_storage(f"{place}/t")).fingerprint() for place in (f"{s3}/images", str(tmp_path))
    ]
    assert fingerprints[0] == fingerprints[1]
    with pytest.raises(UsageError, match=r"not empty, it holds 00000000\.png and 20 more; choose a new"):
        draw(trained["dcgan"], f"{s3}/images/pngs", 2)


class DiskFullError(OSError):
    """What a write meets in the middle."""


@pytest.mark.parametrize(
    ("name", "flags"), [("a.zip", ()), ("a.npz", ()), ("pngs", ()), ("tars", ("--format", "shards"))]
)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, DiskFullError])
def test_an_interrupted_command_leaves_nothing_half_under_a_final_name(
    name, flags, failure, trained, tmp_path, monkeypatch
):
    def fails(self: images.Portions, portion: int) -> np.ndarray:
        if portion == 1:
            raise failure
        return drawn(self, portion)

    drawn = images.Portions.draw
    out = tmp_path / name
    if out.suffix:
        out.write_bytes(b"an earlier set")
    with monkeypatch.context() as patch:
        patch.setattr(images.Portions, "draw", fails)
        with pytest.raises((KeyboardInterrupt, DiskFullError, StorageError)):
            draw(trained["dcgan"], out, 100, *flags)
    assert not [file for file in tmp_path.rglob("*") if ".unfinished" in file.name]
    if out.suffix:
        assert out.read_bytes() == b"an earlier set"
        assert [file.name for file in tmp_path.iterdir()] == [name]
        return
    for file in out.rglob("*.png"):
        pixels(file.read_bytes())
    assert not [*out.rglob("*.tar")]
    with pytest.raises(UsageError, match=r"an earlier command was interrupted; delete it, or choose"):
        draw(trained["dcgan"], out, 100, *flags)
    if flags:
        with pytest.raises(DataError, match="unfinished"):
            find_index(open_storage(str(out)), open_storage(str(out)))


def test_an_image_file_is_replaced_as_sheets_are_and_folders_are_never_added_to(trained, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"old")
    draw(trained["dcgan"], tmp_path / "a.npz", 2)
    assert arrays(tmp_path / "a.npz")[0].shape == (2, 16, 16, 3)
    (tmp_path / "empty").mkdir()
    draw(trained["dcgan"], tmp_path / "empty", 2)
    for flags in ((), ("--format", "shards")):
        with pytest.raises(UsageError, match=r"not empty, it holds 00000000.png and 2 more; choose a n"):
            draw(trained["dcgan"], tmp_path / "empty", 2, *flags)
    assert len([*(tmp_path / "empty").iterdir()]) == 3


def test_images_wait_in_memory_only_up_to_the_batch(trained, tmp_path, monkeypatch):
    """A slow disk holds the drawing up."""
    ahead, written = [0], [0]

    class Slow(FolderStorage):
        def put(self, key: str, data: bytes) -> None:
            if key.endswith(".png"):
                written[0] += 1
                ahead.append(drawn[0] - written[0])

    drawn = [0]
    original = images.draw_images

    def counted(*arguments):
        for one in original(*arguments):
            drawn[0] += 1
            yield one

    monkeypatch.setattr(images, "draw_images", counted)
    monkeypatch.setattr(destinations, "open_storage", lambda address, _: Slow(address))
    draw(trained["progan"], tmp_path / "pngs", 500, "--batch", "20")
    assert written[0] == 500
    assert max(ahead) <= 20 + destinations.WRITERS


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--count: missing; say how many images, such as --count 50000"),
        (["--count", "0"], "--count 0: give a whole number from 1 to 100000000"),
        (["--count", "-3"], "--count -3: give a whole number from 1 to 100000000"),
        (["--count", "100000001"], "--count 100000001: give a whole number from 1 to 100000000"),
        (["--count", "2", "--start", "99999999"], "--start 99999999: --count 2 from there ends beyond"),
        (["--count", "2", "--start", "-1"], "--start -1: give a whole number from 0 to 99999999"),
        (["--count", "2", "--batch", "0"], "--batch 0: give a whole number from 1 to 100000"),
        (["--count", "2", "--rows", "3"], "--rows: only sheets take it, images do not; leave it out"),
        (["--count", "2", "--columns", "3"], "--columns: only sheets take it"),
        (["--count", "2", "--steps", "3"], "--steps: only sheets take it"),
        (["--count", "2", "--frame-ms", "30"], "--frame-ms: only sheets take it"),
        (["--count", "2", "--pixels", "30"], "--pixels: only sheets take it"),
        (["--count", "2", "--format", "tar"], "--format tar: choose folder, zip, npz or shards"),
        (["--count", "2", "--format", "zip"], "--format zip writes a file .zip; change one of them"),
        (["--count", "2", "--shard-samples", "5"], "--shard-samples: only --format shards takes it"),
        (["--count", "2", "--out", "x.png"], "x.png: images are written to a folder, a .zip or an .npz"),
        (["--count", "2", "--out", "x.npz", "--format", "shards"], "--format shards writes a folder"),
        (["--count", "2", "--out", "s3://x.npz"], "s3://x.npz: a bucket, but no file in it"),
        (["--count", "2", "--out", "gs://x/y"], "gs://x/y: unknown kind of address"),
        (["--count", "2", "--classes", "lily"], "--classes lily: no such class; give one of daisy"),
        (
            ["--count", "2", "--resolution", "32"],
            "--resolution 32: not trained yet; choose one of 8, 16",
        ),
        (["--count", "2", "--psi", "0.5"], "dcgan has no w; use --truncation"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_remedy(flags, words, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        sample.main([trained["dcgan"], "images", "--out", "x", *flags])
    assert not [*tmp_path.iterdir()]


def test_sheets_refuse_what_only_images_take(trained, tmp_path):
    for flags in (["--count", "3"], ["--start", "3"], ["--format", "zip"], ["--batch", "3"]):
        with pytest.raises(
            UsageError, match=f"{flags[0]}: only images take it, sheets such as grid do n"
        ):
            sample.main([trained["dcgan"], "grid", "--out", str(tmp_path / "x.png"), *flags])


def test_a_destination_that_cannot_be_written_is_found_before_anything_is_drawn(
    trained, tmp_path, monkeypatch
):
    def drawn(*_):
        raise AssertionError("drawn in vain")

    monkeypatch.setattr(images, "Portions", drawn)
    (tmp_path / "file").write_text("")
    (tmp_path / "a.npz").mkdir()
    for out, words in (
        (tmp_path / "file", "file: a file; name a new folder"),
        (tmp_path / "file" / "inner", "inner"),
        (tmp_path / "file" / "a.zip", "a.zip"),
        (tmp_path / "a.npz", "a.npz: a folder; name a file in it"),
        ("/proc/drawn", "drawn"),
        ("/proc/a.npz", "a.npz"),
    ):
        with pytest.raises((UsageError, StorageError), match=words):
            draw(trained["dcgan"], out, 2)


def test_a_bucket_that_is_not_there_is_found_before_anything_is_drawn(s3, trained, monkeypatch):
    monkeypatch.setattr(images, "Portions", None)
    for name in ("a.npz", "pngs"):
        with pytest.raises(StorageError, match="no-such-bucket"):
            draw(trained["dcgan"], f"s3://no-such-bucket/{name}", 2)


@pytest.mark.slow
def test_shares_drawn_apart_make_one_folder_of_shards(trained, tmp_path):
    flags = ("--format", "shards", "--shard-samples", "25")
    draw(trained["biggan"], tmp_path / "whole", 100, *flags)
    draw(trained["biggan"], tmp_path / "joined", 50, *flags)
    draw(trained["biggan"], tmp_path / "rest", 50, "--start", "50", *flags)
    for shard in (tmp_path / "rest").glob("*.tar"):
        shard.rename(tmp_path / "joined" / shard.name)
    for file in (tmp_path / "joined").glob("index.*"):
        file.unlink()
    whole, joined = (open_storage(str(tmp_path / name)) for name in ("whole", "joined"))
    assert find_index(joined, joined).fingerprint() == read_index(whole).fingerprint()
