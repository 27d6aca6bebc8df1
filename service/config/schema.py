"""The typed configuration of a run: its sections, and the rules that hold between them.

Presets are in `presets/<family>.yaml`; a flag such as `--run.images 20000` overrides one value.
Nothing is read from the environment, and every rule that needs no data is checked here.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

import models
from service.config.amendments import amend, resolve
from service.config.feasible import impossible
from service.config.former import modernise
from service.config.portions import is_dealt, panel_batch
from service.config.sections import (
    CheckpointSettings,
    CollapseSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Phase,
    RunSettings,
    ScaleSettings,
    StorageSettings,
    TrackingSettings,
    TrainingSettings,
)
from service.config.vocabulary import NO_ZERO, RANKING, beyond_moments, need_held_out
from service.storage import is_s3
from service.storage.base import BLOCK_BYTES

MLFLOW_DATABASE = "mlflow.db"

LEAST_AUGMENTED = 8
"""Pixels per side that images have at least where they are augmented."""


class Config(BaseModel):
    """Everything that a run is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: RunSettings
    model: ModelSettings
    phases: list[Phase] = Field(min_length=1)
    """The curriculum, rung by rung; on the command line as JSON."""
    training: TrainingSettings
    data: DataSettings
    scale: ScaleSettings = ScaleSettings()
    checkpoint: CheckpointSettings
    collapse: CollapseSettings = CollapseSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings
    storage: StorageSettings = StorageSettings()

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> "Config":
        """The configuration that a run wrote down, of this version or before; ValueError if invalid."""
        return cls.model_validate(modernise(values))

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        check(self)
        amended = self
        for i, amendment in enumerate(self.collapse.amendments):
            where = f"collapse.amendments[{i}]"
            amended = amended.amended(resolve(amended.training, amendment, where), where)
        if self.collapse.overfit_amendment is not None:
            where = "collapse.overfit_amendment"
            self.amended(resolve(self.training, self.collapse.overfit_amendment, where), where)
        return self

    def amended(self, values: Mapping[str, float], where: str = "an amendment") -> "Config":
        """The configuration with only these training settings changed.

        ValueError, naming `where`, if they are invalid.
        """
        training = amend(self.training, values, where)
        changed = self.model_copy(update={"training": training})
        check(changed)
        return changed

    @property
    def model_settings(self) -> dict[str, Any]:
        """The arguments of `models.build`, beside the family."""
        settings = self.model.model_dump(exclude={"family"}, exclude_none=True)
        return settings | {"first_resolution": self.phases[0].resolution}

    @property
    def shape(self) -> models.Shape:
        """The networks' own configuration, the family's defaults filled in."""
        return models.configure(self.model.family, **self.model_settings)

    @property
    def tracking_uri(self) -> str:
        """Where the run is recorded: at tracking.uri, or in a database in run.dir."""
        return self.tracking.uri or f"sqlite:///{self.run.dir}/{MLFLOW_DATABASE}"

    @property
    def worker_counts(self) -> list[int]:
        """Allowed numbers of workers, among which lanes, batches and the panel can be dealt evenly."""
        return self.counts(self.scale.worker_range)

    def counts(self, possible: range) -> list[int]:
        """Those of the `possible` numbers of workers that are allowed."""
        lanes = self.data.lanes
        batches = {phase.batch: self.group(phase.batch) for phase in self.phases}
        dealt = [*batches.items(), *((panel_batch(*pair), pair[1]) for pair in batches.items())]
        return [
            count
            for count in range(1, lanes + 1)
            if lanes % count == 0 and count in possible and all(is_dealt(*pair, count) for pair in dealt)
        ]

    def group(self, batch: int) -> int:
        """How many images of such a batch are measured together, by batch norm or minibatch stddev."""
        shape = self.shape
        if shape.has_batch_norm:
            return min(self.training.norm_group or batch, batch)
        return shape.batch_group


def check(config: Config) -> None:
    """ValueError names the first rule between settings that is broken, and the remedy."""
    for rule in RULES:
        rule(config)


def _check_phases(config: Config) -> None:
    for i, phase in enumerate(config.phases):
        before = config.phases[i - 1] if i else None
        if before is None:
            if phase.fade_images:
                raise ValueError("phases[0].fade_images: nothing to fade from; set 0")
        elif phase.resolution not in (before.resolution, before.resolution * 2):
            raise ValueError(
                f"phases[{i}].resolution: {phase.resolution} does not follow {before.resolution};"
                f" take {before.resolution * 2}, or {before.resolution} again"
            )
        elif phase.resolution == before.resolution and phase.fade_images:
            raise ValueError(f"phases[{i}].fade_images: the rung does not change; set 0")
    if config.phases[-1].resolution != config.model.resolution:
        raise ValueError(
            f"model.resolution: {config.model.resolution}, but the last phase trains at"
            f" {config.phases[-1].resolution}; make them equal"
        )


def _check_shape(config: Config) -> None:
    try:
        shape = config.shape
    except ValueError as error:
        message = f"model.{error}".replace("model.first resolution", "phases[0].resolution")
        raise ValueError(message) from error
    if config.training.norm_group and not shape.has_batch_norm:
        raise ValueError(
            f"training.norm_group: {config.training.norm_group}, but {config.model.family} has no batch"
            " norm; set null"
        )
    for i, phase in enumerate(config.phases):
        group = config.group(phase.batch)
        if phase.batch % group:
            measures = "training.norm_group" if shape.has_batch_norm else "its discriminator compares"
            raise ValueError(
                f"phases[{i}].batch: {phase.batch} is not a whole number of groups of {group} images"
                f" ({config.model.family}, {measures}); change the batch"
            )


def _check_styles(config: Config) -> None:
    if config.training.style_mixing and not config.shape.has_styles:
        raise ValueError(
            f"training.style_mixing: {config.training.style_mixing}, but {config.model.family} has no"
            " styles; set 0, or use stylegan"
        )


def _check_augmentation(config: Config) -> None:
    training, first = config.training, config.phases[0].resolution
    if training.augment == "none":
        if training.augment_p is not None:
            raise ValueError("training.augment_p: given, but training.augment is none; set it to ada")
        return
    if first < LEAST_AUGMENTED:
        raise ValueError(
            f"training.augment: {training.augment} moves images by an eighth of their side, which at"
            f" {first} px is no pixel; begin at {LEAST_AUGMENTED} px or more, or set none"
        )
    if training.augment == "ada" and training.augment_p is None and training.loss in NO_ZERO:
        raise ValueError(
            f"training.augment_p: null, but the logits of {training.loss} have no zero that tells how"
            " often to augment; give a chance such as 0.5, or a schedule"
        )


def _check_workers(config: Config) -> None:
    if not config.worker_counts:
        raise ValueError(_no_worker_count(config))


def _check_rewinds(config: Config) -> None:
    if config.collapse.action == "rewind" and not config.collapse.amendments:
        raise ValueError(
            "collapse.amendments: empty, so a rewind would change nothing; give a list such as"
            ' [{"training.lr_generator": "x0.5"}], or set collapse.action to alert, protect or stop'
        )


def _check_tracking(config: Config) -> None:
    uri = config.tracking.uri or ""
    if re.match(r"[\w.-]+:\d+(/|$)", uri):
        raise ValueError(f"tracking.uri: {uri} names no protocol; write http://{uri} or https://{uri}")
    if is_s3(config.run.dir) and not config.tracking.uri:
        raise ValueError(
            f"tracking.uri: not given, but run.dir {config.run.dir} cannot hold an MLflow database;"
            " give the address of an MLflow server"
        )


def _check_data(config: Config) -> None:
    for key, address in (("data.url", config.data.url), ("data.index_url", config.data.index_url)):
        if address and (address.endswith(".tar") or address.startswith("pipe:")):
            folder = address.rpartition("/")[0] or "."
            hint = "" if address.startswith("pipe:") else f", {folder}"
            raise ValueError(
                f"{key}: {address} names shards; give the folder or s3:// address that holds them{hint}:"
                " all .tar files there are read, and nothing is piped"
            )


def _check_cache(config: Config) -> None:
    data = config.data
    needed = data.lanes * BLOCK_BYTES
    if data.cache_dir and data.cache_bytes < needed:
        raise ValueError(
            f"data.cache_bytes: {data.cache_bytes}, but {data.lanes} lanes need a block of"
            f" {BLOCK_BYTES} each, {needed} in all; raise it, or leave data.cache_dir out"
        )


def _check_evaluation(config: Config) -> None:
    settings = config.evaluation
    if settings.best not in settings.scores:
        ranking = [score for score in settings.scores if score in RANKING]
        raise ValueError(
            f"evaluation.best: {settings.best}, which is not in evaluation.scores; add it there"
            + (f", or set evaluation.best to {' or '.join(ranking)}" if ranking else "")
        )
    if settings.features == "inception" and not settings.weights:
        raise ValueError(
            "evaluation.weights: not given, but inception needs them; give the path or URL of its"
            " file, or set evaluation.features to efficientnet_lite0"
        )
    if settings.features != "inception" and settings.weights:
        raise ValueError(
            f"evaluation.weights: {settings.features} brings its own; set null, or set"
            " evaluation.features to inception"
        )
    if problem := impossible(settings, config.model.family, config.shape):
        raise ValueError(problem)
    held_out = need_held_out(settings.scores, settings.reference)
    if settings.every_images and held_out and config.data.held_out == 0:
        raise ValueError(
            "data.held_out: 0, but scores compare with held-out images; give a share above 0, set"
            " evaluation.reference to training, or evaluation.every_images to null"
        )
    if beyond := beyond_moments(settings.scores, settings.reference):
        raise ValueError(
            f"evaluation.reference: {settings.reference} holds only moments, which {', '.join(beyond)}"
            " cannot be computed from; leave these out of evaluation.scores, or set it to held_out or"
            " training"
        )


def _no_worker_count(config: Config) -> str:
    lanes, batches = config.data.lanes, sorted({phase.batch for phase in config.phases})
    groups = ", ".join(f"{batch} in groups of {config.group(batch)}" for batch in batches)
    panels = ", ".join(str(panel_batch(batch, config.group(batch))) for batch in batches)
    return (
        f"scale.workers: {config.scale.workers} workers cannot share data.lanes {lanes}, the phases'"
        f" batches ({groups}) and the signals' images, {panels}, evenly; take one of"
        f" {config.counts(range(1, lanes + 1))}, or change these"
    )


RULES: tuple[Callable[[Config], None], ...] = (
    _check_phases,
    _check_shape,
    _check_styles,
    _check_augmentation,
    _check_workers,
    _check_rewinds,
    _check_tracking,
    _check_data,
    _check_cache,
    _check_evaluation,
)
