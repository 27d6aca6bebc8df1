"""`service.pack` through its command: again, over what is there, and what it refuses."""

from pathlib import Path

import pytest

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
    assert list(contents(tmp_path)) == ["index.parquet", "shard-000000.tar"]


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
        (["--resolutoin", "16", "digits", "out"], r"--resolutoin: .*did you mean --resolution\?"),
    ],
)
def test_bad_arguments_say_what_to_do(tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=word):
        pack.main(arguments)
    assert list(tmp_path.iterdir()) == []
