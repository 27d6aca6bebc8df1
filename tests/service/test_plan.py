"""The dry run: what it prints is what a training would do."""

import itertools
import json
import re

import numpy as np
import pytest
import yaml

from service import plan
from service.data.dataset import read
from service.data.index import read_index
from service.driver.plan import plan as driver_plan
from service.driver.preflight import open_run
from service.engine.curriculum import Curriculum, curriculum_of
from service.errors import DataError, UsageError
from service.storage import open_storage
from service.training.feed import dataset_of, requests
from tests.conftest import tiny_config, tiny_values


@pytest.fixture
def arguments(digits, tmp_path) -> list[str]:
    values = tiny_values(digits, tmp_path / "run", data={"flip": True}, scale={"workers": "1:4"})
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return ["--config", str(file)]


@pytest.mark.slow
def test_it_tells_phases_workers_and_memory_and_makes_nothing(arguments, tmp_path, capsys):
    plan.main(arguments)
    printed = capsys.readouterr().out
    assert "1,797 samples in 4 shards" in printed
    assert "class    7 7: 179 images\n" in printed
    assert re.search(r"workers  1, 2, 4 ", printed)
    assert re.search(r"96 – +224  fade to 16 px +16 +16 +8", printed)
    assert re.search(r"\n +4 +4 +4 +4 +0 MB\n", printed)  # workers, and what each holds
    costs = re.findall(r"\n +([124]) +([\d,]+) +(\d+) +0\.00\d+", printed)
    assert [(int(workers), int(exchanges) > 0) for workers, _, exchanges in costs] == [
        (1, False), (2, True), (4, True)
    ]  # fmt: skip
    assert re.search(
        r"decoding gives a worker [\d,]+ images/s at 32 px here \(data.decoders 1\)", printed
    )
    assert not (tmp_path / "run").exists()


def test_it_tells_what_is_frozen_where_schedules_end_and_what_has_no_effect(digits, tmp_path, capsys):
    falls = {"from": 1e-3, "to": 1e-4, "images": 4000}
    config = tiny_config(
        digits,
        tmp_path,
        run={"freeze": {"discriminator.first.2": 10**6}, "images": 200},
        training={"lr_generator": falls, "adam_beta2": falls | {"images": 100}, "r2_every": 4},
    )
    index = read_index(open_storage(str(digits)))
    lines = "\n".join(driver_plan(config, index, curriculum_of(config)))
    assert "frozen   discriminator.first.2 up to 200 images\n" in lines
    assert "lr_generator goes from 0.001 to 0.0001 at 4,000 images; the run ends at 0.000955\n" in lines
    assert "adam_beta2 goes from 0.001 to 0.0001 at 100 images\n" in lines
    no_effect = "no effect: training.r2_every 4, because training.r2 is 0\n"
    assert no_effect in f"{lines}\n"
    with open_run(config):  # and so does the start of the training
        assert no_effect in capsys.readouterr().err


@pytest.mark.parametrize("batch", [0, 5, 7, 17, 100])
def test_the_samples_of_a_batch_are_those_that_a_training_is_shown(
    arguments, digits, tmp_path, capsys, batch
):
    """Row by row and flip by flip, also beyond the end of the phase table."""
    plan.main([*arguments, "--explain-batch", str(batch)])
    lines = capsys.readouterr().out.splitlines()
    samples = [line.split() for line in lines if "shard-" in line and "shard and key" not in line]
    config = tiny_config(digits, tmp_path / "run", data={"flip": True})
    curriculum = curriculum_of(config)
    first = int(samples[0][0].replace(",", ""))
    index = read_index(open_storage(str(digits)))
    dataset = dataset_of(config, index)
    cycle = curriculum.containing(first)
    wanted = requests(config, [cycle], lambda start, count: np.arange(start, start + count), 0)
    shown = {}
    for request in wanted:
        rows = read(dataset, request).rows
        for number, row, mirrored in zip(request.numbers, rows, request.mirrored, strict=True):
            shown[int(number)] = (index.describe(int(row)), int(index.label[row]), bool(mirrored))
    assert len(samples) == cycle.span.batch
    for words in samples:
        described, label, mirrored = shown[int(words[0].replace(",", ""))]
        assert described == " ".join(words[7:10])
        assert int(words[6]) == label
        assert (words[-1] == "mirrored") == mirrored


def test_batches_follow_on_one_another(arguments, digits, tmp_path):
    config = tiny_config(digits, tmp_path / "run")
    curriculum = Curriculum(config.phases, 2)
    starts = [curriculum.batch_start(n) for n in range(60)]
    assert starts[0] == 0
    for before, after in itertools.pairwise(starts):
        assert after == before + curriculum.containing(before).span.batch


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 5000, ""])
def test_a_batch_that_is_no_number_is_refused(arguments, value):
    words = f"^--explain-batch {value}: give a whole number from 0 to 1000000000000$"
    with pytest.raises(UsageError, match=words):
        plan.main([*arguments, "--explain-batch", value])


def test_a_batch_without_its_number_is_refused(arguments):
    with pytest.raises(UsageError, match="argument --explain-batch: expected one argument"):
        plan.main([*arguments, "--explain-batch"])


def test_what_a_training_would_refuse_is_refused(arguments, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        plan.main([*arguments, "--data.url", str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match=r"data\.prefetch_bytes"):
        plan.main([*arguments, "--data.prefetch_bytes", str(1 << 20), "--data.window", "1000"])
    with pytest.raises(UsageError, match=r"data\.cache_bytes"):
        plan.main([*arguments, "--data.cache_dir", str(tmp_path), "--data.cache_bytes", str(1 << 24)])
    phases = json.dumps([{"resolution": 32, "hold_images": 9, "batch": 7}])
    with pytest.raises(UsageError, match=r"scale\.workers"):
        plan.main([*arguments, "--phases", phases, "--scale.workers", "2"])


def test_a_directory_of_another_run_is_refused_as_a_training_would(arguments, digits, tmp_path):
    settings = {"data": {"flip": True}, "scale": {"workers": "1:4"}}
    with open_run(tiny_config(digits, tmp_path / "run", **settings)):
        pass
    with pytest.raises(UsageError, match=r"(?s)holds another run; .*run\.seed"):
        plan.main([*arguments, "--run.seed", "5"])
