"""Runs with a checkpoint, of every family and small, that nothing was trained for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from models import stylegan
from service.config import Config
from service.engine.sampler import Sampler
from service.engine.state import new_state
from service.run.best import WeightsName, load
from service.run.checkpoint import Checkpointer, Keep
from service.run.directory import RUN_KEY, RunDocument
from service.storage import open_storage
from service.storage.lock import RunLock
from tests.conftest import tiny_values

FINGERPRINT, KEY = "5f1d" * 16, "5f1d" * 8
PLAIN: dict[str, Any] = {"resolution": 16, "channels": 1, "classes": 3, "width": 8, "latents": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "dcgan": PLAIN | {"channels": 3},
    "sagan": PLAIN | {"attention": 8},
    "biggan": PLAIN | {"latents": 12, "embedding": 4, "attention": 8},
    "biggan-deep": PLAIN | {"classes": None, "embedding": 4},
    "progan": PLAIN | {"classes": None},
    "stylegan": PLAIN | {"mapping_layers": 2},
    "mnist-pggan": {"resolution": 28, "channels": 1, "base": 7, "width": 16, "latents": 8},
}
NAMES = ("daisy", "oak*", "rose")
PHASE = {"hold_images": 64, "batch": 16}


def make_run(
    folder: Path | str, family: str, clock: int = 176, data: str = "unused", **sections: dict[str, Any]
) -> str:
    """A run with one committed checkpoint, by default half-way through the fade to full size."""
    full = FAMILIES[family]["resolution"]
    values = tiny_values(data, folder, **sections)
    values["model"] = {"family": family} | FAMILIES[family]
    values["phases"] = [
        PHASE | {"resolution": full // 2},
        PHASE | {"resolution": full, "fade_images": 192},
    ]
    values["training"] |= {"d_steps": 1}
    if str(folder).startswith("s3://"):
        values["tracking"] |= {"uri": "http://unused"}
    config = Config(**values)
    state = new_state(config, torch.device("cpu"))
    state.clock = clock
    torch.manual_seed(7)
    with torch.no_grad():
        for network in (state.generator, state.ema):
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # gains that start at 0 matter, too
            if isinstance(network, stylegan.Generator):
                network.w_average.normal_()
    storage = open_storage(str(folder))
    names = NAMES if config.model.classes else ()
    run = RunDocument(key=KEY, fingerprint=FINGERPRINT, config=config.model_dump(), classes=names)
    storage.put(RUN_KEY, run.to_bytes())
    lock = RunLock(storage)
    writer = Checkpointer(storage, lock.acquire(), Keep(3), config.model_dump())
    writer.save(state, {"fid": 12.25})
    writer.wait()
    lock.release()
    return str(folder)


def ready(run: str, weights: WeightsName = "ema") -> Sampler:
    """The generator of a run, as sampling has it."""
    trained = load(run, weights)
    return Sampler(trained.generator, trained.shape, trained.stage, trained.config.run.seed)


def inputs(family: str, count: int) -> dict[str, torch.Tensor]:
    """Latents, and labels where the family has classes; the same every time."""
    settings = FAMILIES[family]
    random = torch.Generator().manual_seed(100 + count)
    drawn = {"latents": torch.randn(count, settings["latents"], generator=random)}
    if settings.get("classes"):
        drawn["labels"] = torch.arange(count) % settings["classes"]
    return drawn


def labels_of(drawn: dict[str, torch.Tensor]) -> torch.Tensor:
    """The labels, or zeros in their place."""
    return drawn.get("labels", torch.zeros(len(drawn["latents"]), dtype=torch.int64))


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest that somebody changed, with the digest that belongs to it."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps(rest | {"digest": digest}).encode()
