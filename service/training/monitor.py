"""Measures the signals of a training: on a fixed panel of latents, fixed real images, and the weights.

It draws from no stream of the training and changes no buffer of its networks.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.losses import LOSSES
from service.collapse import signals
from service.config import Config
from service.config.portions import PANEL_IMAGES, panel_batch
from service.data.dataset import Batch, Dataset, Request, read
from service.data.decode import Pixels
from service.data.order import Order
from service.engine.curriculum import Cycle, Span
from service.engine.distributed import Workers
from service.engine.step import Step
from service.random.draws import Draws

log = logging.getLogger(__name__)

PANEL_CLASSES = 10
"""At most this many classes are shown."""


@dataclass(frozen=True)
class Panel:
    """The classes that are measured, and real images to compare with: held-out ones if there are any."""

    classes: NDArray[np.int64]
    dataset: Dataset
    held_out: bool


def panel_of(config: Config, dataset: Dataset) -> Panel:
    """Up to ten classes, spread over all of them, and their images in an order of their own."""
    index, count = dataset.index, config.model.classes or 1
    classes = np.unique(np.linspace(0, count - 1, min(count, PANEL_CLASSES)).astype(np.int64))
    held_out = index.rows(held_out=True)
    rows = held_out if len(held_out) else dataset.order.rows
    if config.model.classes:
        rows = rows[np.isin(index.label[rows], classes)]
    if not len(rows):  # these classes have no held-out images
        rows = dataset.order.rows
    # single samples from all over the shards: a window of one
    order = Order(index, rows, config.run.seed, lanes=1, window=1)
    return Panel(classes, replace(dataset, order=order, cache_dir=None), bool(len(held_out)))


class PanelReader:
    """Reads a worker's share of the real images in the background, once for each rung."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monitor")
        self._requested: tuple[int, int] | None = None
        self._batch: Future[Batch] | None = None

    def ask(self, numbers: NDArray[np.int64], resolution: int) -> None:
        """Begin to read these images, unless they have been read already."""
        wanted = (len(numbers), resolution)
        if self._requested != wanted:
            self._requested = wanted
            self._batch = self._thread.submit(read, self._dataset, Request(numbers, resolution))

    def take(self) -> Batch | None:
        """Wait for the images; None, with a line in the log, if they could not be read."""
        try:
            return self._batch.result() if self._batch else None
        except Exception as error:
            log.warning("event=monitor_without_real_images error=%s", error)
            return None

    def close(self) -> None:
        """End the reading."""
        self._thread.shutdown(cancel_futures=True)


class Monitor:
    """Measures the signals of one attempt; all workers look at the same clock."""

    def __init__(self, config: Config, workers: Workers, panel: Panel, real: PanelReader, step: Step):
        self.config, self.workers, self.step = config, workers, step
        self.panel, self.real = panel, real
        self.boundary = LOSSES[config.training.loss].boundary
        self._draws = Draws(config.run.seed, "monitor", 0)
        self._span: Span | None = None

    def prepare(self, cycle: Cycle) -> None:
        """Begin to read the real images that `look` needs in this span."""
        if cycle.span is not self._span:
            self._span = cycle.span
            self.real.ask(np.concatenate(self._shares(cycle)), cycle.stage.resolution)

    def look(self, cycle: Cycle) -> dict[str, float]:
        """Signals after the cycle, equal on all workers."""
        fake, real = self._crowds(cycle)
        compared = signals.compare(fake, real)
        spectra = self.step.state.spectra.values()
        held_out = {}
        if self.panel.held_out:
            held_out = {"accuracy_held_out": real.above, "logit_held_out": real.logit}
        spreads = {"spread_fake": fake.logit_spread, "spread_real": real.logit_spread}
        tops = {
            f"spectrum.{name.replace('/', '.')}.{i}": value
            for name, top in spectra.items()
            for i, value in enumerate(top)
        }
        ranks = {
            f"stable_rank.{name.replace('/', '.')}": rank
            for name, rank in self.step.state.spectra.stable_ranks(spectra).items()
        }
        return compared | held_out | spreads | tops | ranks | signals.largest(spectra)

    def _crowds(self, cycle: Cycle) -> tuple[signals.Crowd, signals.Crowd]:
        shares = self._shares(cycle)
        numbers = np.concatenate(shares)
        places = np.arange(len(numbers)).reshape(len(shares), -1)
        dealt = self.step.deal(cycle.span, self._size(cycle))
        parts = [dealt.part(share, i) for share in places for i in range(dealt.count)]
        fake = torch.stack([self._generated(numbers[part], cycle) for part in parts]).sum(0)
        batch = self.real.take()
        real = torch.zeros_like(fake)
        # Batch norm adds up over the workers, so either all of them show real images or none does.
        if self.workers.all(batch is not None) and batch is not None:
            shown = [self._shown(batch.images[part], batch.labels[part], cycle) for part in parts]
            real = torch.stack(shown).sum(0)
        total = self.workers.sum(torch.stack([fake, real]))
        size = signals.view_size(cycle.stage.resolution, self.config.model.channels)
        return signals.crowd(total[0], size), signals.crowd(total[1], size)

    def _generated(self, numbers: NDArray[np.int64], cycle: Cycle) -> torch.Tensor:
        groups = numbers % len(self.panel.classes)
        labels = self.panel.classes[groups]
        images = self.step.imagine(self._draws, numbers, labels, cycle)
        return self._sums(images, labels, groups, cycle)

    def _shown(self, pixels: Pixels, labels: NDArray[np.int64], cycle: Cycle) -> torch.Tensor:
        classes = self.panel.classes
        groups = np.searchsorted(classes, labels).clip(0, len(classes) - 1)
        return self._sums(self.step.pixels(pixels, cycle), labels.clip(0), groups, cycle)

    def _sums(
        self,
        images: torch.Tensor,
        labels: NDArray[np.int64],
        groups: NDArray[np.int64],
        cycle: Cycle,
    ) -> torch.Tensor:
        features, logits = self.step.examine(images, labels, cycle)
        count = len(self.panel.classes)
        return signals.sums(images, features, logits, torch.from_numpy(groups), count, self.boundary)

    def _shares(self, cycle: Cycle) -> list[NDArray[np.int64]]:
        """This worker's share of the panel, in batches that the span's groups can be dealt in."""
        size = self._size(cycle)
        return [self.workers.share(start, size) for start in range(0, PANEL_IMAGES, size)]

    def _size(self, cycle: Cycle) -> int:
        batch = cycle.span.batch
        return panel_batch(batch, self.config.group(batch))
