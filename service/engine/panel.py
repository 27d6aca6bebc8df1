"""The panel that people look at: the EMA's images of fixed latents. Does not change the training."""

import numpy as np
import torch
from numpy.typing import NDArray

from models import Stage
from models.growth import GrowingGenerator
from service.config import Config
from service.engine.sampler import Sampler
from service.random.draws import Draws

STANDING_BATCHES = 4


def draw_panel(
    config: Config, ema: GrowingGenerator, stage: Stage, autocast: torch.autocast | None = None
) -> NDArray[np.uint8]:
    """uint8 [rows · columns, r, r, c] of the EMA at a stage; each column shows one class, if any."""
    shape, columns = config.shape, panel_columns(config)
    sampler = Sampler(
        ema, shape, stage, config.run.seed, standing_batches=STANDING_BATCHES, autocast=autocast
    )
    draws = Draws(config.run.seed, "panel", 0)
    numbers = np.arange(columns * config.tracking.panel_rows)
    labels = numbers % columns if shape.classes else np.zeros_like(numbers)
    latents = draws.latents(numbers, shape.latents)
    return sampler.draw(latents, labels, noise_seeds=draws.seeds(numbers, "noise"))


def panel_columns(config: Config) -> int:
    """The number of columns: one for each class shown; without classes `panel_classes`."""
    return min(config.model.classes or config.tracking.panel_classes, config.tracking.panel_classes)
