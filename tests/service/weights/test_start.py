"""A new run from given weights: what fits is taken, the rest is drawn, and all of it is listed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models import stylegan
from service import export
from service.config import Config
from service.driver.preflight import open_run
from service.engine import distributed
from service.engine.state import TrainState, new_state
from service.errors import DataError, UsageError
from service.run import checkpoint, commits
from service.run.best import load
from service.storage import open_storage
from service.training import worker
from service.training.context import Context
from service.training.job import Job
from service.training.rewind import _go_back
from service.weights import start
from service.weights.start import INIT_KEY, TENSORS_KEY, InitDocument
from tests.conftest import assert_equal, tiny_config, tiny_values
from tests.live import SilentRecorder
from tests.runs import FAMILIES, PHASE, make_run

CPU = torch.device("cpu")


def configure(folder: Path, source: str, family: str, data: Any = "unused", **model: Any) -> Config:
    """A new run of a family, at its full size at once, that begins with the source's weights."""
    values = tiny_values(data, folder, run={"init": source})
    values["model"] = {"family": family} | FAMILIES[family] | model
    values["phases"] = [PHASE | {"resolution": values["model"]["resolution"]}]
    return Config(**values)


def prepare(config: Config) -> start.Prepared:
    return start.prepare(config, config.run.init or "")


def begin(config: Config) -> tuple[TrainState, TrainState, InitDocument]:
    """The state that the run begins with, the same as drawn, and the list."""
    storage = open_storage(config.run.dir)
    prepared = prepare(config)
    prepared.keep(storage)
    state, drawn = new_state(config, CPU), new_state(config, CPU)
    start.take(storage, state)
    document = InitDocument.from_bytes(storage.get(INIT_KEY), INIT_KEY)
    return state, drawn, document


@pytest.mark.slow
def test_networks_of_the_same_shape_take_everything(tmp_path):
    for family in FAMILIES:
        source = make_run(tmp_path / family, family)
        values = load(source).config.model_dump()
        values["run"] |= {"dir": str(tmp_path / f"{family}-new"), "init": source}
        state, _, document = begin(Config(**values))
        _, _, tensors, _ = _newest(source)
        assert document.drawn == ()
        assert_equal(dict(state.ema.state_dict()), dict(tensors["ema"]))
        assert_equal(dict(state.generator.state_dict()), dict(tensors["ema"]))
        assert_equal(dict(state.discriminator.state_dict()), dict(tensors["discriminator"]))


def _newest(run: str) -> tuple:
    storage = open_storage(run)
    return storage, *next(checkpoint.newest(storage))


def assert_listed(state: TrainState, drawn: TrainState, document: InitDocument) -> None:
    """What the list calls drawn is as the seed draws it."""
    for name in document.drawn:
        part, _, weight = name.partition("/")
        mine = getattr(state, part).state_dict()[weight]
        assert torch.equal(mine, getattr(drawn, part).state_dict()[weight]), name
    names = {f"{part}/{k}" for part in ("generator", "discriminator")
             for k in getattr(state, part).state_dict()}  # fmt: skip
    assert names == {*document.taken, *document.drawn}
    assert len(names) == len(document.taken) + len(document.drawn)


def begin_otherwise(folder: Path, family: str, **model: int) -> InitDocument:
    """The list of a run that begins with a source's weights, and is like it but for these settings."""
    source = make_run(folder / "source", family)
    values = load(source).config.model_dump()
    values["run"] |= {"dir": str(folder / "new"), "init": source}
    values["model"] |= model
    state, drawn, document = begin(Config(**values))
    assert_listed(state, drawn, document)
    return document


def test_with_other_classes_only_their_tables_are_drawn(tmp_path):
    document = begin_otherwise(tmp_path, "biggan", classes=7)
    assert set(document.drawn) == {
        "generator/embedding.table.weight",
        *(f"discriminator/projection.embedding.{name}" for name in ("weight", "u", "v")),
    }


def test_with_other_channels_only_what_touches_pixels_is_drawn(tmp_path):
    document = begin_otherwise(tmp_path, "progan", channels=3)
    assert document.drawn
    assert all("heads." in name for name in document.drawn)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["progan", "stylegan", "biggan", "sagan", "biggan-deep"])
def test_a_higher_resolution_takes_the_lower_blocks_of_both_networks(tmp_path, family):
    """The discriminator's blocks are numbered from the image: at twice the size all numbers differ."""
    source = make_run(tmp_path / "source", family)
    more = {"latents": 16} if family == "biggan" else {}  # as long chunks as before, one more
    config = configure(tmp_path / "new", source, family, resolution=32, **more)
    state, drawn, document = begin(config)
    assert_listed(state, drawn, document)
    old, new = _newest(source)[2]["discriminator"], state.discriminator.state_dict()
    ends = [max(int(n.split(".")[1]) for n in names if n.startswith("tail.")) for names in (old, new)]
    assert ends[0] < ends[1]
    last = {name: tensor for name, tensor in old.items() if name.startswith(f"tail.{ends[0]}.")}
    assert last
    for name, tensor in last.items():
        assert torch.equal(new[name.replace(*(f"tail.{end}." for end in ends))], tensor), name
    blocks = {int(n.split(".")[1]) for n in document.taken if n.startswith("generator/blocks.")}
    assert max(blocks) == 16
    assert {8, 16} <= blocks


@pytest.mark.slow
def test_a_ladder_and_a_single_rung_take_from_each_other(tmp_path):
    source = make_run(tmp_path / "ladder", "biggan-deep")
    config = configure(tmp_path / "single", source, "biggan-deep")
    state, drawn, document = begin(config)
    assert_listed(state, drawn, document)
    assert document.drawn == ()
    _, _, tensors, _ = _newest(source)
    blocks = {n: t for n, t in tensors["discriminator"].items() if n.startswith("descents.16.")}
    for name, tensor in blocks.items():
        place = "tail." + name.removeprefix("descents.16.")
        assert torch.equal(state.discriminator.state_dict()[place], tensor)


def test_an_export_gives_its_generator_and_no_discriminator(tmp_path):
    source = make_run(tmp_path / "source", "stylegan")
    export.main([source, str(tmp_path / "export"), "--no-onnx"])
    for number, address in enumerate([tmp_path / "export", tmp_path / "export/generator.safetensors"]):
        values = load(source).config.model_dump()
        values["run"] |= {"dir": str(tmp_path / f"new{number}"), "init": str(address)}
        state, drawn, document = begin(Config(**values))
        assert_listed(state, drawn, document)
        assert isinstance(state.ema, stylegan.Generator)
        assert torch.equal(state.ema.w_average, _newest(source)[2]["ema"]["w_average"])
        assert all(name.startswith("discriminator/") for name in document.drawn)
        assert all(name.startswith("generator/") for name in document.taken)


def test_the_watched_singular_values_are_those_of_the_taken_weights(tmp_path):
    source = make_run(tmp_path / "source", "dcgan")
    state, *_ = begin(configure(tmp_path / "new", source, "dcgan"))
    before = state.spectra.values()
    exact = {
        name: torch.linalg.svdvals(parameter.detach().flatten(1))[0].item()
        for name, parameter in state.generator.named_parameters()
        if f"generator/{name}" in before and parameter.ndim == 2
    }
    assert exact
    for name, value in exact.items():
        assert before[f"generator/{name}"][0] == pytest.approx(value, rel=0.02)


@pytest.mark.slow
def test_a_rewind_to_the_start_begins_with_the_same_weights(digits, tmp_path):
    train(tiny_config(digits, tmp_path / "source", run={"seed": 5}), 16)
    config = tiny_config(digits, tmp_path / "new", run={"init": str(tmp_path / "source")})
    begun, drawn, _ = begin(config)
    context = Context(config, distributed.join(), 0, None)
    state = new_state(config, CPU)
    assert _go_back(context, state, limit=0) is None
    assert_equal(state.tensors(), begun.tensors())
    assert not torch.equal(state.ema.dense.weight, drawn.ema.dense.weight)


# Refusals -----------------------------------------------------------------------------------------


def test_weights_of_another_family_or_that_fit_nothing_are_refused_with_the_remedy(tmp_path):
    source = make_run(tmp_path / "source", "biggan")
    with pytest.raises(UsageError, match=r"holds biggan, but model\.family is sagan; make them equal"):
        prepare(configure(tmp_path / "new", source, "sagan"))
    other = configure(tmp_path / "new", source, "biggan", width=16, embedding=5, latents=15, classes=4)
    with pytest.raises(UsageError, match=r"no weight of the .* fits.*width is 8 there, 16 here.*make"):
        prepare(other)


@pytest.mark.parametrize("name", ["nothing", "nothing.safetensors", "nothing.pth"])
def test_an_address_without_weights_is_refused_before_anything_is_written(digits, tmp_path, name):
    config = tiny_config(digits, tmp_path / "run", run={"init": str(tmp_path / name)})
    with pytest.raises(UsageError, match=rf"{name}: no "), open_run(config):
        pass
    assert not (tmp_path / "run/run.json").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    source = make_run(tmp_path / "source", "dcgan")
    export.main([source, str(tmp_path / "export"), "--no-onnx"])
    file = tmp_path / "export/generator.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    with pytest.raises(DataError, match="holds NaN or infinity"):
        prepare(configure(tmp_path / "new", str(file), "dcgan"))


# A whole run --------------------------------------------------------------------------------------


def train(config: Config, end: int) -> Any:
    """As the driver and one worker do it, in this process; the tensors of the last checkpoint."""
    with open_run(config) as run:
        worker.train(Job(config.model_dump(), run.token, end, SilentRecorder()))
        return next(checkpoint.newest(run.storage))[1]


@pytest.mark.slow
def test_a_run_begins_with_the_weights_and_resumes_without_their_source(digits, tmp_path):
    train(tiny_config(digits, tmp_path / "source", run={"seed": 5}), 32)
    source = str(tmp_path / "source")

    def config(name: str, **more: Any) -> Config:
        return tiny_config(digits, tmp_path / name, run={"init": source, **more},
                           training={"lr_generator": 1e-9, "lr_discriminator": 1e-9},
                           checkpoint={"every_images": 96})  # fmt: skip

    whole = train(config("whole"), 192)
    given = _newest(source)[2]["ema"]
    for name, tensor in whole["ema"].items():
        if name.endswith(("weight", "bias")):
            assert torch.allclose(tensor, given[name], atol=1e-5), name
    train(config("parts"), 96)
    (tmp_path / "source").rename(tmp_path / "away")
    assert_equal(train(config("parts"), 192), whole)
    with pytest.raises(
        UsageError, match=r"run\.init: the run was started with '.*source', now it is None"
    ):
        train(tiny_config(digits, tmp_path / "parts"), 192)
    document = InitDocument.from_bytes((tmp_path / "parts" / INIT_KEY).read_bytes(), INIT_KEY)
    assert document.address.startswith(f"{source}/checkpoints/")
    name = commits.find(open_storage(str(tmp_path / "away")))[0][-1]
    assert document.digest == commits.read_manifest(open_storage(str(tmp_path / "away")), name).digest


def test_a_copy_that_was_changed_is_refused(tmp_path):
    source = make_run(tmp_path / "source", "dcgan")
    config = configure(tmp_path / "new", source, "dcgan")
    begin(config)
    file = tmp_path / "new" / TENSORS_KEY
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=rf"{TENSORS_KEY}: not as it was written; restore it"):
        start.take(open_storage(config.run.dir), new_state(config, CPU))
