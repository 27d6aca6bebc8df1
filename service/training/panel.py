"""What is looked at: the EMA's images of a fixed latent panel. Changes nothing of the training."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from models import Stage
from models.layers import spectral_iterate, standing_statistics
from service.config import Config
from service.training.random import Draws
from service.training.state import TrainState

SPECTRAL_ITERATIONS = 5
STANDING_BATCHES, STANDING_BATCH = 4, 64


def draw_panel(config: Config, state: TrainState, stage: Stage, autocast: torch.autocast) -> NDArray:
    """uint8 [rows · classes, r, r, c] of the EMA at a stage, one class a column."""
    generator = copy.deepcopy(state.ema)
    spectral_iterate(generator, SPECTRAL_ITERATIONS)
    parameter = next(generator.parameters())
    columns = panel_columns(config)

    def tensors(role: str, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = Draws(state.seed, role, 0)
        numbers = np.arange(first, first + count)
        latents = torch.from_numpy(draws.latents(numbers, config.model.latents)).to(parameter)
        labels = torch.from_numpy(draws.labels(numbers, config.model.classes))
        return latents, labels.to(parameter.device)

    with torch.no_grad(), autocast:
        with standing_statistics(generator):
            for i in range(STANDING_BATCHES):
                generator(*tensors("standing", i * STANDING_BATCH, STANDING_BATCH), stage)
        latents, _ = tensors("panel", 0, columns * config.tracking.panel_rows)
        labels = torch.arange(columns, device=parameter.device).repeat(config.tracking.panel_rows)
        images = generator(latents, labels, stage)
    return to_uint8(images)


def panel_columns(config: Config) -> int:
    """Classes shown, one a column."""
    return min(config.model.classes, config.tracking.panel_classes)


def to_uint8(images: torch.Tensor) -> NDArray[np.uint8]:
    """Images [n, c, h, w], nominally in [-1, 1], clamped, as uint8 [n, h, w, c]."""
    pixels = (images.float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
