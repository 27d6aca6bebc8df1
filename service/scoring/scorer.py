"""Scores a run's checkpoints. Real images are measured once, generated ones for each checkpoint."""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from service.config import Config, EvaluationSettings
from service.config.vocabulary import HIGHER_IS_BETTER, RANKING, REFERENCES, need_features
from service.data.dataset import Batch, Dataset, Request, read
from service.data.index import read_index
from service.data.order import Order
from service.engine.device import full_precision
from service.engine.sampler import Sampler
from service.metrics import scores
from service.metrics.feature_set import FeatureSet
from service.metrics.features import open_features
from service.metrics.frechet import Moments, MomentsSum, moments
from service.metrics.real import (
    FeatureSample,
    RealImages,
    RealStatistics,
    load_statistics,
    save_statistics,
    select_rows,
)
from service.metrics.reference import ReferenceFile, read_reference, write_reference
from service.random.draws import Draws
from service.run.best import Trained
from service.run.ranking import Score
from service.storage import Storage, open_storage

log = logging.getLogger(__name__)

_PART = 512  # images in memory at once, if no score needs them all
_WINDOW = 64  # samples that are read together if they lie near each other


def device_of(settings: EvaluationSettings) -> torch.device:
    """Where to score: on the GPU that the settings reserve; without one, a warning and the CPU."""
    if not settings.gpus:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)  # of those that Ray lets this process see
    log.warning("event=scoring_on_cpu reason='evaluation.gpus is set, but torch sees no GPU'")
    return torch.device("cpu")


@dataclass(frozen=True)
class _Reality:
    """The real images at one resolution, and what a perfect generator would get."""

    real: scores.Real
    floors: dict[str, float]


class Scorer:
    """Scores checkpoints against the data of `config`; `cache` keeps the statistics of real images.

    Images are generated, and features measured, on a GPU if the settings reserve one.
    """

    def __init__(self, config: Config, settings: EvaluationSettings, cache: Storage):
        self.config, self.settings, self.cache = config, settings, cache
        self._index = read_index(open_storage(config.data.index_address, config.storage.retry_s))
        self._features: FeatureSet | None = None
        self._file: ReferenceFile | None = None
        self._device = device_of(settings)
        if need_features(settings.scores):
            self._features = open_features(settings.features, settings.weights or "", self._device)
            if settings.reference not in REFERENCES:
                self._file = read_reference(settings.reference, self._features)
        self._held_out, self._training = (
            select_rows(self._index.rows(held_out=side), settings.images) for side in (True, False)
        )
        self._reality: dict[int, _Reality] = {}

    def setting(self, resolution: int) -> scores.Setting:
        """How large the images are, and how many there are to compare."""
        counts = len(self._held_out), len(self._training), self.settings.images
        return scores.Setting(resolution, *counts, self.settings.reference)

    @property
    def protocol(self) -> scores.Protocol:
        """What the scores are measured on."""
        features = self._features.name if self._features else self.settings.features
        reference = self._file.name if self._file else self.settings.reference
        return scores.Protocol(features, self.settings.images, reference)

    @property
    def measure(self) -> tuple[str, int]:
        """The metric that ranks, and the number of generated images: only equal measures compare."""
        return self.protocol.name(self.settings.best), self.settings.images

    def score(self, trained: Trained) -> Score:
        """The scores of a checkpoint that the resolution of its last stage allows.

        UsageError if it allows none of them.
        """
        with full_precision():  # on a GPU as on a CPU, for scores are compared
            return self._score(trained)

    def _score(self, trained: Trained) -> Score:
        settings, resolution = self.settings, trained.stage.resolution
        lacks = scores.obstacles(self.setting(resolution))
        possible = [score for score in settings.scores if score not in lacks]
        if not possible:
            scores.check_scores(settings.scores, self.setting(resolution))
        reality = self._at(resolution)
        values = scores.compute(possible, self._draw(trained), self._features, reality.real)
        values |= reality.floors
        by, samples = self.measure
        value = values.get(by, math.nan) if settings.best in RANKING else math.nan
        rank = -value if settings.best in HIGHER_IS_BETTER else value
        return Score(trained.clock, resolution, by, rank, values, samples)

    def _draw(self, trained: Trained) -> scores.Generated:
        """Generated images, as many as the settings say, with labels as frequent as in training."""
        draws, numbers = Draws(0, "evaluation", 0), np.arange(self.settings.images)
        labels = np.zeros_like(numbers)
        if trained.shape.classes:
            rows = self._training[numbers % len(self._training)]
            labels = self._index.label[rows].astype(np.int64).clip(0)
        generator = trained.generator.to(self._device)
        sampler = Sampler(generator, trained.shape, trained.stage, seed=0)

        def parts() -> Iterator[NDArray[np.uint8]]:
            for part in _parts(numbers):
                latents = draws.latents(part, trained.shape.latents)
                yield sampler.draw(latents, labels[part], noise_seeds=draws.seeds(part, "noise"))

        images, features = self._measure(parts(), keep=scores.need_images(self.settings.scores))
        return scores.Generated(images, labels, features)

    def save_reference(self, resolution: int, path: Path) -> None:
        """Write the moments of the real images that generated ones are compared with.

        The scores must need features, and the reference be no file itself.
        """
        assert self._features is not None
        with full_precision():
            real = self._at(resolution).real
        assert real.compared.features is not None
        write_reference(path, real.moments or moments(real.compared.features), self._features)

    def _at(self, resolution: int) -> _Reality:
        """The real images at a resolution, measured at the first call."""
        if resolution not in self._reality:
            real = self._measure_real(resolution)
            lacks = scores.obstacles(self.setting(resolution))
            possible = [score for score in self.settings.scores if score not in lacks]
            floors = scores.floors(possible, real, self.protocol)
            self._reality[resolution] = _Reality(real, floors)
        return self._reality[resolution]

    def _measure_real(self, resolution: int) -> scores.Real:
        held_out, training = (
            self._pixels(rows, resolution) for rows in (self._held_out, self._training)
        )
        known = None
        if self._features is None:
            sides = scores.Images(held_out), scores.Images(training)
        else:
            statistics = self._statistics(resolution, self._features)
            known = statistics.whole
            sides = (
                scores.Images(held_out, statistics.held_out.features),
                scores.Images(training, statistics.training.features),
            )
        if self._file:
            known = self._file.moments
        return scores.Real(*sides, reference=self.protocol.reference, moments=known)

    def _pixels(self, rows: NDArray[np.int64], resolution: int) -> NDArray[np.uint8] | None:
        """These images, if a score needs them."""
        if "swd" not in self.settings.scores:
            return None
        none = np.empty((0, resolution, resolution, self.config.model.channels), np.uint8)
        return np.concatenate([none, *(batch.images for batch in self._read(rows, resolution))])

    def _statistics(self, resolution: int, features: FeatureSet) -> RealStatistics:
        """From an earlier evaluation of the same data, or measured now."""
        every = self._index.rows(held_out=False)
        whole = self.settings.reference == "training"
        images = RealImages(
            self._index.fingerprint(),
            resolution,
            self.config.model.channels,
            self._held_out,
            self._training,
            len(every) if whole else 0,
        )
        statistics = load_statistics(self.cache, images, features)
        if statistics is None:
            held_out = self._sample(self._held_out, resolution, features)
            training = self._sample(self._training, resolution, features)
            known = self._whole(training, every, resolution, features) if whole else None
            statistics = RealStatistics(held_out, training, known)
            save_statistics(self.cache, images, features, statistics)
        return statistics

    def _sample(self, rows: NDArray[np.int64], resolution: int, features: FeatureSet) -> FeatureSample:
        measured, read_rows = [np.empty((0, features.width), np.float32)], [rows[:0]]
        for batch in self._read(rows, resolution):
            measured.append(features(batch.images))
            read_rows.append(batch.rows)
        return FeatureSample(np.concatenate(measured), np.concatenate(read_rows))

    def _whole(
        self, sample: FeatureSample, rows: NDArray[np.int64], resolution: int, features: FeatureSet
    ) -> Moments:
        """The moments of all training images, of which `sample` is a part."""
        if len(sample.features) == len(rows):
            return moments(sample.features)
        total = MomentsSum(sample.features.mean(0))
        with tqdm(
            desc="measuring training images", total=len(rows), unit=" images", disable=None
        ) as progress:
            for batch in self._read(rows, resolution):
                total.add(features(batch.images))
                progress.update(len(batch.images))
        return total.moments()

    def _measure(
        self, parts: Iterable[NDArray[np.uint8]], keep: bool
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """All images and their features; images are not kept if no score needs them."""
        images, features = [], []
        for part in parts:
            if self._features:
                features.append(self._features(part))
            # a view of one image in the place of all keeps their shape and takes no memory
            images.append(part if keep else np.broadcast_to(part[:1], part.shape))
        whole = np.concatenate(images) if keep else np.broadcast_to(images[0][:1], _shape(images))
        return whole, np.concatenate(features) if features else None

    def _read(self, rows: NDArray[np.int64], resolution: int) -> Iterator[Batch]:
        """These images in an order of their own, in parts."""
        data, storage = self.config.data, self.config.storage
        dataset = Dataset(
            data.url,
            self._index,
            Order(self._index, rows, 0, lanes=1, window=_WINDOW),
            self.config.model.channels,
            max_bad_samples=data.allowed_bad(len(self._index)),
            retry_s=storage.retry_s,
            timeout_s=storage.timeout_s,
        )
        for part in _parts(np.arange(len(rows))):
            yield read(dataset, Request(part, resolution))


def _parts(numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(numbers), _PART):
        yield numbers[start : start + _PART]


def _shape(parts: list[NDArray[np.uint8]]) -> tuple[int, ...]:
    return sum(len(part) for part in parts), *parts[0].shape[1:]
