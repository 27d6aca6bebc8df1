"""Scores along truncation: what is measured at each value, printed, written, drawn and refused."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service import evaluate
from service.engine.sampler import Sampler, Truncation
from service.errors import UsageError
from service.metrics.features import open_features
from service.metrics.prdc import prdc
from service.random.draws import Draws
from service.run.best import load
from service.run.directory import RUN_KEY, read_run
from service.run.ranking import Score
from service.scoring import scorer as scoring
from service.scoring.scorer import Scorer
from service.scoring.tradeoff import Axis, Tradeoff, axis_of
from service.scoring.tradeoff_picture import draw_tradeoff
from service.storage import open_storage
from tests.runs import FAMILIES, make_run

IMAGES = 40
ALONG = ["--along", "truncation"]
FEATURES = "efficientnet_lite0"
FD, IS = f"fd_{FEATURES}", f"is_{FEATURES}"
SWD = f"swd_{IMAGES}_held_out"
DENSITY = f"density_{FEATURES}_{IMAGES}_held_out"


def run_of(folder: Path, family: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run whose checkpoint claims to be trained on digits."""
    monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"classes": 10, "channels": 1})
    scores = {"scores": ["swd"], "best": "swd", "images": IMAGES}
    address = make_run(folder, family, data=str(data), evaluation=scores)
    storage = open_storage(address)
    fingerprint = scorer_of(address)._index.fingerprint()
    document = read_run(storage).model_copy(update={"fingerprint": fingerprint, "classes": ()})
    storage.put(RUN_KEY, document.to_bytes())
    return address


def scorer_of(address: str) -> Scorer:
    config = load(address).config
    return Scorer(config, config.evaluation, open_storage(address))


@pytest.mark.slow
def test_each_value_has_the_scores_of_images_drawn_and_of_batch_norm_measured_within_it(
    digits, tmp_path, monkeypatch, capsys
):
    address = run_of(tmp_path / "run", "biggan", digits, monkeypatch)
    reads: list[int] = []
    read = scoring.read
    monkeypatch.setattr(scoring, "read", lambda *given: reads.append(1) or read(*given))
    file = tmp_path / "along.json"
    values = ["inf", "0.5", "0.5"]
    evaluate.main([address, *ALONG, "--values", *values, "--scores", "density", "--out", str(file)])
    assert len(reads) == 2  # held-out and training images, once for all values
    head, *lines = (line.split() for line in capsys.readouterr().out.splitlines()[2:])
    assert head == ["threshold", DENSITY, "left"]
    assert [line[0] for line in lines] == ["0.5", "all"]
    points = json.loads(file.read_text())["points"]
    assert [point["threshold"] for point in points] == [0.5, None]

    trained, scorer, numbers = load(address), scorer_of(address), np.arange(IMAGES)
    sampler = Sampler(trained.generator, trained.shape, trained.stage, 0, truncation=0.5)
    latents = Draws(0, "evaluation", 0).truncated(numbers, trained.shape.latents, 0.5)
    labels = scorer._index.label[scorer._training[numbers]].astype(np.int64)
    features = open_features()
    (held_out,) = scorer._read(scorer._held_out, trained.stage.resolution)
    expected = prdc(features(held_out.images), features(sampler.draw(latents, labels))).density
    assert points[0]["values"][DENSITY] == pytest.approx(expected, rel=1e-3)
    assert float(lines[0][1]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_a_family_with_styles_is_pulled_towards_its_average(digits, tmp_path, monkeypatch):
    address = run_of(tmp_path / "run", "stylegan", digits, monkeypatch)
    table, picture = tmp_path / "along.csv", tmp_path / "along.png"
    evaluate.main(
        [address, *ALONG, "--values", "0", "1",
         "--out", str(table), "--picture", str(picture)]
    )  # fmt: skip
    rows = list(csv.DictReader(table.open()))
    assert [row["psi"] for row in rows] == ["0.0", "1.0"]
    assert picture.stat().st_size > 0
    assert rows[0][SWD] != rows[1][SWD]
    trained, numbers = load(address), np.arange(IMAGES)
    drawn = scorer_of(address)._draw(trained, Truncation(psi=0.0)).images
    layers = trained.generator.layer_count(trained.stage)
    average = trained.generator.get_buffer("w_average").expand(IMAGES, layers, -1)
    sampler = Sampler(trained.generator, trained.shape, trained.stage, 0)
    painted = sampler.paint(average, Draws(0, "evaluation", 0).seeds(numbers, "noise"))
    assert np.abs(drawn.astype(int) - painted.astype(int)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("curve", [(IS, FD), None])
def test_a_picture_shows_the_scores_over_a_column_of_images_for_each_value(curve):
    values = {FD: 60.0, IS: 2.0, f"is_std_{FEATURES}": 0.1}
    axis = Axis("threshold", (0.5, 1.0, math.inf))
    scores = tuple(Score(16, 8, FD, 60.0, {n: v + i for n, v in values.items()}, 40) for i in range(3))
    shades = (50, 120, 230)
    samples = [np.full((2, 8, 8, 3), shade, np.uint8) for shade in shades]
    png = draw_tradeoff(Tradeoff("runs/faces", axis, scores), samples, curve)
    with Image.open(io.BytesIO(png)) as picture:
        pixels = np.asarray(picture.convert("L"))
    row = pixels[-pixels.shape[0] // 5]
    columns = [np.flatnonzero(row == shade).mean() for shade in shades]
    widths = [np.count_nonzero(row == shade) for shade in shades]
    assert columns == sorted(columns)
    assert min(widths) > 0.25 * len(row)


def test_the_usual_values_ascend_and_end_without_truncation(tmp_path):
    thresholds = axis_of(load(make_run(tmp_path / "biggan", "biggan")), None)
    psis = axis_of(load(make_run(tmp_path / "stylegan", "stylegan")), None)
    for axis in (thresholds, psis):
        assert list(axis.values) == sorted(set(axis.values))
        assert axis.truncation(axis.values[-1]) == Truncation()
        assert all(axis.truncation(value) != Truncation() for value in axis.values[:-1])


@pytest.mark.parametrize(
    ("family", "values", "words"),
    [
        ("progan", None, "progan normalises its latents, so none lie far out; leave it out"),
        ("dcgan", [0.0, 1.0], r"--values 0 1: dcgan is truncated by thresholds of \|z\| above 0"),
        ("stylegan", [0.5, 3.0], "--values 0.5 3: stylegan is truncated by ψ from -2 to 2"),
        ("stylegan", [0.5, float("inf")], "--values 0.5 inf: stylegan is truncated by ψ"),
    ],
)
def test_a_family_or_a_value_that_truncation_makes_no_sense_for_is_refused(
    tmp_path, family, values, words
):
    with pytest.raises(UsageError, match=words):
        axis_of(load(make_run(tmp_path, family)), values)


def test_a_checkpoint_whose_average_style_is_not_measured_is_refused(tmp_path):
    trained = load(make_run(tmp_path, "stylegan"))
    with torch.no_grad():
        trained.generator.get_buffer("w_average").zero_()
    with pytest.raises(UsageError, match=r"average of w, .* is not measured yet; choose"):
        axis_of(trained, None)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*ALONG, "--keep"], "--keep: scores of truncated images do not rank; leave out --along or"),
        (["--values", "0.5", "1"], "--values: only --along takes it; add --along truncation"),
        (["--picture", "a.png"], "--picture: only --along takes it; add --along truncation"),
        ([*ALONG, "--picture", "a.jpg"], "--picture a.jpg: it is written as PNG; name a .png file"),
        ([*ALONG, "--picture", "/dev/null/a.png"], "--picture /dev/null/a.png: cannot be written"),
        ([*ALONG, "--values", "0.5", "0.5"], "--values .*: give 2 to 32 different numbers"),
        ([*ALONG, "--values", "nan", "0.5"], "--values .*: give 2 to 32 different numbers"),
        ([*ALONG, "--values", *map(str, range(1, 34))], "--values .*: give 2 to 32 different numbers"),
        ([*ALONG, "--values", "half", "1"], "--values half: give a number"),
        (["--along", "psi"], "--along psi: choose truncation"),
    ],
)
def test_options_that_do_not_go_together_are_refused(flags, words):
    with pytest.raises(UsageError, match=words):
        evaluate.main(["runs/none", *flags])
