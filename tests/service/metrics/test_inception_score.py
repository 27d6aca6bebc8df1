"""The Inception score against its definition, torchmetrics, and cases known without computing."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torchmetrics.image.inception import InceptionScore

from service.metrics.inception_score import inception_score

LOGITS = np.random.default_rng(0).normal(size=(97, 11)) * 3
PROBABILITIES = softmax(LOGITS, axis=1)


@pytest.mark.parametrize("splits", [1, 2, 10])
def test_it_is_the_mean_divergence_from_the_mean(splits):
    expected = [
        np.exp(rel_entr(part, part.mean(0)).sum(1).mean())
        for part in (PROBABILITIES[i * 97 // splits : (i + 1) * 97 // splits] for i in range(splits))
    ]
    mean, deviation = inception_score(PROBABILITIES, splits)
    assert mean == pytest.approx(np.mean(expected), rel=1e-12)
    assert deviation == pytest.approx(np.std(expected), rel=1e-9, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_it_is_torchmetrics():
    metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.update(torch.from_numpy(LOGITS))
    assert inception_score(PROBABILITIES, 1)[0] == pytest.approx(metric.compute()[0].item(), rel=1e-9)


@pytest.mark.parametrize("classes", [1, 7, 1000])
def test_sure_and_even_images_score_the_number_of_classes(classes):
    assert inception_score(np.eye(classes), 1) == (pytest.approx(classes, rel=1e-12), 0)


def test_images_all_alike_score_one():
    assert inception_score(np.tile(PROBABILITIES[:1], (50, 1)))[0] == pytest.approx(1, rel=1e-12)


def test_classes_in_turn_lose_nothing_by_the_splits():
    turns = np.eye(10)[np.arange(1000) % 10]
    assert inception_score(turns)[0] == pytest.approx(10, rel=1e-12)


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(ValueError, match=r"n at least 10, one image a split; found \[9, 11\]"):
        inception_score(PROBABILITIES[:9])
