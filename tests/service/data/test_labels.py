"""Labels from files beside the images: numbers and names, in folders and archives, or refused."""

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from service import pack
from service.data.index import read_index
from service.data.sources import ImageSource, open_source
from service.errors import DataError, UsageError
from service.storage import open_storage

IMAGES = ["1.png", "b/2.png", "b/3.png"]


def places(tmp_path: Path, files: dict[str, str | bytes], images: list[str] = IMAGES) -> list[str]:
    """A folder with these files and images, and the same as an archive."""
    folder, archive = tmp_path / "source", tmp_path / "source.zip"
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / name)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder))
    return [str(folder), str(archive)]


def labelled(source: ImageSource) -> dict[str, tuple[int, str]]:
    pairs = zip(source.names, source.labels, strict=True)
    return {name.rpartition("/")[2]: (label, source.classes[label]) for name, label in pairs}


@pytest.mark.parametrize(
    ("files", "field", "expected"),
    [
        (
            {"metadata.csv": "file_name,label\n1.png,rose\nb/2.png,daisy\nb/3.png,rose\n"},
            None,
            [(1, "rose"), (0, "daisy"), (1, "rose")],
        ),
        (
            {"metadata.csv": b'\xef\xbb\xbffile_name,label\r\n1.png,2\r\nb/2.png,0\r\n"b/3.png",2\r\n'},
            None,
            [(2, "2"), (0, "0"), (2, "2")],
        ),
        (
            {"metadata.csv": 'file_name,text,kind\n1.png,"a, b",x\n./b/2.png,c,10\nb/3.png,d,9\n'},
            "kind",
            [(2, "x"), (0, "10"), (1, "9")],  # not all are numbers: in the order of their names
        ),
        (
            {
                "metadata.jsonl": '{"file_name": "1.png", "label": 1}\n\n'
                '{"file_name": "b/2.png", "label": 0}',
                "b/metadata.jsonl": '{"file_name": "3.png", "label": 1}\n',
            },
            None,
            [(1, "1"), (0, "0"), (1, "1")],
        ),
    ],
)
def test_labels_are_read_from_metadata(tmp_path, files, field, expected):
    for place in places(tmp_path, files):
        source = open_source(place, field=field)
        labels = labelled(source)
        assert [labels[name.rpartition("/")[2]] for name in IMAGES] == expected
        assert not source.notes
        assert not any(source.left_out.values())


def test_metadata_within_a_wrapping_folder_is_found(tmp_path):
    files = {"data/metadata.csv": "file_name,label\n1.png,a\n2.png,b\n"}
    for place in places(tmp_path, files, ["data/1.png", "data/2.png"]):
        assert labelled(open_source(place)) == {"1.png": (0, "a"), "2.png": (1, "b")}


def test_what_was_not_read_is_said(tmp_path):
    files = {"metadata.csv": "file_name,text\n1.png,x\n", "b/labels.tsv": "2.png\ta\n"}
    for place in places(tmp_path, files, ["a/1.png", "b/2.png"]):
        source = open_source(place)
        assert source.classes == ["a", "b"]
        assert source.left_out[".tsv"] == 1
        table, metadata = source.notes
        assert "b/labels.tsv was not read; labels come from metadata.csv or metadata.jsonl" in table
        assert "metadata.csv has no 'label'; if its labels have another name, give --label" in metadata


@pytest.mark.parametrize("names", [["img/1.png", "img/2.png"], ["img/a/1.png", "img/b/2.png"]])
def test_a_table_beside_the_one_folder_of_all_images_is_read(tmp_path, names):
    table = "file_name,label\n" + "".join(f"{name},{i}.0\n" for i, name in enumerate(names, 3))
    for place in places(tmp_path, {"metadata.csv": table}, names):
        assert open_source(place).labels == [3, 4]


def test_a_table_that_is_not_read_beside_the_one_folder_is_named(tmp_path):
    for place in places(tmp_path, {"labels.csv": "x"}, ["img/a/1.png", "img/b/2.png"]):
        source = open_source(place)
        assert source.classes == ["a", "b"]
        assert source.notes[0].startswith("labels.csv was not read")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {
                "metadata.csv": "file_name,label\na/1.png,x\n",
                "a/metadata.csv": "file_name,label\n1.png,y\n",
            },
            r"a/1\.png has the label '.', but '.' in another table",
        ),
        ({"dataset.json": '{"labels": [["a/1.png", 3], ["a/1.png", 4]]}'}, r"a/1\.png is there twice"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(tmp_path, files, words):
    for place in places(tmp_path, files, ["a/1.png"]):
        with pytest.raises(DataError, match=words):
            open_source(place)


def test_a_field_beside_a_dataset_json_is_refused(tmp_path):
    for place in places(tmp_path, {"dataset.json": '{"labels": null}'}, ["a/1.png"]):
        with pytest.raises(UsageError, match=r"--label kind: the labels are in .*dataset\.json"):
            open_source(place, field="kind")


def test_text_in_json_may_hold_any_character(tmp_path):
    line = '{"file_name": "1.png", "label": "a\u2028b\\ud800\x1b[31m"}'.replace("\x1b", "\\u001b")
    for place in places(tmp_path, {"metadata.jsonl": line}, ["1.png"]):
        assert open_source(place).classes == ["a\\u2028b\\ud800\\x1b[31m"]


def test_of_two_kinds_of_tables_the_one_that_was_not_read_is_named(tmp_path):
    files = {"dataset.json": '{"labels": [["1.png", 3]]}', "metadata.csv": "file_name,label\n1.png,x\n"}
    for place in places(tmp_path, files, ["1.png"]):
        source = open_source(place)
        assert source.labels == [3]
        assert source.notes == ("metadata.csv was not read, because dataset.json is there",)


def test_rows_of_images_that_are_not_there_are_told(tmp_path):
    files = {"metadata.csv": "file_name,label\n1.png,a\ngone.png,b\n"}
    for place in places(tmp_path, files, ["1.png"]):
        assert "lists 1 images that are not there" in open_source(place).notes[0]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"metadata.csv": "file_name,label\n1.png,a\n"}, r"has no label for b/2\.png \(2 such images\)"),
        ({"metadata.csv": "file_name,label\n1.png,-1\n"}, "line 2: 'label' is -1"),
        ({"metadata.csv": "file_name,label\n1.png,\n"}, "line 2: 'label' is ''"),
        ({"metadata.csv": "label\n1\n"}, "line 2 has no 'file_name'"),
        ({"metadata.csv": "file_name,label\n1.png,a\n1.png,b\n"}, "line 3: 1.png has another label"),
        ({"metadata.csv": "file_name,label\n1.png,rose, red\n"}, "line 2 has 3 cells, but line 1 has 2"),
        ({"metadata.csv": "file_name,label\n1.png\n"}, "line 2 has 1 cells, but line 1 has 2"),
        ({"metadata.csv": "file_name,label,label\n1.png,a,b\n"}, "line 1 names a column twice"),
        ({"metadata.csv": b"file_name,label\n\xff,1\n"}, "cannot be read"),
        ({"metadata.csv": 'file_name,label\n"1.png,a\n'}, "cannot be read"),
        ({"metadata.jsonl": "{}\n{"}, "cannot be read"),
        ({"metadata.jsonl": '["1.png", 1]'}, "line 1 is no object"),
        ({"metadata.jsonl": '{"file_name": "1.png", "label": 1.5}'}, "line 1: 'label' is 1.5"),
        ({"metadata.jsonl": "[" * 10**5}, "cannot be read"),
    ],
)
def test_a_damaged_or_incomplete_table_is_refused_and_named(tmp_path, files, words):
    for place in places(tmp_path, files):
        with pytest.raises(DataError, match=rf"metadata\.(csv|jsonl): .*{words}"):
            open_source(place)


def test_a_field_without_metadata_is_refused(tmp_path):
    for place in places(tmp_path, {}, ["a/1.png"]):
        with pytest.raises(UsageError, match=r"--label kind: .*has no metadata\.csv or metadata\.jsonl"):
            open_source(place, field="kind")
    with pytest.raises(UsageError, match="--label kind"):
        open_source("digits", field="kind")


def test_names_from_metadata_are_in_the_index(tmp_path):
    table = "file_name,label\n1.png,rose\nb/2.png,daisy\nb/3.png,rose\n"
    place = places(tmp_path, {"metadata.csv": table})[0]
    pack.main([place, str(tmp_path / "packed"), "--resolution", "16"])
    index = read_index(open_storage(str(tmp_path / "packed")))
    assert index.about.classes == ("daisy", "rose")
    assert sorted(index.label.tolist()) == [0, 1, 1]
