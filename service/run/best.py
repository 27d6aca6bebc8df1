"""A trained generator: the best checkpoint of a run, or a given one, verified and ready to use."""

import re
from collections.abc import Collection
from dataclasses import dataclass

import torch

import models
from models import Shape, Stage
from models.growth import GrowingGenerator
from service.config import Config
from service.config.vocabulary import WeightsName
from service.documents import reason
from service.engine.curriculum import curriculum_of
from service.engine.plain import Amended
from service.errors import DataError, UsageError
from service.run import checkpoint, commits, ranking
from service.run.directory import read_run
from service.run.pins import pinned
from service.storage import MissingError, Storage, open_storage

RETRY_S = 20.0
_CHECKPOINT = re.compile(r"(?P<run>.+)/checkpoints/(?P<clock>\d+)-(?P<token>\d+)-(?P<sequence>\d+)/?")


@dataclass(frozen=True)
class CheckpointPlace:
    """Where a checkpoint lies: the address of its run directory, and its name there."""

    run_dir: str
    name: commits.Name


@dataclass(frozen=True)
class Trained:
    """A generator on the CPU, the last stage that it was trained at, and where it comes from.

    `classes` are the names of the labels, if they have any; `metrics` are the last values that the run
    recorded before this checkpoint.
    """

    generator: GrowingGenerator
    shape: Shape
    stage: Stage
    config: Config
    place: CheckpointPlace
    fingerprint: str
    classes: tuple[str, ...]
    attempt: int
    amendments: tuple[Amended, ...]
    metrics: dict[str, float]

    @property
    def clock(self) -> int:
        """The clock of the checkpoint."""
        return self.place.name.clock

    @property
    def address(self) -> str:
        """The checkpoint's folder."""
        return f"{self.place.run_dir}/{self.place.name.folder}"

    @property
    def rungs(self) -> list[int]:
        """Resolutions that were trained so far."""
        return [rung for rung in self.shape.rungs if rung <= self.stage.resolution]

    def name_of(self, label: int) -> str:
        """The name of a class; "" if it has none."""
        return self.classes[label] if label < len(self.classes) else ""

    @property
    def family(self) -> str:
        """The family of networks."""
        return self.config.model.family


def place_of(address: str) -> CheckpointPlace | None:
    """The place of the checkpoint whose folder has this address; None if it is not one."""
    match = _CHECKPOINT.fullmatch(address)
    if not match:
        return None
    clock, token, sequence = (int(match[part]) for part in ("clock", "token", "sequence"))
    return CheckpointPlace(match["run"], commits.Name(token, sequence, clock))


def load(address: str, weights: WeightsName = "ema") -> Trained:
    """The EMA, or the raw `generator`, of a checkpoint's folder or of a run's best checkpoint.

    The best is the one with the best score, or the newest if none has a score. UsageError if there is
    no checkpoint at the address, DataError if it is damaged.
    """
    storage, name, tensors, manifest = read_parts(address, [weights])
    try:
        config = Config.stored(manifest.config)
        generator = _build(config, tensors[weights])
        stage = curriculum_of(config, manifest.state.amendments).before(name.clock).stage
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise _other_version(storage, name, error) from error
    run = read_run(storage)
    return Trained(
        generator,
        config.shape,
        stage,
        config,
        CheckpointPlace(storage.address, name),
        run.fingerprint,
        run.classes,
        manifest.state.attempt,
        manifest.state.amendments,
        manifest.metrics,
    )


def read_parts(
    address: str, parts: Collection[str]
) -> tuple[Storage, commits.Name, checkpoint.Tensors, commits.Manifest]:
    """These parts of a checkpoint, chosen as `load` does it, with its run, its name and its manifest.

    It is pinned meanwhile; where a sweep was faster, another is chosen.
    """
    place = place_of(address)
    storage = open_storage(place.run_dir if place else address, RETRY_S)
    while True:
        name = _choose(storage, address, place)
        with pinned(storage, name):
            try:
                largest = _largest(storage, name)
                return storage, name, *checkpoint.read(storage, name, parts, largest)
            except MissingError:
                if name in commits.find(storage)[0]:
                    raise


def _largest(storage: Storage, name: commits.Name) -> dict[str, int]:
    """The bytes of each part, by the networks that the checkpoint's own configuration describes."""
    manifest = commits.read_manifest(storage, name)
    try:
        config = Config.stored(manifest.config)
        with torch.device("meta"):
            return checkpoint.largest_bytes(*models.build(config.model.family, **config.model_settings))
    except (ValueError, RuntimeError, LookupError, TypeError) as error:
        raise _other_version(storage, name, error) from error


def _other_version(storage: Storage, name: commits.Name, error: Exception) -> DataError:
    return DataError(
        f"{storage.url(name.folder)}: damaged, or made by another version of the service; use that"
        f" version, or choose another checkpoint ({reason(error)})"
    )


def _choose(storage: Storage, address: str, place: CheckpointPlace | None) -> commits.Name:
    committed, _ = commits.find(storage)
    if place:
        committed = [name for name in committed if name == place.name]
    if not committed:
        raise UsageError(
            f"{address}: no committed checkpoint there; give the --run.dir of a training, or one of"
            " the folders in its checkpoints/"
        )
    return next(iter(ranking.rank(storage, committed)), committed[-1])


def _build(config: Config, tensors: dict[str, torch.Tensor]) -> GrowingGenerator:
    """The generator with these weights; RuntimeError or ValueError if they belong to another network."""
    # in torch's default layout whatever the training used: the last bit of a sum depends on it
    plain = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    return models.restore_generator(config.model.family, plain, **config.model_settings)
