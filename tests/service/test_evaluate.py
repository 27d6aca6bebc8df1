"""Scores by hand: what is printed, kept and refused; and what a run directory's best is then."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from service import evaluate, pack
from service.data.index import read_index
from service.data.order import Order
from service.data.samples import Request, Source, read
from service.errors import UsageError
from service.metrics.features import open_features
from service.metrics.frechet import frechet_distance, moments
from service.storage import open_storage
from service.training import checkpoint, scores, worker
from service.training.checkpoint import Name
from service.training.evaluation import Scorer
from service.training.run import open_run
from service.training.scores import Score
from service.training.trained import load
from tests.conftest import tiny_config

IMAGES = 60
FD = "fd_efficientnet_lite0"
SETTINGS = {"images": IMAGES, "scores": ["fd"]}


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """A run of digits with checkpoints at 16 and 32 images, none of them scored."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    config = tiny_config(
        digits,
        folder,
        run={"images": 32},
        checkpoint={"every_images": 16},
        tracking={"every_images": 10**6, "pictures_every_images": 10**6},
        evaluation=SETTINGS,
    )
    with open_run(config) as opened:
        worker.train(worker.Job(config.model_dump(), opened.token, opened.end, None))
    return folder


def names(run: Path) -> list[Name]:
    return checkpoint.find(open_storage(str(run)))[0]


def test_the_distance_is_that_of_the_samples_to_all_held_out_images(run, digits, capsys):
    evaluate.main([str(run)])
    told = dict(line.split() for line in capsys.readouterr().out.splitlines()[2:])
    index = read_index(open_storage(str(digits)))
    rows = index.rows(held_out=True)
    source = Source(str(digits), index, Order(index, rows, 0, 1, 8), channels=1)
    features = open_features()
    seen = read(source, Request(np.arange(len(rows)), 8)).images
    assert len(seen) > IMAGES  # so that a part of them is drawn, the same every time
    scorer = Scorer(load(str(run)).config, load(str(run)).config.evaluation, open_storage(str(run)))
    drawn = scorer._draw(load(str(run)))
    distances = [
        frechet_distance(moments(features(part)), moments(drawn.features))
        for part in (seen[:IMAGES], seen[-IMAGES:])
    ]
    assert float(told["fd_efficientnet_lite0"]) == pytest.approx(np.mean(distances), rel=0.15)


def test_the_same_command_tells_the_same_and_measures_the_real_images_once(run, capsys):
    told = []
    for _ in range(2):
        evaluate.main([str(run), "--scores", "fd", "precision", "--images", "40"])
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert len(list((run / "metrics").glob("*.safetensors"))) <= 2  # one for each number of images


def test_a_score_that_is_kept_decides_what_the_run_directory_draws_from(run, tmp_path):
    early, late = names(run)
    assert load(str(run)).images == late.images
    place = open_storage(str(run))
    scores.write(place, early, Score(early.images, 8, FD, 5.0, {FD: 5.0}, IMAGES))
    assert load(str(run)).images == early.images
    evaluate.main([f"{run}/{late.folder}", "--keep", "--out", str(tmp_path / "scores.json")])
    kept = scores.read(place, [late])[late]
    assert json.loads((tmp_path / "scores.json").read_text())["values"] == kept.values
    assert kept.rank == kept.values[FD]
    assert scores.rank(place, [early, late]) == [early, late]  # 5.0 is the lower
    scores.write(place, early, Score(early.images, 8, FD, float("nan"), {}, IMAGES))
    assert scores.rank(place, [early, late]) == [late]


def test_scores_of_another_measure_or_of_other_numbers_of_images_rank_nothing(tmp_path):
    place = open_storage(str(tmp_path))
    one, two, three, four = (Name(1, i, 100 * i) for i in range(1, 5))
    scores.write(place, one, Score(100, 8, "kid", 0.1, {}, 50))
    scores.write(place, two, Score(200, 8, "fd", 3.0, {}, 30))
    scores.write(place, three, Score(300, 8, "fd", 9.0, {}, 50))
    scores.write(place, four, Score(400, 8, "fd", 8.0, {}, 50))
    assert scores.rank(place, [one, two, three, four]) == [four, three]


@pytest.mark.parametrize("flags", [["--scores", "kid"], ["--images", "40"]])
def test_a_score_that_does_not_compare_with_those_of_the_run_is_not_kept(run, flags):
    early, late = names(run)
    place = open_storage(str(run))
    scores.write(place, early, Score(early.images, 8, FD, 5.0, {FD: 5.0}, IMAGES))
    before = scores.read(place, [early, late])
    with pytest.raises(UsageError, match=f"ranked by {FD} of {IMAGES} images"):
        evaluate.main([f"{run}/{late.folder}", *flags, "--keep"])
    assert scores.read(place, [early, late]) == before


def test_a_higher_resolution_is_better_than_a_lower_distance(tmp_path):
    place = open_storage(str(tmp_path))
    small, large = Name(1, 1, 100), Name(1, 2, 200)
    scores.write(place, small, Score(100, 8, "fd", 1.0, {}))
    scores.write(place, large, Score(200, 16, "fd", 9.0, {}))
    assert scores.rank(place, [small, large]) == [large, small]


def test_a_damaged_score_is_passed_over(tmp_path):
    place, name = open_storage(str(tmp_path)), Name(1, 1, 100)
    scores.write(place, name, Score(100, 8, "fd", 1.0, {}))
    (file,) = (tmp_path / scores.FOLDER).iterdir()
    file.write_bytes(b"{")
    assert scores.rank(place, [name]) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scores", "fid"], "fid: no such score; there are fd, kid"),
        (["--features", "inception"], "inception need their weights.*pt_inception"),
        (["--features", "inception", "--weights", "/nowhere/pt.pth"], "/nowhere/pt.pth"),
        (["--scores", "ms_ssim"], "ms_ssim needs images of 11 px, found 8 px"),
        (["--images", "1"], "--images 1: give 10"),
        (["--out", "/"], "--out /: cannot be written: is a folder; name a file"),
        (["--out", "/dev/null/scores.json"], "--out /dev/null/scores.json: cannot be written"),
        (["--scores", "kid", "--best", "fd"], "--best fd: is none of --scores kid; add it there"),
        (["--scores", "memorisation", "--keep"], "--keep: none of --scores memorisation ranks"),
    ],
)
def test_scores_that_cannot_be_had_are_refused_by_name(run, flags, words):
    with pytest.raises(UsageError, match=words):
        evaluate.main([str(run), *flags])


def test_other_data_than_the_run_s_is_refused(run, digits, tmp_path):
    evaluate.main([str(run), "--data", str(digits)])
    pack.main(["digits", str(tmp_path / "other"), "--channels", "gray", "--seed", "5"])
    with pytest.raises(UsageError, match=r"fingerprint .* give --data the data of the run"):
        evaluate.main([str(run), "--data", str(tmp_path / "other")])
