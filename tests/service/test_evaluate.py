"""Scores by hand: what is printed, kept and refused; and what a run directory's best is then."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from service import evaluate, pack
from service.config.sections import EvaluationSettings
from service.data.dataset import Dataset, Request, read
from service.data.index import read_index
from service.data.order import Order
from service.driver.preflight import open_run
from service.errors import UsageError
from service.metrics.features import open_features
from service.metrics.frechet import frechet_distance, moments
from service.metrics.reference import read_reference, write_reference
from service.outputs import check_output
from service.recording.recorder import RecorderClient
from service.run import commits, ranking
from service.run.best import load
from service.run.commits import Name
from service.run.ranking import Score
from service.scoring.check import check_evaluation
from service.scoring.scorer import Scorer, device_of
from service.storage import open_storage
from service.training import worker
from service.training.job import Job
from tests.conftest import tiny_config
from tests.runs import FAMILIES, make_run
from tests.thumbnails import WIDTH, thumbnails, use_thumbnails

IMAGES = 60
FD = f"fd_efficientnet_lite0_{IMAGES}_held_out"
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
        worker.train(
            Job(config.model_dump(), opened.token, opened.end, RecorderClient(None), rehearsed=1)
        )
    return folder


def names(run: Path) -> list[Name]:
    return commits.find(open_storage(str(run)))[0]


@pytest.mark.slow
def test_the_distance_is_that_of_the_samples_to_all_held_out_images(run, digits, capsys):
    evaluate.main([str(run)])
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines()[2:])
    index = read_index(open_storage(str(digits)))
    rows = index.rows(held_out=True)
    dataset = Dataset(str(digits), index, Order(index, rows, 0, 1, 8), channels=1)
    features = open_features()
    seen = read(dataset, Request(np.arange(len(rows)), 8)).images
    assert len(seen) > IMAGES  # so that a part of them is drawn, the same every time
    scorer = Scorer(load(str(run)).config, load(str(run)).config.evaluation, open_storage(str(run)))
    drawn = scorer._draw(load(str(run)))
    distances = [
        frechet_distance(moments(features(part)), moments(drawn.features))
        for part in (seen[:IMAGES], seen[-IMAGES:])
    ]
    assert float(printed[FD]) == pytest.approx(np.mean(distances), rel=0.15)


@pytest.mark.slow
def test_a_saved_reference_is_that_of_the_finished_network_and_measures_every_rung(
    run, tmp_path, capsys, monkeypatch
):
    """All training images at full size, of which there are more than are drawn."""
    use_thumbnails(monkeypatch)
    file = tmp_path / "digits.npz"
    evaluate.main([str(run), "--reference", "training", "--save-reference", str(file)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("training ones; for fd, all that there are")
    name = f"fd_tiny_{IMAGES}_training"
    assert {line.split()[0] for line in lines[2:]} == {name, f"{name}_floor"}
    trained = load(str(run))
    index = read_index(open_storage(trained.config.data.url))
    with np.load(file) as saved:
        assert IMAGES < saved["images"] == len(index.rows(held_out=False))
        assert saved["resolution"] == trained.config.model.resolution > trained.stage.resolution
    evaluate.main([str(run), "--reference", str(file)])
    distance, _ = dict(line.split() for line in capsys.readouterr().out.splitlines()[2:]).values()
    scorer = Scorer(trained.config, trained.config.evaluation, open_storage(str(run)))
    drawn = moments(scorer._draw(trained).features)
    target = read_reference(str(file), thumbnails()).moments
    assert float(distance) == pytest.approx(frechet_distance(target, drawn), rel=1e-4)


def test_a_reference_of_other_pixels_is_refused(digits, tmp_path, monkeypatch):
    use_thumbnails(monkeypatch)
    file = tmp_path / "small.npz"
    write_reference(file, moments(np.random.default_rng(0).normal(size=(20, WIDTH))), thumbnails(), 8)
    settings = EvaluationSettings(reference=str(file))
    index = read_index(open_storage(str(digits)))
    with pytest.raises(UsageError, match=r"of 8 px, but the finished network draws 16 px; make it anew"):
        check_evaluation(settings, index, resolution=16)
    check_evaluation(settings, index, resolution=8)


@pytest.mark.parametrize(
    ("option", "name", "content"),
    [
        ("--out", "run.json", b'{"version": 2, "clock": 3}'),
        ("--out", "notes.json", b"not JSON"),
        ("--save-reference", "other.npz", b"text"),
        ("--pairs", "other.png", b"text"),
    ],
)
def test_a_file_of_another_kind_is_not_written_over(run, tmp_path, option, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{option} .*{name}: holds something else, which would be lo"):
        evaluate.main([str(run), "--scores", "fd", "birthday", option, str(tmp_path / name)])
    assert (tmp_path / name).read_bytes() == content


def test_scores_take_the_place_of_scores(tmp_path):
    for file, head in (("a.json", '{"clock": 1, "resolution": 8, "samples": 9}'), ("a.csv", "psi,fd\n")):
        (tmp_path / file).write_text(head)
        check_output("--out", tmp_path / file, evaluate.TABLE_COLUMNS, evaluate.SCORE_KEYS)


def test_without_held_out_images_training_images_are_compared_with(tmp_path, monkeypatch):
    """What the refusal of a run without held-out images offers works."""
    use_thumbnails(monkeypatch)
    monkeypatch.setitem(FAMILIES, "dcgan", FAMILIES["dcgan"] | {"classes": 10, "channels": 1})
    data = tmp_path / "data"
    pack.main(["digits", str(data), "--channels", "gray", "--resolution", "16", "--held-out", "0"])
    scores = {"reference": "training", "scores": ["fd", "kid"], "images": IMAGES}
    config = tiny_config(data, tmp_path / "run", data={"held_out": 0}, evaluation=scores)
    check_evaluation(config.evaluation, read_index(open_storage(str(data))), 16)
    scorer = Scorer(config, config.evaluation, open_storage(str(tmp_path)))
    values = scorer.score(load(make_run(tmp_path / "other", "dcgan"))).values
    # without a floor, for which there are no other real images
    assert set(values) == {f"{score}_tiny_{IMAGES}_training" for score in ("fd", "kid")}


@pytest.mark.slow
def test_the_same_command_tells_the_same_and_measures_the_real_images_once(run, capsys, monkeypatch):
    use_thumbnails(monkeypatch)
    printed, files = [], []
    for _ in range(2):
        evaluate.main([str(run), "--scores", "fd", "precision", "--images", "40"])
        printed.append(capsys.readouterr().out)
        files.append(sorted((run / "metrics").iterdir()))
    assert printed[0] == printed[1]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_score_that_is_kept_decides_what_the_run_directory_draws_from(run, tmp_path, monkeypatch):
    use_thumbnails(monkeypatch)
    distance = f"fd_tiny_{IMAGES}_held_out"
    early, late = names(run)
    assert load(str(run)).clock == late.clock
    place = open_storage(str(run))
    ranking.write(place, early, Score(early.clock, 8, distance, 5.0, {distance: 5.0}, IMAGES))
    assert load(str(run)).clock == early.clock
    evaluate.main([f"{run}/{late.folder}", "--keep", "--out", str(tmp_path / "scores.json")])
    kept = ranking.read(place, [late])[late]
    assert json.loads((tmp_path / "scores.json").read_text())["values"] == kept.values
    assert kept.rank == kept.values[distance] > 5
    assert ranking.rank(place, [early, late]) == [early, late]
    ranking.write(place, early, Score(early.clock, 8, distance, float("nan"), {}, IMAGES))
    assert ranking.rank(place, [early, late]) == [late]


@pytest.mark.parametrize("flags", [["--scores", "kid"], ["--images", "40"]])
def test_a_score_that_does_not_compare_with_those_of_the_run_is_not_kept(run, flags):
    early, late = names(run)
    place = open_storage(str(run))
    ranking.write(place, early, Score(early.clock, 8, FD, 5.0, {FD: 5.0}, IMAGES))
    before = ranking.read(place, [early, late])
    with pytest.raises(UsageError, match=f"ranked by {FD} of {IMAGES} images"):
        evaluate.main([f"{run}/{late.folder}", *flags, "--keep"])
    assert ranking.read(place, [early, late]) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scores", "fid"], "--scores fid: choose fd, kid, is, .* or memorisation$"),
        (["--features", "inception"], "inception need their weights.*pt_inception"),
        (["--features", "inception", "--weights", "/nowhere/pt.pth"], "/nowhere/pt.pth"),
        (["--scores", "ms_ssim"], "ms_ssim needs images of 11 px, found 8 px"),
        (["--images", "1"], "--images 1: give a whole number from 10 to 10000000"),
        (["--out", "/"], "--out /: it is written as JSON; name a .json file"),
        (["--out", "/proc/scores.json"], "--out /proc/scores.json: cannot be written"),
        (["--out", "/dev/null/scores.json"], "--out /dev/null/scores.json: cannot be written"),
        (["--reference", "heldout"], "--reference heldout: choose held_out, training, or name a .npz"),
        (["--reference", "/nowhere.npz"], "/nowhere.npz: no such file; give the path or the URL"),
        (["--reference", "a.npz", "--scores", "fd", "kid"], "kid: cannot be computed from a.npz, whi"),
        (["--save-reference", "/tmp/a"], "--save-reference /tmp/a: name a .npz file"),
        (["--save-reference", "a.npz", "--scores", "swd"], "--save-reference: nothing to measure; add"),
        (["--save-reference", "b.npz", "--reference", "a.npz"], "--save-reference: nothing to measure"),
        (["--out", "scores.csv"], "--out scores.csv: only --along writes a table; name a .json file"),
        (["--attributes", "a.csv"], "--attributes: only separability takes them; add it to --scores"),
        (["--scores", "kid", "--best", "fd"], "--best fd: not among --scores kid; add it there"),
        (["--scores", "memorisation", "--keep"], "--keep: --scores memorisation cannot rank"),
    ],
)
def test_scores_that_cannot_be_had_are_refused_by_name(run, flags, words):
    with pytest.raises(UsageError, match=words):
        evaluate.main([str(run), *flags])


@pytest.mark.slow
def test_other_data_than_the_run_s_is_refused(run, digits, tmp_path, monkeypatch):
    use_thumbnails(monkeypatch)
    evaluate.main([str(run), "--data", str(digits)])
    pack.main(["digits", str(tmp_path / "other"), "--channels", "gray", "--seed", "5"])
    with pytest.raises(UsageError, match=r"fingerprint .* give the run's own data with --data"):
        evaluate.main([str(run), "--data", str(tmp_path / "other")])


@pytest.mark.parametrize(
    ("data", "evaluation", "words"),
    [
        (
            "s3://elsewhere/data",
            {},
            "reads data from s3://elsewhere/data; give --data s3://elsewhere/data",
        ),
        (
            "unused",
            {"reference": "http://elsewhere.example/mu.npz"},
            r"reads reference from http://elsewhere\.example/mu\.npz; give --reference",
        ),
        (
            "unused",
            {"features": "inception", "weights": "http://elsewhere.example/w.pth"},
            r"reads weights from http://elsewhere\.example/w\.pth; give --weights",
        ),
    ],
)
def test_no_address_of_a_strangers_checkpoint_is_fetched_unasked(tmp_path, data, evaluation, words):
    address = make_run(tmp_path / "run", "dcgan", data=data, evaluation=evaluation)
    with pytest.raises(UsageError, match=words):
        evaluate.main([address])


@pytest.mark.parametrize(
    ("gpus", "there", "device"), [(0, True, "cpu"), (1, True, "cuda"), (1, False, "cpu")]
)
def test_a_reserved_gpu_scores_and_its_absence_is_logged(gpus, there, device, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert device_of(EvaluationSettings(gpus=gpus)).type == device
    warnings = [r for r in caplog.records if "event=scoring_on_cpu" in r.getMessage()]
    assert len(warnings) == (gpus == 1 and not there)
