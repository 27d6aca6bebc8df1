"""Registered generators draw, wherever MLflow loads them, what sampling would draw here."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

from service import register, sample
from service.errors import UsageError
from service.generation.registry import RegistryError
from tests.runs import FAMILIES, make_run

SHOWN = ["biggan", "stylegan", "progan"]
pytestmark = pytest.mark.slow

LOAD = """
import json, sys
import mlflow, numpy
uri, tables, folder = sys.argv[1:]
mlflow.set_tracking_uri(uri)
for family, tables in json.load(open(tables)).items():
    model = mlflow.pyfunc.load_model(f"models:/{family}@best")
    numpy.savez(f"{folder}/{family}.npz", *(model.predict(table) for table in tables))
"""
# By family: a row, and the options that draw the same by `service.sample`.
SAME = [
    ("biggan", {"seed": 0, "class": 2}, "--seed 0 --classes 2"),
    ("biggan", {"seed": 0, "class": 1, "truncation": 0.5}, "--seed 0 --classes 1 --truncation 0.5"),
    ("stylegan", {"seed": 5, "class": "daisy"}, "--seed 5 --classes daisy"),
    ("stylegan", {"seed": 7, "class": 1, "truncation": 0.7}, "--seed 7 --classes 1 --psi 0.7"),
    ("progan", {"seed": 11}, "--seed 11"),
]
ROW: dict[str, Any] = {"seed": 3, "class": 1, "truncation": None}
OTHERS = [{"seed": 4, "class": 1}, {"seed": 3, "class": 2}, {"seed": 3, "class": 1, "truncation": 0.5}]
FREE = [{"seed": seed} for seed in range(8)]
FIXED = [{"seed": seed, "class": label} for seed in range(8) for label in range(3)]
TABLES: dict[str, list[list[dict[str, Any]]]] = {
    family: [[row] for name, row, _ in SAME if name == family] for family in SHOWN
}
TABLES["biggan"] += [[ROW], [*OTHERS, ROW], FREE, FIXED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(folder) -> str:
    """The address of a database in which a run of each family shown is registered."""
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.MlflowClient(uri).create_experiment("gan-training", (folder / "artifacts").as_uri())
    for family in SHOWN:
        register.main([make_run(folder / family, family), "--name", family, "--tracking-uri", uri])
    return uri


@pytest.fixture(scope="module")
def drawn(registry, folder) -> Callable[[str, list[dict[str, Any]]], np.ndarray]:
    """What a family's model draws of a table, in a process that knows nothing of this repository."""
    (folder / "tables.json").write_text(json.dumps(TABLES))
    (folder / "elsewhere").mkdir()
    command = [sys.executable, "-c", LOAD, registry, str(folder / "tables.json"), str(folder)]
    subprocess.run(command, cwd=folder / "elsewhere", check=True)

    def drawn_of(family: str, table: list[dict[str, Any]]) -> np.ndarray:
        with np.load(folder / f"{family}.npz") as found:
            return found[f"arr_{TABLES[family].index(table)}"]

    return drawn_of


def sampled(folder: Path, family: str, *options: str) -> np.ndarray:
    out = folder / "sample.png"
    sample.main([str(folder / family), "grid", "--out", str(out), "--rows", "1", "--columns", "1",
                 "--pixels", "1", *options])  # fmt: skip
    pixels = np.asarray(Image.open(out))
    return pixels if pixels.ndim == 3 else pixels[..., None]


@pytest.mark.parametrize(("family", "row", "options"), SAME)
def test_a_row_gives_the_very_image_that_sampling_gives(drawn, folder, family, row, options):
    images = drawn(family, [row])
    side = FAMILIES[family]["resolution"]
    assert images.dtype == np.uint8
    assert images.shape == (1, side, side, FAMILIES[family]["channels"])
    sheet = sampled(folder, family, *options.split())  # the class's name stands over the image
    np.testing.assert_array_equal(images[0], sheet[len(sheet) - side :])


def test_a_row_gives_the_same_image_in_any_table_and_others_another(drawn):
    alone, together = drawn("biggan", [ROW]), drawn("biggan", [*OTHERS, ROW])
    np.testing.assert_array_equal(alone[0], together[3])
    assert all((other != alone[0]).any() for other in together[:3])


def test_a_row_without_class_takes_one_by_its_seed(drawn):
    free, fixed = drawn("biggan", FREE), drawn("biggan", FIXED)
    chosen = [
        [label for label in range(3) if (fixed[3 * seed + label] == free[seed]).all()]
        for seed in range(8)
    ]
    assert all(len(labels) == 1 for labels in chosen)
    assert len({labels[0] for labels in chosen}) > 1


@pytest.mark.parametrize(
    ("family", "row", "words"),
    [
        ("biggan", {"class": 1}, "seed"),
        ("biggan", {"seed": 1, "class": 3}, "row 0: class 3: give a whole number from 0 to 2"),
        ("biggan", {"seed": -1, "class": 0}, "row 0: seed -1"),
        ("biggan", {"seed": 1, "class": 0, "truncation": 0.0}, "row 0: truncation 0.0"),
        ("biggan", {"seed": 1, "class": float("inf")}, "row 0: class inf: give a whole number"),
        ("biggan", {"seed": 1, "class": "lily"}, "row 0: class lily: no such class; give one of daisy,"),
        ("biggan", {"seed": 1, "class": True}, "row 0: class True: give a whole number"),
        ("biggan", {"seed": 1, "class": [2]}, r"row 0: class \[2\]: give a whole number"),
        ("biggan", {"seed": 1, "truncation": "half"}, "row 0: truncation 'half': give a number"),
        ("progan", {"seed": 1, "class": 0}, "this model has no classes"),
        ("progan", {"seed": 1, "truncation": 0.5}, "progan normalises its latents"),
    ],
)
def test_what_a_row_may_not_ask_for_is_named(registry, family, row, words):
    mlflow.set_tracking_uri(registry)
    model = mlflow.pyfunc.load_model(f"models:/{family}@best")
    with pytest.raises((ValueError, mlflow.MlflowException), match=words):
        model.predict([row])


def test_a_checkpoint_is_registered_once_and_aliases_move(registry, folder):
    client = mlflow.MlflowClient(registry)
    again = ["--name", "biggan", "--tracking-uri", registry]
    register.main([str(folder / "biggan"), *again, "--alias", "candidate"])
    (version,) = client.search_model_versions("name = 'biggan'")
    assert client.get_model_version_by_alias("biggan", "candidate").version == version.version
    later = make_run(folder / "later", "biggan", clock=192)
    register.main([later, *again])
    assert client.get_model_version_by_alias("biggan", "best").version == 2
    assert client.get_model_version_by_alias("biggan", "candidate").version == 1
    client.set_registered_model_alias("biggan", "best", "1")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name", "a/b"], "--name a/b: give a name without / : . % or quotes"),
        (["--name", "it's"], "--name it's: give a name without / : . % or quotes"),
        (
            ["--name", "x", "--alias", "latest"],
            "--alias latest: give letters, digits, - and _, but not latest, or v and a number",
        ),
        (
            ["--name", "x", "--alias", "v1"],
            "--alias v1: give letters, digits, - and _, but not latest, or v and a number",
        ),
        (
            ["--name", "x", "--tracking-uri", "http://me:secret@host:9"],
            "holds a user",
        ),
    ],
)
def test_names_that_mlflow_refuses_and_credentials_are_refused_first(folder, registry, flags, words):
    uri = [] if "--tracking-uri" in flags else ["--tracking-uri", registry]
    with pytest.raises(UsageError, match=words) as refused:
        register.main([str(folder / "progan"), *flags, *uri])
    assert "secret" not in str(refused.value)


def test_a_registry_that_is_away_and_a_run_without_checkpoints_are_told(folder, registry, tmp_path):
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9: could not register x"):
        register.main([str(folder / "progan"), "--name", "x", "--tracking-uri", "http://127.0.0.1:9"])
    with pytest.raises(UsageError, match="no committed checkpoint there"):
        register.main([str(tmp_path), "--name", "x", "--tracking-uri", registry])
