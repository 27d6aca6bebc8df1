"""How many images of a worker's share go through at a time: as many as the device's memory holds.

Each worker tries it alone, so that nobody waits for one that runs out, and all take the smallest number.
It changes no number of the training, so it is found anew wherever the run goes on with other devices.
"""

import logging
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from service.config import Config
from service.config.portions import Portions, portions
from service.documents import Document
from service.engine.curriculum import Span
from service.engine.device import lacks_memory, release
from service.engine.distributed import Workers
from service.errors import DataError, MemoryLackError
from service.storage import MissingError, Storage
from service.training.relay import Relay

log = logging.getLogger(__name__)

KEY = "device_batch.json"
REMEDY = (
    "take more workers, larger GPUs or a smaller batch, or let fewer images be measured together"
    " (training.norm_group)"
)


class FittedDocument(Document):
    """How many images fitted at a time, by phase, into which device."""

    remedy: ClassVar[str] = "delete it; the next start tries again"

    version: Literal[1] = 1
    device: str
    images: dict[str, Annotated[int, Field(ge=1)]]


class Memory:
    """How many images of a share go through at a time in each span: set, found out, or all of them.

    `found` reads what a former group wrote down; all workers call it together, and `fit`.
    """

    def __init__(self, config: Config, workers: Workers):
        self._config, self._workers = config, workers
        self._device = device_name(workers.device)
        self._images: dict[str, int] = {}

    def most(self, span: Span) -> int | None:
        """The most images at a time in this span; None for the whole share."""
        return self._config.scale.most_at_once or self._images.get(_name(span))

    def dealt(self, span: Span) -> Portions:
        """How a batch of this span goes through."""
        return self._dealt(span, self.most(span))

    def _dealt(self, span: Span, most: int | None) -> Portions:
        return portions(span.batch, self._config.group(span.batch), self._workers.count, most)

    def found(self, relay: Relay) -> None:
        """Take what fitted a former group on the same devices, however many workers it had."""
        try:
            document = FittedDocument.from_bytes(relay.get(KEY), relay.url(KEY))
        except MissingError:
            return
        except DataError as error:
            log.warning("event=device_batch_unknown error=%s", error)
            return
        if document.device == self._device:
            self._images = document.images

    def fit(self, span: Span, trial: Callable[[], None]) -> None:
        """Find the most images of a span that `trial` has memory for, where that is not set.

        `trial` takes one cycle with what `most` says, and exchanges nothing with other workers.
        MemoryLackError, on all workers, if not even the least goes through on one of them.
        """
        if self._config.scale.most_at_once or not can_run_out(self._workers.device):
            return
        dealt: Portions | None = self.dealt(span)
        while dealt and not self._passes(span, dealt, trial):
            dealt = self._smaller(span, dealt.size)
        size = self._workers.least(dealt.size if dealt else 0)
        if not size:
            raise MemoryLackError(f"the GPU's memory does not suffice for one group's images: {REMEDY}")
        self._images[_name(span)] = size

    def keep(self, storage: Storage) -> None:
        """Write down what fitted; the first worker does."""
        if self._images and self._workers.is_first:
            document = FittedDocument(device=self._device, images=self._images)
            storage.put(KEY, document.to_bytes())

    def _passes(self, span: Span, dealt: Portions, trial: Callable[[], None]) -> bool:
        self._images[_name(span)], fits = dealt.size, False
        try:
            trial()
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            reason = str(error).partition(".")[0]
            log.warning(
                "event=device_batch phase=%r images=%d fits=no error=%r", span.name, dealt.size, reason
            )
        else:
            log.info("event=device_batch phase=%r images=%d fits=yes", span.name, dealt.size)
            fits = True
        release()  # here, where an error holds the tensors of the cycle no more
        return fits

    def _smaller(self, span: Span, size: int) -> Portions | None:
        """The next way to deal, with at most half as many images at a time; None below the least."""
        dealt = self._dealt(span, size // 2) if size > 1 else None
        return dealt if dealt and dealt.size < size else None


def _name(span: Span) -> str:
    return f"{span.name}, batch {span.batch}"


def device_name(device: torch.device) -> str:
    """What the device is called, so that another one is recognised."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def can_run_out(device: torch.device) -> bool:
    """Whether the device says so when its memory does not suffice; a CPU's process is killed instead."""
    return device.type == "cuda"
