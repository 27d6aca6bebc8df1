"""The generator as an MLflow model: it takes a table of class, seed and truncation, and gives images.

MLflow runs this file to load a registered model (models from code). It needs models/, the few modules
of service/ that it imports, torch and safetensors.
"""

import functools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from service import pretrained
from service.engine.sampler import Sampler
from service.random.draws import Draws

ARTIFACT = "generator"
COLUMNS = ("class", "seed", "truncation")
STANDING_SEED = 0  # as `service.sample` has it by default
MAX_SEED = 2**31 - 1
KEPT_SAMPLERS = 4


class GeneratorModel(PythonModel):
    """Draws one image for each row, the same as `service.sample --rows 1 --columns 1`.

    Only batch norm differs: its statistics are measured once, with seed 0, not with each row's seed.
    `seed` decides latents and noise. `class`, a name or a number, is optional: without it, the seed
    draws one. Models without classes take none. `truncation` resamples latents beyond it; for StyleGAN
    it is ψ. Without it, nothing is truncated. A row gives the same image in any table.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the generator."""
        self._exported = pretrained.load_exported(context.artifacts[ARTIFACT])
        # one for each truncation, within which batch norm's statistics are measured
        self._sampler = functools.lru_cache(KEPT_SAMPLERS)(self._make_sampler)

    # Without annotations, which MLflow would take for the table's schema.
    def predict(self, context, model_input, params=None):
        """uint8 [n, h, w, c] of a DataFrame or a list of dicts; ValueError names the row."""
        table = pd.DataFrame(model_input)
        if table.empty:
            raise ValueError("no rows: give one for each image, such as {'class': 3, 'seed': 0}")
        unknown = sorted({*table.columns} - {*COLUMNS})
        if unknown:
            raise ValueError(f"columns {unknown}: unknown; the columns are {', '.join(COLUMNS)}")
        rows = [self._parse(number, values) for number, values in enumerate(table.to_dict("records"))]
        # one by one: in a batch, the last bit of a sum may depend on the other rows
        return np.concatenate([self._draw(row) for row in rows])

    def _parse(self, number: int, values: dict[Any, Any]) -> "ImageRow":
        present = {column: value for column, value in values.items() if not _is_missing(value)}
        try:
            return _row(present, self._exported)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"row {number}: {error}") from error

    def _draw(self, row: "ImageRow") -> NDArray[np.uint8]:
        exported, first = self._exported, np.zeros(1, np.int64)
        draws = Draws(row.seed, "sample", 0)
        label = draws.labels(first, exported.shape.classes)
        if row.label is not None:
            label = np.array([row.label])
        styled = exported.shape.has_styles
        threshold = None if styled else row.truncation
        psi = row.truncation if styled and row.truncation is not None else 1.0
        latents = draws.truncated(first, exported.shape.latents, threshold)
        return self._sampler(threshold).draw(
            latents, label, psi, noise_seeds=draws.seeds(first, "noise")
        )

    def _make_sampler(self, truncation: float | None) -> Sampler:
        exported = self._exported
        return Sampler(exported.generator, exported.shape, exported.stage, STANDING_SEED, truncation)


@dataclass(frozen=True)
class ImageRow:
    """What an image is drawn from."""

    seed: int
    label: int | None
    truncation: float | None


def _row(values: dict[str, Any], exported: pretrained.Exported) -> ImageRow:
    """The row with these values; ValueError says what does not fit the model."""
    if "seed" not in values:
        raise ValueError("seed: missing; give a whole number from 0 up, another one for another image")
    seed, label = _whole("seed", values["seed"], MAX_SEED), None
    classes, family = exported.shape.classes, exported.family
    if "class" in values:
        if classes is None:
            raise ValueError(f"class {values['class']}: this model has no classes; leave it out")
        label = _label(values["class"], exported.classes, classes)
    truncation = values.get("truncation")
    if truncation is not None:
        if not isinstance(truncation, numbers.Real):
            raise ValueError(f"truncation {truncation!r}: give a number, such as 0.5")
        truncation = float(truncation)
        if exported.shape.normalises_latents and not exported.shape.has_styles:
            raise ValueError(f"truncation: {family} normalises its latents; leave it out")
        styled = exported.shape.has_styles
        if not math.isfinite(truncation) or (truncation <= 0 and not styled):
            raise ValueError(f"truncation {truncation}: give a threshold above 0, such as 0.5")
    return ImageRow(seed, label, truncation)


def _label(value: Any, names: Sequence[str], classes: int) -> int:
    if not isinstance(value, str):
        return _whole("class", value, classes - 1)
    try:
        return pretrained.label_of(value, names, classes)
    except ValueError as error:
        raise ValueError(f"class {value}: {error}") from error


def _is_missing(value: Any) -> bool:
    return bool(np.ndim(value) == 0 and pd.isna(value))


def _whole(column: str, value: Any, highest: int) -> int:
    plain = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    if not plain or not 0 <= value <= highest or value != int(value):
        raise ValueError(f"{column} {value}: give a whole number from 0 to {highest}")
    return int(value)


mlflow.models.set_model(GeneratorModel())
