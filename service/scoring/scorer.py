"""Scores a run's checkpoints. Real images are measured once, generated ones for each checkpoint."""

import functools
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from service.config import Config, EvaluationSettings
from service.config.vocabulary import (
    HIGHER_IS_BETTER,
    OF_LABELS,
    OF_SETS,
    PATH_LENGTHS,
    RANKING,
    REFERENCES,
    ScoreName,
)
from service.data.dataset import Batch, Dataset, Request, read
from service.data.index import read_index
from service.data.order import Order
from service.data.sources import shows_stacked_digits
from service.engine.device import full_precision
from service.engine.sampler import Sampler, Truncation
from service.errors import UsageError
from service.metrics import scores
from service.metrics.birthday import nearest_pairs
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
from service.scoring.check import need_network
from service.scoring.paths import path_lengths
from service.storage import Storage, open_storage

if TYPE_CHECKING:
    from service.scoring.labelled import LabelScores

log = logging.getLogger(__name__)

_PART = 512  # images in memory at once, if no score needs them all
_DRAWS = Draws(0, "evaluation", 0)
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
    statistics: RealStatistics | None
    floors: dict[str, float]

    @property
    def measured(self) -> RealStatistics:
        """The statistics, where a score needs features."""
        assert self.statistics is not None
        return self.statistics


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
        if need_network(settings.scores, self._index):
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

    def score(self, trained: Trained, truncation: Truncation | None = None) -> Score:
        """The scores of a checkpoint that the resolution of its last stage allows.

        With a `truncation` the images are of the same latents whatever it is, and their scores are not
        for ranking. UsageError if it allows none of them.
        """
        with full_precision():  # on a GPU as on a CPU, for scores are compared
            return self._score(trained, truncation)

    def _score(self, trained: Trained, truncation: Truncation | None) -> Score:
        settings, resolution = self.settings, trained.stage.resolution
        possible = self._possible(resolution)
        if not possible:
            scores.check_scores(settings.scores, self.setting(resolution))
        values = self._of_images(possible, trained, truncation) | self._of_paths(possible, trained)
        by, samples = self.measure
        value = values.get(by, math.nan) if settings.best in RANKING else math.nan
        rank = -value if settings.best in HIGHER_IS_BETTER else value
        return Score(trained.clock, resolution, by, rank, values, samples)

    def _possible(self, resolution: int) -> list[ScoreName]:
        """The scores that images of this resolution allow."""
        lacks = scores.obstacles(self.setting(resolution))
        return [score for score in self.settings.scores if score not in lacks]

    def nearest_pairs(self, trained: Trained, count: int) -> NDArray[np.uint8]:
        """The generated images [2 · count, h, w, c] that are nearest in features, pair after pair.

        They are drawn and measured anew.
        """
        with full_precision():
            generated = self._draw(trained)
            assert generated.features is not None
            numbers = nearest_pairs(generated.features, count).ravel()
            latents = _DRAWS.latents(numbers, trained.shape.latents)
            seeds = _DRAWS.seeds(numbers, "noise")
            return self._sampler(trained).draw(latents, generated.labels[numbers], noise_seeds=seeds)

    def _of_images(
        self, possible: list[ScoreName], trained: Trained, truncation: Truncation | None
    ) -> dict[str, float]:
        """The scores that are computed from generated images."""
        of_sets, of_labels = (
            [score for score in possible if score in kind] for kind in (OF_SETS, OF_LABELS)
        )
        if not of_sets and not of_labels:
            return {}
        reality = self._at(trained.stage.resolution)
        generated = self._draw(trained, truncation)
        values = scores.compute(of_sets, generated, self._features, reality.real) | reality.floors
        if of_labels:
            try:
                values |= self._labelled.compute(of_labels, generated, self._spaces(trained))
            except UsageError as error:  # such as of images of one class among those that are measured
                if not values:
                    raise
                log.warning("event=scores_left_out scores=%s error=%s", ",".join(of_labels), error)
        return values

    def _spaces(self, trained: Trained) -> dict[str, NDArray[np.float64]]:
        """The points [n, d] that the generated images come from: in z and, with styles, in w."""
        latents = _DRAWS.latents(np.arange(self.settings.images), trained.shape.latents)
        if not trained.shape.has_styles:
            return {"z": latents}
        styles = self._sampler(trained).styles(latents, self._labels(trained))
        return {"z": latents, "w": styles[:, 0].double().cpu().numpy()}  # every layer has the same

    def _of_paths(self, possible: list[ScoreName], trained: Trained) -> dict[str, float]:
        """The values of the path lengths."""
        wanted = [score for score in possible if score in PATH_LENGTHS]
        if not wanted:
            return {}
        assert self._features is not None
        sampler, labels = self._sampler(trained), self._labels(trained)
        values = path_lengths(wanted, sampler, self._features, _DRAWS, labels)
        return {self.protocol.name(score): value for score, value in values.items()}

    @functools.cached_property
    def _labelled(self) -> "LabelScores":
        from service.scoring.labelled import LabelScores  # with scikit-learn, which takes a second

        return LabelScores(
            self._index,
            self.settings,
            self.protocol,
            self._features,
            lambda resolution: self._at(resolution).measured,
            functools.partial(self._read, self._training),
        )

    @property
    def _need_images(self) -> bool:
        """Whether a score needs the pixels of generated images."""
        stacked = shows_stacked_digits(self._index.about) and "modes" in self.settings.scores
        return stacked or scores.need_images(self.settings.scores)

    def _sampler(self, trained: Trained, threshold: float | None = None) -> Sampler:
        generator = trained.generator.to(self._device)
        return Sampler(generator, trained.shape, trained.stage, 0, threshold)

    def _labels(self, trained: Trained) -> NDArray[np.int64]:
        """Labels of the generated images, as frequent as in training; 0 if there are no classes."""
        numbers = np.arange(self.settings.images)
        if not trained.shape.classes:
            return np.zeros_like(numbers)
        rows = self._training[numbers % len(self._training)]
        return self._index.label[rows].astype(np.int64).clip(0)

    def _draw(self, trained: Trained, truncation: Truncation | None = None) -> scores.Generated:
        """Generated images, as many as the settings say."""
        draws, numbers, labels = _DRAWS, np.arange(self.settings.images), self._labels(trained)
        chosen = truncation or Truncation()
        sampler = self._sampler(trained, chosen.threshold)

        def parts() -> Iterator[NDArray[np.uint8]]:
            for part in _parts(numbers):
                size = trained.shape.latents
                latents = draws.latents(part, size)
                if truncation:  # these shrink with the threshold
                    latents = draws.truncated(part, size, chosen.threshold)
                noise = draws.seeds(part, "noise")
                yield sampler.draw(latents, labels[part], chosen.psi, noise_seeds=noise)

        images, features = self._measure(parts(), keep=self._need_images)
        return scores.Generated(images, labels, features)

    def save_reference(self, path: Path) -> None:
        """Write the moments of the real images that the finished network's are compared with.

        The scores must need features, and the reference be no file itself.
        """
        assert self._features is not None
        resolution = self.config.model.resolution
        with full_precision():
            real = self._at(resolution).real
        write_reference(path, real.target, self._features, resolution)

    def _at(self, resolution: int) -> _Reality:
        """The real images at a resolution, measured at the first call."""
        if resolution not in self._reality:
            statistics = self._statistics(resolution, self._features) if self._features else None
            real = self._real(resolution, statistics)
            floors = scores.floors(self._possible(resolution), real, self.protocol)
            self._reality[resolution] = _Reality(real, statistics, floors)
        return self._reality[resolution]

    def _real(self, resolution: int, statistics: RealStatistics | None) -> scores.Real:
        """Both kinds of real images, as far as the scores need them."""
        held_out, training = (
            self._pixels(rows, resolution) for rows in (self._held_out, self._training)
        )
        if not statistics:
            return scores.Real(scores.Images(held_out), scores.Images(training), self.protocol.reference)
        return scores.Real(
            scores.Images(held_out, statistics.held_out.features),
            scores.Images(training, statistics.training.features),
            self.protocol.reference,
            self._file.moments if self._file else statistics.whole,
        )

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
        if not len(rows):
            return
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
