"""What a run has made: the generator of a checkpoint, verified, with all that it takes to use it."""

import re
from dataclasses import dataclass

import torch
from pydantic import ValidationError

import models
from models import Growing, Shape, Stage
from service.config import Config
from service.engine.curriculum import curriculum_of
from service.errors import DataError, UsageError
from service.storage import open_storage
from service.training import checkpoint, scores
from service.training.run import read_run

WEIGHTS = ("ema", "generator")
RETRY_S = 20.0
_CHECKPOINT = re.compile(r"(?P<run>.+)/checkpoints/(?P<images>\d+)-(?P<token>\d+)-(?P<sequence>\d+)/?")


@dataclass(frozen=True)
class Trained:
    """A generator on the CPU, the stage that it was trained at last, and where it comes from.

    `metrics` are the last that the run recorded before this checkpoint.
    """

    generator: Growing
    shape: Shape
    stage: Stage
    config: Config
    images: int
    address: str
    fingerprint: str
    attempt: int
    amendments: list[tuple[int, dict[str, float]]]
    metrics: dict[str, float]

    @property
    def rungs(self) -> list[int]:
        """Resolutions that were trained so far."""
        return [rung for rung in self.shape.rungs if rung <= self.stage.resolution]

    @property
    def family(self) -> str:
        """The lineage's name."""
        return self.config.model.family


def place_of(address: str) -> tuple[str, checkpoint.Name] | None:
    """The run directory and the name of a checkpoint's folder; None where it is none."""
    match = _CHECKPOINT.fullmatch(address)
    if not match:
        return None
    images, token, sequence = (int(match[part]) for part in ("images", "token", "sequence"))
    return match["run"], checkpoint.Name(token, sequence, images)


def load(address: str, weights: str = "ema") -> Trained:
    """The EMA, or the `generator` as it is, of a checkpoint's folder or of a run's best checkpoint.

    That is the one with the best score, and the newest where none was scored.

    Raises UsageError where there is none at the address, DataError where it is damaged.
    """
    place = place_of(address)
    storage = open_storage(place[0] if place else address, RETRY_S)
    committed, _ = checkpoint.find(storage)
    if place:
        committed = [name for name in committed if name == place[1]]
    if not committed:
        raise UsageError(
            f"{address}: no committed checkpoint there; give the --run.dir of a training, or one of"
            " the folders in its checkpoints/"
        )
    name = next(iter(scores.rank(storage, committed)), committed[-1])
    tensors, manifest = checkpoint.read(storage, name, [weights])
    try:
        config = Config(**manifest["config"])
        with torch.device("meta"):  # nothing is drawn that the checkpoint would only replace
            generator, _ = models.build(config.model.family, **config.model_settings)
        # in torch's own layout, on which the last bit of a sum depends, whatever the training's was
        layout = {"memory_format": torch.contiguous_format}
        plain = {key: tensor.clone(**layout) for key, tensor in tensors[weights].items()}
        generator.load_state_dict(plain, assign=True)
    except (ValidationError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{storage.url(name.folder)}: made by another version of the service; use that one ({error})"
        ) from error
    amendments = [(images, values) for images, values in manifest["state"]["amendments"]]
    return Trained(
        generator.requires_grad_(False).eval(),
        config.shape,
        curriculum_of(config, amendments).before(name.images).stage,
        config,
        name.images,
        storage.url(name.folder),
        read_run(storage)["fingerprint"],
        manifest["state"]["attempt"],
        amendments,
        manifest.get("metrics", {}),
    )
