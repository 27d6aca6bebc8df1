"""Classifiers that are trained on the data's labels, to tell what generated images show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from service.errors import UsageError
from service.metrics.distances import Features
from service.metrics.settled import settled

MOST_ATTRIBUTES = 40
"""As many as CelebA has, whose attributes the measure was made for (Karras et al. 2019, §4.2)."""
# On digits it tells 93 % of held-out writers' right, 92 % at a tenth or ten times of it.
_REGULARISATION = 0.1
_ITERATIONS = 1000
# One in so many digits tells the accuracy; with more than so many digits in all, training takes minutes.
_TESTED = 5
_MOST_DIGITS = 10_000


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images' features [n, d], or the images, with their labels [n]."""

    inputs: NDArray[Any]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Classifier:
    """Tells an image's class; `accuracy` in [0, 1] is over images that it was not trained on."""

    estimator: Any
    classes: NDArray[np.int64]
    accuracy: float

    def __call__(self, features: Features) -> NDArray[np.int64]:
        """The labels [n] of features [n, d]."""
        return self.estimator.predict(features)


@dataclass(frozen=True, eq=False)
class Attributes:
    """Tells whether an image has each of some attributes.

    `accuracy` in [0, 1] is the mean over the attributes of their balanced accuracy on held-out images,
    0.5 by chance; NaN if there are none.
    """

    estimators: Sequence[Any]
    accuracy: float

    def logits(self, features: Features) -> NDArray[np.float64]:
        """Logits [n, k] of features [n, d]: above 0 for images that rather have the attribute."""
        return np.stack([each.decision_function(features) for each in self.estimators], 1)


@dataclass(frozen=True, eq=False)
class StackedDigits:
    """Tells the numbers of three digits that images show in their three channels.

    `accuracy` in [0, 1] is over triples: that of one digit, over images that were left out of training,
    to the third power.
    """

    digits: Any
    accuracy: float

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The numbers [n], 0 … 999, of images [n, h, w, 3]."""
        hundreds, tens, ones = self.digits.predict(_channels(images) / 255).reshape(3, -1)
        return hundreds * 100 + tens * 10 + ones


def train_classes(training: Labelled, held_out: Labelled) -> Classifier:
    """A logistic regression over features; UsageError for fewer than two classes."""
    if len(np.unique(training.labels)) < 2:
        raise UsageError("modes: the measured training images are of one class; measure more of them")
    estimator = _regression().fit(training.inputs, training.labels)
    accuracy = float("nan")
    if len(held_out.labels):
        accuracy = float((estimator.predict(held_out.inputs) == held_out.labels).mean())
    return Classifier(estimator, np.unique(training.labels), accuracy)


def train_attributes(training: Labelled, held_out: Labelled) -> Attributes:
    """One logistic regression for each attribute; here `labels` are 0 or 1, [n, k].

    An attribute that all training images have, or none, is left out; UsageError if that is each.
    """
    shares = training.labels.sum(0) / max(len(training.labels), 1)
    varying = np.flatnonzero((shares > 0) & (shares < 1))
    if not len(varying):
        raise UsageError(
            "separability: no attribute differs between the measured training images; measure more of"
            " them, or give attributes of more"
        )
    estimators = [_regression().fit(training.inputs, training.labels[:, i]) for i in varying]
    accuracies = [
        balanced_accuracy_score(held_out.labels[:, i], estimator.predict(held_out.inputs))
        for i, estimator in zip(varying, estimators, strict=True)
        if len(np.unique(held_out.labels[:, i])) == 2
    ]
    return Attributes(estimators, float(np.mean(accuracies)) if accuracies else float("nan"))


def one_against_the_rest(labels: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Attributes [n, k] of labels [n], 0 or 1: one for each of the most frequent classes of `among`."""
    classes, counts = np.unique(among, return_counts=True)
    frequent = np.sort(classes[np.argsort(-counts, kind="stable")[:MOST_ATTRIBUTES]])
    return (labels[:, None] == frequent).astype(np.int64)


def train_digits(training: Labelled) -> StackedDigits:
    """A support vector machine over the pixels of one channel, from images and their numbers 0 … 999.

    A digit that occurs in several images counts once, and a fifth of them is left out and tells the
    accuracy: in such data held-out images share their digits with training images. UsageError if there
    is one digit only.
    """
    labels = np.concatenate([training.labels // 100, training.labels // 10 % 10, training.labels % 10])
    digits, rows = np.unique(_channels(training.inputs), axis=0, return_index=True)
    labels, order = labels[rows], settled(digits)[:_MOST_DIGITS]
    tested, rest = order[::_TESTED], np.delete(order, np.s_[::_TESTED])
    if len(np.unique(labels[rest])) < 2:
        raise UsageError("modes: the measured training images show one digit only; measure more of them")
    # Of sklearn's digits by other writers it tells 95 %, a logistic regression of features 93 %.
    estimator = SVC().fit(digits[rest] / 255, labels[rest])
    accuracy = float((estimator.predict(digits[tested] / 255) == labels[tested]).mean())
    return StackedDigits(estimator, accuracy**3)


def _channels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All first, then all second, then all third channels, as rows [3n, h·w]."""
    return np.moveaxis(images, 3, 0).reshape(3 * len(images), -1)


def _regression() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=_REGULARISATION, max_iter=_ITERATIONS))
