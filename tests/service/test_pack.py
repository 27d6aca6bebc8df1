"""`service.pack` through its command: again, over what is there, and what it refuses."""

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from service import pack
from service.errors import UsageError


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.slow
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
    assert list(contents(tmp_path)) == ["index.marks.json", "index.parquet", "shard-000000.tar"]


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
        (["digits", ""], "destination: empty"),
        (["digits"], "arguments are required: DESTINATION"),
        (["digits", "out", "--held-out", "nan"], "--held-out nan: give a share from 0 to below 1"),
        (["digits", "out", "--seed", "-1"], "--seed -1: give a whole number from 0 to"),
        (["digits", "out", "--channels", "cmyk"], "--channels cmyk: choose gray or rgb"),
        (["digits", "out", "--retry-s", "nan"], "--retry-s nan: give a number from 0 to"),
        (["digits", "s3:/bucket/x"], "s3:/bucket/x: unknown kind of address"),
        (["digits", "gs://bucket/x"], "gs://bucket/x: unknown kind of address"),
        (["digits", "s3://"], "s3://: names no bucket"),
        (["nowhere", "s3:/bucket/x"], "s3:/bucket/x"),
        (["--resolutoin", "16", "digits", "out"], r"--resolutoin: .*did you mean --resolution\?"),
    ],
)
def test_bad_arguments_say_what_to_do(tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=word):
        pack.main(arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_is_a_file_or_lies_in_the_source_is_refused(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"kept")
    source = str(tmp_path / "images")
    for place in (source, f"{source}/a", f"{source}/packed"):
        with pytest.raises(UsageError, match="lies in the source"):
            pack.main([source, place])
    with pytest.raises(UsageError, match="file: a file; name a folder"):
        pack.main(["digits", str(tmp_path / "file")])
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert list((tmp_path / "images").iterdir()) == [tmp_path / "images" / "a"]


def test_a_tar_is_no_source_and_the_remedy_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(UsageError, match=rf"a\.tar: a tar file; .*--data\.url {tmp_path}"):
        pack.main([str(tmp_path / "a.tar"), str(tmp_path / "out")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resolution", "options", "suffix"),
    [("128", [], "png"), ("256", [], "jpg"), ("256", ["--format", "png"], "png")],
)
def test_large_images_become_jpegs_and_it_is_said_why(tmp_path, capsys, resolution, options, suffix):
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (300, 300), (i, 90, 200)).save(tmp_path / "images" / f"{i}.png")
    pack.main([str(tmp_path / "images"), str(tmp_path / "out"), "--resolution", resolution, *options])
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        suffixes = {name.rpartition(".")[2] for name in tar.getnames()} - {"cls"}
    assert suffixes == {suffix}
    told = "packed as JPEG, quality 95" in capsys.readouterr().out
    assert told == (suffix == "jpg")


@pytest.mark.slow
def test_a_tilde_that_no_shell_expanded_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pack.main(["digits", "~/packed", "--resolution", "8"])
    assert (tmp_path / "packed" / "index.parquet").exists()
