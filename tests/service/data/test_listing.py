"""What of a folder or an archive is taken, what is left out and counted, and which class it is."""

import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service import pack
from service.data.index import read_index
from service.data.listing import classes_of_folders
from service.data.sources import ImageSource, open_source
from service.errors import DataError
from service.storage import open_storage


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path, "PNG")


def sources(tmp_path: Path, names: list[str]) -> list[ImageSource]:
    """Files of these names in a folder, and zipped."""
    folder = tmp_path / "source"
    for name in names:
        draw(folder / name)
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        for name in names:
            archive.write(folder / name, name)
    return [open_source(str(place), None) for place in (folder, tmp_path / "source.zip")]


def labelled(source: ImageSource) -> list[tuple[str, str]]:
    """Name of the file and of its class."""
    pairs = zip(source.names, source.labels, strict=True)
    return [(name.rpartition("/")[2], source.classes[label]) for name, label in pairs]


def test_what_is_left_out_is_counted_by_reason_and_suffix(tmp_path):
    names = ["a/1.png", "a/2.JPG", "b/3.jfif", "a/._1.png", ".hidden/4.png", "__MACOSX/a/1.png",
             "a/film.mp4", "a/photo.heic", "b/photo.HEIC", "b/README", "labels.csv"]  # fmt: skip
    for source in sources(tmp_path, names):
        assert labelled(source) == [("1.png", "a"), ("2.JPG", "a"), ("3.jfif", "b")]
        assert source.left_out == {"hidden": 3, ".mp4": 1, ".heic": 2, "no suffix": 1, ".csv": 1}


def test_pack_tells_the_classes_and_what_it_left_out(tmp_path, capsys):
    for name in ("daisy/1.png", "daisy/2.png", "tulip/1.png", "tulip/notes.txt"):
        draw(tmp_path / "flowers" / name)
    pack.main([str(tmp_path / "flowers"), str(tmp_path / "out"), "--resolution", "16"])
    output = capsys.readouterr().out
    assert "  0 daisy 2\n  1 tulip 1\n" in output
    assert "left out: 1 .txt" in output


def test_links_to_folders_are_followed_once_each_and_lead_in_no_circle(tmp_path):
    folder, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    draw(folder / "real" / "1.png")
    draw(elsewhere / "2.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked_again").symlink_to(elsewhere)
    (folder / "real" / "up").symlink_to(folder)
    (folder / "real" / "above").symlink_to(tmp_path)
    (folder / "also_real").symlink_to(folder / "real")
    (folder / "real" / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "real" / "pipe.png")
    source = open_source(str(folder), None)
    assert labelled(source) == [("2.png", "linked"), ("1.png", "real"), ("gone.png", "real")]
    assert source.left_out == {"a link to a folder that is read anyway": 4, "no regular file": 1}


def test_a_folder_whose_classes_are_all_links_is_read(tmp_path):
    for name in ("a", "b", "c"):
        draw(tmp_path / "store" / name / "1.png")
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / name).symlink_to(tmp_path / "store" / name)
    assert open_source(str(tmp_path / "source"), None).classes == ["a", "b", "c"]


@pytest.mark.parametrize("top", ["", "flowers/", "train/"])
def test_one_folder_around_the_classes_is_taken_off(tmp_path, top):
    for source in sources(tmp_path, [f"{top}daisy/1.png", f"{top}tulip/2.png"]):
        assert source.classes == ["daisy", "tulip"]


def test_pictures_beside_the_classes_and_splits_as_classes_are_refused(tmp_path):
    for names, words in (
        (["a/1.png", "b/2.png", "cover.png"], "1 images lie beside .*such as cover.png; move"),
        (["train/a/1.png", "val/a/2.png"], r"\(train, val\) are splits, not classes; pack one"),
        (["Train/1.png", "test/2.png"], r"\(Train, test\) are splits"),
    ):
        with pytest.raises(DataError, match=words):
            classes_of_folders("here", names)


def test_folders_within_classes_are_told(tmp_path):
    for source in sources(tmp_path, ["a/x/1.png", "a/y/2.png", "b/3.png"]):
        assert source.classes == ["a", "b"]
        (note,) = source.notes
        assert "2 images lie in folders within a class's folder, such as a/x/1.png" in note


@given(st.integers(1, 300), st.integers(0, 3), st.randoms())
def test_folders_of_the_numbers_from_0_keep_their_numbers(count, zeros, random):
    names = [str(i).zfill(zeros) for i in range(count)]
    random.shuffle(names)
    classes = classes_of_folders("here", [f"{name}/1.png" for name in names])
    assert classes.labels == [int(name) for name in names]
    assert not classes.notes


@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=40))
def test_other_numbers_are_in_the_order_of_numbers_which_is_told(numbers):
    classes = classes_of_folders("here", [f"{number}/1.png" for number in numbers])
    assert [int(name) for name in classes.names] == sorted(numbers)
    assert bool(classes.notes) == (sorted(numbers) != list(range(len(numbers))))


def test_the_names_of_classes_are_in_the_index(tmp_path):
    sources(tmp_path, [f"{number}/1.png" for number in (2, 10, 1)])
    pack.main([str(tmp_path / "source"), str(tmp_path / "out"), "--resolution", "16"])
    assert read_index(open_storage(str(tmp_path / "out"))).about.classes == ("1", "2", "10")


def test_many_classes_are_numbered_in_time_that_grows_with_the_images():
    """By a dictionary: with a list, so many would take minutes."""
    members = [f"n{i % 20_000:08d}/{i}.png" for i in range(200_000)]
    classes = classes_of_folders("here", members)
    assert classes.labels[:3] == [0, 1, 2]
    assert len(classes.names) == 20_000
