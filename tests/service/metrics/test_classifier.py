"""Classifiers of the data's labels: what they tell, and that they tell how good they are."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from service.errors import UsageError
from service.metrics.classifier import (
    MOST_ATTRIBUTES,
    Labelled,
    one_against_the_rest,
    train_attributes,
    train_classes,
    train_digits,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(3, size=300) * 4  # 0, 4, 8
FEATURES = (np.eye(9)[LABELS] * 6 + RNG.normal(size=(300, 9))).astype(np.float32)
TRAINING, HELD_OUT = Labelled(FEATURES[:200], LABELS[:200]), Labelled(FEATURES[200:], LABELS[200:])


def test_classes_keep_their_labels_and_the_accuracy_is_that_on_held_out_images():
    classifier = train_classes(TRAINING, HELD_OUT)
    assert classifier.classes.tolist() == [0, 4, 8]
    right = (classifier(HELD_OUT.inputs) == HELD_OUT.labels).mean()
    assert classifier.accuracy == right > 0.95


def test_a_classifier_of_labels_by_chance_says_that_it_is_none():
    random = RNG.integers(3, size=300)
    sides = Labelled(FEATURES[:200], random[:200]), Labelled(FEATURES[200:], random[200:])
    assert train_classes(*sides).accuracy == pytest.approx(1 / 3, abs=0.15)
    one_hot = (Labelled(side.inputs, one_against_the_rest(side.labels, random)) for side in sides)
    assert train_attributes(*one_hot).accuracy == pytest.approx(1 / 2, abs=0.1)


def test_attributes_have_positive_logits_where_they_hold():
    among = TRAINING.labels
    sides = (Labelled(s.inputs, one_against_the_rest(s.labels, among)) for s in (TRAINING, HELD_OUT))
    attributes = train_attributes(*sides)
    truth = HELD_OUT.labels[:, None] == [0, 4, 8]
    assert ((attributes.logits(HELD_OUT.inputs) > 0) == truth).mean() > 0.95
    assert attributes.accuracy > 0.95


def test_attributes_that_never_differ_are_left_out():
    values = np.stack([TRAINING.labels == 0, TRAINING.labels >= 0], 1).astype(np.int64)
    attributes = train_attributes(Labelled(TRAINING.inputs, values), Labelled(FEATURES[:0], values[:0]))
    assert attributes.logits(FEATURES).shape == (300, 1)
    assert np.isnan(attributes.accuracy)
    for some in (slice(0, 200), slice(0, 0)):
        with pytest.raises(UsageError, match="no attribute differs"):
            train_attributes(Labelled(TRAINING.inputs[some], values[some, 1:]), HELD_OUT)


def test_one_class_alone_cannot_be_told_apart():
    same = np.zeros(20, np.int64)
    with pytest.raises(UsageError, match="of one class; measure more"):
        train_classes(Labelled(FEATURES[:20], same), HELD_OUT)
    with pytest.raises(UsageError, match="one digit only"):
        train_digits(Labelled(RNG.integers(256, size=(20, 8, 8, 3)).astype(np.uint8), same))


def test_of_many_classes_the_most_frequent_are_taken():
    among = np.concatenate([np.arange(60), np.arange(20, 60)])
    values = one_against_the_rest(np.arange(60), among)
    assert values.shape == (60, MOST_ATTRIBUTES)
    assert values[20:].tolist() == np.eye(40, dtype=int).tolist()
    assert not values[:20].any()


@pytest.mark.slow
def test_stacked_digits_are_told_by_three_digits_that_were_not_trained_on():
    digits = load_digits()
    drawn = RNG.integers(1400, size=(800, 3))  # the last 397 are by other writers
    images = np.moveaxis(digits.images[drawn] * 15, 1, 3).astype(np.uint8)
    classifier = train_digits(Labelled(images, digits.target[drawn] @ [100, 10, 1]))
    others = 1400 + RNG.integers(397, size=(300, 3))
    unseen = np.moveaxis(digits.images[others] * 15, 1, 3).astype(np.uint8)
    right = (classifier(unseen) == digits.target[others] @ [100, 10, 1]).mean()
    assert 0.75 < right <= classifier.accuracy < 1
