"""Scores by classifiers of the data's own labels: separability, and the modes that are covered."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.config import EvaluationSettings
from service.data.attributes import AttributeTable, read_attributes
from service.data.dataset import Batch
from service.data.index import Index
from service.data.sources import shows_stacked_digits
from service.data.tar import NO_LABEL
from service.metrics import scores
from service.metrics.classifier import (
    Attributes,
    Classifier,
    Labelled,
    StackedDigits,
    one_against_the_rest,
    train_attributes,
    train_classes,
    train_digits,
)
from service.metrics.feature_set import FeatureSet
from service.metrics.modes import modes
from service.metrics.real import FeatureSample, RealStatistics
from service.metrics.separability import separability


class LabelScores:
    """Computes the scores in OF_LABELS; classifiers are trained once for each resolution.

    `real` gives the features of the data's images at a resolution, `training` the training images.
    Modes of stacked digits need no `features`.
    """

    def __init__(
        self,
        index: Index,
        settings: EvaluationSettings,
        protocol: scores.Protocol,
        features: FeatureSet | None,
        real: Callable[[int], RealStatistics],
        training: Callable[[int], Iterable[Batch]],
    ):
        self._index, self._protocol, self._features = index, protocol, features
        self._real, self._training = real, training
        self._table: AttributeTable | None = None
        if settings.attributes and "separability" in settings.scores:
            self._table = read_attributes(settings.attributes, index)
        self._attributes_at = functools.cache(self._train_attributes)
        self._classes_at = functools.cache(self._train_classes)
        self._digits_at = functools.cache(self._train_digits)

    def compute(
        self,
        wanted: Sequence[str],
        generated: scores.Generated,
        spaces: Mapping[str, NDArray[np.float64]],
    ) -> dict[str, float]:
        """The values of the `wanted` scores; `spaces` gives the images' points [n, d] in z and w."""
        values: dict[str, float] = {}
        if "separability" in wanted:
            values |= self._separability(generated, spaces)
        if "modes" in wanted:
            values |= self._modes(generated)
        return values

    def _separability(
        self, generated: scores.Generated, spaces: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, float]:
        assert generated.features is not None
        attributes = self._attributes_at(generated.images.shape[1])
        logits = attributes.logits(generated.features)
        found = {space: separability(points, logits) for space, points in spaces.items()}
        values = {f"separability_{space}": each.score for space, each in found.items()}
        values["separability_attributes"] = found["z"].varying
        values["separability_accuracy"] = attributes.accuracy
        return {self._protocol.name(part): value for part, value in values.items()}

    def _modes(self, generated: scores.Generated) -> dict[str, float]:
        resolution = generated.images.shape[1]
        labels = self._index.label[self._index.rows(held_out=False)].astype(np.int64)
        labels = labels[labels != NO_LABEL]
        classifier: Classifier | StackedDigits
        stacked = shows_stacked_digits(self._index.about)
        if stacked:
            classifier = self._digits_at(resolution)
            shown = classifier(generated.images)
        else:
            assert generated.features is not None
            classifier = self._classes_at(resolution)
            shown = classifier(generated.features)
            labels = labels[np.isin(labels, classifier.classes)]
        result = modes(shown, labels)
        values = {
            "modes": result.count,
            "modes_of": result.of,
            "modes_kl": result.divergence,
            "modes_accuracy": classifier.accuracy,
        }
        protocol = replace(self._protocol, features="") if stacked else self._protocol
        return {protocol.name(part): value for part, value in values.items()}

    def _train_attributes(self, resolution: int) -> Attributes:
        real = self._real(resolution)
        if self._table:
            sides = (_described(side, self._table) for side in (real.training, real.held_out))
            return train_attributes(*sides)
        training, held_out = (self._labelled(side) for side in (real.training, real.held_out))
        among = training.labels
        return train_attributes(
            *(
                Labelled(side.inputs, one_against_the_rest(side.labels, among))
                for side in (training, held_out)
            )
        )

    def _train_classes(self, resolution: int) -> Classifier:
        real = self._real(resolution)
        return train_classes(self._labelled(real.training), self._labelled(real.held_out))

    def _train_digits(self, resolution: int) -> StackedDigits:
        batches = list(self._training(resolution))
        images = np.concatenate([batch.images for batch in batches])
        labels = np.concatenate([self._index.label[batch.rows] for batch in batches]).astype(np.int64)
        return train_digits(Labelled(images, labels))

    def _labelled(self, sample: FeatureSample) -> Labelled:
        """Those of the sample's images that have a label."""
        labels = self._index.label[sample.rows].astype(np.int64)
        there = labels != NO_LABEL
        return Labelled(sample.features[there], labels[there])


def _described(sample: FeatureSample, table: AttributeTable) -> Labelled:
    """Those of the sample's images that are in the table."""
    there, values = table.among(sample.rows)
    return Labelled(sample.features[there], values)
