"""Scores of a checkpoint at several truncations: fidelity against variety (Brock et al. 2019, §3.1)."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from service.engine.sampler import Truncation
from service.errors import UsageError
from service.run.best import Trained
from service.run.ranking import Score

THRESHOLDS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, math.inf)
PSIS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LEAST_PSI, LARGEST_PSI = -2.0, 2.0


@dataclass(frozen=True)
class Axis:
    """What a family is truncated by, and at which values, ascending; a threshold of inf is none."""

    name: Literal["threshold", "psi"]
    values: tuple[float, ...]

    def truncation(self, value: float) -> Truncation:
        """How to draw at this value."""
        if self.name == "psi":
            return Truncation(psi=value)
        return Truncation(threshold=None if math.isinf(value) else value)

    def caption(self, value: float) -> str:
        """The value in a word or two."""
        return "all z" if math.isinf(value) else f"{value:g}"


def axis_of(trained: Trained, values: Sequence[float] | None) -> Axis:
    """The axis of this checkpoint's family at ascending values, or at the usual ones.

    UsageError if truncation makes no sense for the family, for the checkpoint, or at a value.
    """
    if trained.shape.has_styles:
        return Axis("psi", _psis(trained, values or PSIS))
    if trained.shape.normalises_latents:
        raise UsageError(
            f"--along truncation: {trained.family} normalises its latents, so none lie far out; leave it"
            " out"
        )
    thresholds = tuple(values or THRESHOLDS)
    if thresholds[0] <= 0:
        raise _other_values(
            trained, thresholds, "thresholds of |z| above 0, such as 0.5, or inf for none"
        )
    return Axis("threshold", thresholds)


def _psis(trained: Trained, values: Sequence[float]) -> tuple[float, ...]:
    if values[0] < LEAST_PSI or values[-1] > LARGEST_PSI:
        raise _other_values(trained, values, f"ψ from {LEAST_PSI:g} to {LARGEST_PSI:g}, such as 0.7")
    generator = trained.generator
    styles = torch.zeros(1, generator.layer_count(trained.stage), trained.shape.latents)
    if not generator.truncate(styles, 0.0).any():
        raise UsageError(
            f"{trained.address}: the average of w, which ψ pulls towards, is not measured yet; choose a"
            " later checkpoint"
        )
    return tuple(values)


def _other_values(trained: Trained, values: Sequence[float], expected: str) -> UsageError:
    given = " ".join(f"{value:g}" for value in values)
    return UsageError(f"--values {given}: {trained.family} is truncated by {expected}")


@dataclass(frozen=True)
class Tradeoff:
    """The scores of a checkpoint at each value of an axis."""

    address: str
    axis: Axis
    scores: tuple[Score, ...]

    @property
    def names(self) -> list[str]:
        """The names of the scores' values."""
        return list(self.scores[0].values)

    def to_json(self) -> str:
        """As JSON: each point with its value, null for no threshold, and its scores by name."""
        first = self.scores[0]
        points = [
            {self.axis.name: None if math.isinf(value) else value, "values": score.values}
            for value, score in zip(self.axis.values, self.scores, strict=True)
        ]
        head = {"checkpoint": self.address, "clock": first.clock, "resolution": first.resolution}
        return json.dumps(head | {"samples": first.samples, "points": points}, indent=2)

    def to_csv(self) -> str:
        """As a table: a row for each value, a column for each score."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([self.axis.name, *self.names])
        for value, score in zip(self.axis.values, self.scores, strict=True):
            rows.writerow([value, *(score.values[name] for name in self.names)])
        return text.getvalue()
