"""Linear separability: do planes between latents tell attributes? (Karras et al. 2019, §4.2)"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import LinearSVC


@dataclass(frozen=True)
class Separability:
    """`score` is exp(Σ H(Y|X)) over the attributes, entropies in nats; 1 is perfect.

    `varying` counts the attributes that some of the surer half of the images have and others lack. All
    other attributes have no entropy, whatever the latents are.
    """

    score: float
    varying: int


def separability(latents: NDArray[np.float64], logits: NDArray[np.float64]) -> Separability:
    """How well linear classifiers of latents [n, d] tell attributes by their logits [n, k].

    An attribute's label Y is whether its logit is above 0. For each attribute the half of the images
    whose logits are nearest to 0 is dropped. X is what a linear SVM that is fitted on the rest predicts
    for it.
    """
    entropies, varying = [], 0
    for column in logits.T:
        sure = np.argsort(-np.abs(column), kind="stable")[: (len(column) + 1) // 2]
        labels = column[sure] > 0
        if labels.all() or not labels.any():
            continue
        varying += 1
        # the primal problem, whose solver draws nothing by chance
        predicted = LinearSVC(dual=False).fit(latents[sure], labels).predict(latents[sure])
        entropies.append(conditional_entropy(labels, predicted))
    return Separability(float(np.exp(sum(entropies))), varying)


def conditional_entropy(labels: NDArray[np.bool_], given: NDArray[np.bool_]) -> float:
    """H(Y|X) in nats of labels Y [n] where X [n] is given."""
    counts = np.zeros((2, 2))
    np.add.at(counts, (given.astype(int), labels.astype(int)), 1)
    joint = counts / len(labels)
    marginal = np.broadcast_to(joint.sum(1, keepdims=True), joint.shape)
    there = joint > 0
    return float(-(joint[there] * np.log(joint[there] / marginal[there])).sum())
