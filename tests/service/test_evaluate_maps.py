"""Measures of maps and of labels, by the command and at a run's start: values, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from service import evaluate, pack
from service.config import Config
from service.config.sections import EvaluationSettings
from service.config.vocabulary import OF_LABELS, PATH_LENGTHS
from service.data import sources
from service.data.dataset import Dataset, Request, read
from service.data.index import read_index
from service.data.order import Order
from service.data.tar import NO_LABEL
from service.driver.preflight import open_run
from service.driver.settle import settle
from service.engine.sampler import Sampler
from service.errors import UsageError
from service.metrics import path_length, scores
from service.random.draws import Draws
from service.recording.recorder import RecorderClient
from service.scoring.check import check_evaluation
from service.scoring.labelled import LabelScores
from service.scoring.paths import path_lengths
from service.storage import open_storage
from service.training import worker
from service.training.job import Job
from tests.conftest import tiny_config, tiny_values
from tests.runs import make_run, ready
from tests.thumbnails import Thumbnail, thumbnails, use_thumbnails

IMAGES = 320
EVERY = ["ppl_z_full", "ppl_z_end", "separability", "birthday", "modes"]


@pytest.fixture(autouse=True)
def small_features(monkeypatch):
    use_thumbnails(monkeypatch)


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """A run of digits with a checkpoint at 32 images, of 8 px."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("maps") / "run"
    config = tiny_config(digits, folder, run={"images": 32}, checkpoint={"every_images": 32})
    with open_run(config) as opened:
        worker.train(
            Job(config.model_dump(), opened.token, opened.end, RecorderClient(None), rehearsed=1)
        )
    return folder


def printed(capsys) -> dict[str, float]:
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    return {name: float(value) for name, value in lines}


@pytest.mark.slow
def test_the_command_prints_each_measure_with_what_it_rests_on(run, capsys, tmp_path):
    pairs = tmp_path / "new" / "pairs.png"
    evaluate.main([str(run), "--scores", *EVERY, "--images", str(IMAGES), "--pairs", str(pairs)])
    values = printed(capsys)
    assert set(values) == {
        "ppl_z_full_tiny_320",
        "ppl_z_end_tiny_320",
        "separability_z_tiny_320",
        "separability_attributes_tiny_320",
        "separability_accuracy_tiny_320",
        "birthday_tiny_320",
        "birthday_pairs_tiny_320",
        "modes_tiny_320",
        "modes_of_tiny_320",
        "modes_kl_tiny_320",
        "modes_accuracy_tiny_320",
    }
    assert values["modes_of_tiny_320"] == 10
    assert values["modes_accuracy_tiny_320"] > 0.7
    assert 1 <= values["separability_z_tiny_320"] <= 2 ** values["separability_attributes_tiny_320"]
    assert 1 <= values["birthday_tiny_320"] <= IMAGES * (IMAGES - 1) / 2
    assert values["ppl_z_full_tiny_320"] > 0
    assert Image.open(pairs).size == (8 * 34 - 2, 10 * 34 - 2)  # 40 pairs, four a row, at 32 px


@pytest.mark.slow
def test_attributes_of_a_file_take_the_place_of_the_classes(run, digits, capsys, tmp_path):
    index = read_index(open_storage(str(digits)))
    lines = [f"{row},{int(label < 5)},{label % 2}" for row, label in enumerate(index.label)]
    (tmp_path / "a.csv").write_text("\n".join(["row,low,odd", *lines]))
    options = ["--scores", "separability", "--images", str(IMAGES)]
    evaluate.main([str(run), *options, "--attributes", str(tmp_path / "a.csv")])
    values = printed(capsys)
    assert values["separability_attributes_tiny_320"] <= 2
    assert values["separability_accuracy_tiny_320"] > 0.7
    check_evaluation(
        EvaluationSettings(scores=["separability"], attributes=str(tmp_path / "a.csv")),
        dataclasses.replace(index, label=np.zeros_like(index.label)),
        resolution=16,
    )


def test_paths_in_z_and_w_have_the_same_length_whatever_the_batch(tmp_path, monkeypatch):
    sampler = ready(make_run(tmp_path / "run", "stylegan", clock=304))
    labels = np.arange(30) % 3
    values = []
    for batch in (4, 30):
        monkeypatch.setattr(path_length, "BATCH", batch)
        values.append(path_lengths(PATH_LENGTHS, sampler, thumbnails(), Draws(0, "test", 0), labels))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert len(set(values[0].values())) == 4


def test_lengths_in_w_are_the_limit_of_small_steps(tmp_path):
    """By forward differentiation of the whole: styles, noise, generator and features in float64."""
    sampler = ready(make_run(tmp_path / "run", "stylegan", clock=304))
    draws, numbers = Draws(0, "test", 0), np.arange(40)
    labels = numbers % 3
    found = path_lengths(["ppl_w_full"], sampler, thumbnails(), draws, labels)["ppl_w_full"]
    generator = Sampler(sampler.generator, sampler.shape, sampler.stage, 0).generator.double()
    ends = (draws.latents(numbers, 8), draws.latents(numbers, 8, "path ends"))
    first, last = (
        generator.styles(torch.from_numpy(z), torch.from_numpy(labels), sampler.stage) for z in ends
    )
    noise = generator.draw_noise(draws.seeds(numbers, "noise"), sampler.stage)
    shares = torch.from_numpy(draws.uniforms(numbers, "path shares", 1))[:, :, None]

    def directions(share: torch.Tensor) -> torch.Tensor:
        images = generator.synthesise(first + share * (last - first), sampler.stage, noise)
        features = Thumbnail()((images + 1) * 127.5)
        return nn.functional.normalize(features)

    speeds = torch.func.jvp(directions, (shares,), (torch.ones_like(shares),))[1].square().sum(1)
    assert found == pytest.approx(float(speeds.mean()), rel=2e-3)


def test_a_family_without_styles_has_no_paths_between_them(run, digits, tmp_path):
    words = r"ppl_w_full, but biggan has no styles; leave it out, or take ppl_z_full"
    with pytest.raises(UsageError, match=words):
        evaluate.main([str(run), "--scores", "fd", "ppl_w_full"])
    evaluation = {"scores": ["fd", "ppl_w_full"]}
    with pytest.raises(ValueError, match=words):
        Config(**tiny_values(digits, tmp_path, evaluation=evaluation))


def test_planes_between_too_few_latents_are_refused(run):
    with pytest.raises(
        UsageError, match=r"images: 100, but separability .* 16 numbers, which takes 320"
    ):
        evaluate.main([str(run), "--scores", "separability", "--images", "100"])


@pytest.mark.parametrize("score", OF_LABELS)
@pytest.mark.parametrize(("label", "found"), [(7, "1"), (NO_LABEL, "none")])
def test_data_without_two_classes_has_no_scores_by_them(digits, score, label, found):
    index = read_index(open_storage(str(digits)))
    index = dataclasses.replace(index, label=np.full_like(index.label, label))
    with pytest.raises(UsageError, match=f"{score}: needs two classes.* measured have {found};"):
        check_evaluation(EvaluationSettings(scores=["fd", score]), index, resolution=16)


def test_pairs_are_shown_with_the_score_that_counts_them(run, tmp_path):
    with pytest.raises(UsageError, match="shows what birthday counts; add it to --scores"):
        evaluate.main([str(run), "--scores", "fd", "--pairs", str(tmp_path / "pairs.png")])


@pytest.mark.slow
def test_stacked_digits_are_counted_by_their_channels_without_features(tmp_path, monkeypatch):
    """The data's own images show the data's own numbers, but for the classifier's errors."""
    monkeypatch.setattr(sources, "STACKED_IMAGES", 1500)
    pack.main(["stacked-digits", str(tmp_path / "data"), "--resolution", "8"])
    index = read_index(open_storage(str(tmp_path / "data")))
    rows = index.rows(held_out=False)
    dataset = Dataset(str(tmp_path / "data"), index, Order(index, rows, 0, 1, 8), channels=3)
    batch = read(dataset, Request(np.arange(len(rows)), 8))
    settings = EvaluationSettings(scores=["modes"])
    labelled = LabelScores(
        index,
        settings,
        scores.Protocol("tiny", len(rows)),
        None,
        lambda resolution: None,
        lambda resolution: [batch],
    )
    shown = scores.Generated(batch.images, np.zeros(len(rows), np.int64))
    values = {
        name.removesuffix(f"_{len(rows)}"): value
        for name, value in labelled.compute(["modes"], shown, {}).items()
    }
    assert set(values) == {"modes", "modes_of", "modes_kl", "modes_accuracy"}
    assert values["modes_of"] == len(set(batch.labels.tolist())) > 700
    assert values["modes"] == pytest.approx(values["modes_of"], rel=0.02)
    assert values["modes_kl"] < 0.05
    assert 0.8 < values["modes_accuracy"] < 1


def test_a_file_of_attributes_is_found_from_every_folder(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(digits, "run", evaluation={"attributes": "a.csv"})
    assert settle(config).evaluation.attributes == str(tmp_path / "a.csv")
