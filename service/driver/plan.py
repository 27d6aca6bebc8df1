"""What a training would do, in lines for people: phases, workers, memory, and the samples of a batch."""

from collections.abc import Iterator

import numpy as np

from service.config import Config
from service.config.idle import idle
from service.config.portions import portions
from service.config.schedule import Schedule
from service.data.dataset import Dataset, decoding_rate
from service.data.index import MAX_CLASSES_NAMED, Index, class_counts
from service.data.loader import read_ahead
from service.data.tar import NO_LABEL
from service.engine.curriculum import Curriculum
from service.training.feed import dataset_of, decoders_of, flips, image_bytes


def plan(config: Config, index: Index, curriculum: Curriculum) -> Iterator[str]:
    """Lines on the data, the order, the workers, the phases and the memory."""
    dataset = dataset_of(config, index)
    order = dataset.order
    end = config.run.images or curriculum.end
    epoch = order.lanes * order.lane_samples
    yield f"data     {config.data.url}: {len(index):,} samples in {len(index.shards)} shards,"
    yield (
        f"         {sum(index.shards.values()) / 1e6:,.1f} MB; {len(order.rows):,} to train on,"
        f" {len(index) - len(order.rows):,} held out"
    )
    labels = np.unique(index.label[index.label != NO_LABEL])
    without = int((index.label == NO_LABEL).sum())
    yield f"         {len(labels):,} different labels, {without:,} samples without a label"
    yield from _classes(index)
    yield (
        f"order    {order.lanes} lanes of {order.lane_samples:,} samples in windows of {order.window}:"
        f" an epoch is {epoch:,} images, the run {end / epoch:,.1f} epochs"
    )
    counts = config.worker_counts
    yield f"workers  {', '.join(map(str, counts))} (scale.workers {config.scale.workers})"
    limit = config.data.prefetch_bytes / 1e6
    yield f"memory   a worker reads ahead at most {limit:,.0f} MB (data.prefetch_bytes)"
    yield ""
    yield from _shares(config, dataset)
    yield ""
    yield f"{'images':>27}  {'phase':18} {'batch':>6} {'in groups of':>13} {'cycles':>9}"
    for span in curriculum.spans:
        if span.start < end:
            cycles = (span.end - span.start) // span.cycle_images
            yield (
                f"{span.start:>12,} – {span.end:>12,}  {span.name:18} {span.batch:>6}"
                f" {config.group(span.batch):>13} {cycles:>9,}"
            )
    yield f"{end:>27,}  the end of the run"
    yield ""
    yield from _changes(config, end)
    yield from _costs(config, dataset, curriculum)


def _changes(config: Config, end: int) -> Iterator[str]:
    """What is frozen or has a schedule, until when, and what the end gets; what is not used."""
    for name, images in config.run.freeze.items():
        yield f"frozen   {name} up to {min(images, end):,} images"
    for name, value in config.training:
        if isinstance(value, Schedule):
            yield (
                f"schedule training.{name} goes from {value.start:g} to {value.end:g} at"
                f" {value.images:,} images"
                + (f"; the run ends at {value.at(end):g}" if end < value.images else "")
            )
    for line in idle(config):
        yield f"no effect: {line}"


def _shares(config: Config, dataset: Dataset) -> Iterator[str]:
    """What each number of workers means for one of them in the last phase."""
    last = config.phases[-1]
    heads = ("workers", "images of a batch", "at once, at least", "at most", "read ahead")
    yield "{:>7} {:>18} {:>18} {:>8} {:>13}".format(*heads)
    for workers in config.worker_counts:
        read = max(
            sum(read_ahead(dataset, workers, phase.batch, image_bytes(config, phase)))
            for phase in config.phases
        )
        group, share = config.group(last.batch), last.batch // workers
        least = portions(last.batch, group, workers, 1).size
        most = portions(last.batch, group, workers, config.scale.most_at_once).size
        yield f"{workers:>7} {share:>18,} {least:>18,} {most:>8,} {read / 1e6:>10,.0f} MB"


def _costs(config: Config, dataset: Dataset, curriculum: Curriculum) -> Iterator[str]:
    """What a cycle of the last phase takes of one worker, for each number of them, and what feeds it."""
    # here because it loads a part of the compiler, which a wrong setting need not wait for
    from service.engine.cost import costs

    span, counts = curriculum.spans[-1], config.worker_counts
    yield f"A cycle of the phase {span.name!r} takes of one worker:"
    heads = ("workers", "launches", "exchanges", "TFLOP", "memory")
    yield "{:>7} {:>18} {:>18} {:>8} {:>13}".format(*heads)
    for workers, cost in zip(counts, costs(config, span, counts), strict=True):
        yield (
            f"{workers:>7} {cost.launches:>18,} {cost.exchanges:>18,} {cost.flops / 1e12:>8,.3g}"
            f" {cost.peak_bytes / 1e9:>10,.2f} GB"
        )
    flop = cost.flops * workers / span.cycle_images
    decoders = decoders_of(config)
    rate = decoders * decoding_rate(dataset, span.resolution)
    yield (
        f"decoding gives a worker {rate:,.0f} images/s at {span.resolution} px here (data.decoders"
        f" {decoders}): enough up to {rate * flop / 1e12:,.3g} TFLOP/s of computing"
    )


def _classes(index: Index) -> Iterator[str]:
    """The classes by number, name and count of images; a long list is cut."""
    counts = class_counts(index.label, index.about.classes)
    for label, (name, count) in enumerate(counts[:MAX_CLASSES_NAMED]):
        yield f"class    {label} {name}".rstrip() + f": {count:,} images"
    if len(counts) > MAX_CLASSES_NAMED:
        yield f"         … and {len(counts) - MAX_CLASSES_NAMED:,} more classes"


def explain(config: Config, index: Index, curriculum: Curriculum, batch: int) -> Iterator[str]:
    """Lines on one batch of the discriminator: its phase, and where each sample lies."""
    start = curriculum.batch_start(batch)
    cycle = curriculum.containing(start)
    span, dataset = cycle.span, dataset_of(config, index)
    yield (
        f"batch {batch}: images {start:,} to {start + span.batch:,} of the run, in the phase"
        f" {span.name!r}, alpha {cycle.stage.alpha:.4f}"
    )
    workers = config.worker_counts[-1]
    end = config.run.images or curriculum.end
    if start >= end:
        yield f"(the run ends earlier, at {end:,} images: this batch would come later)"
    yield (
        f"{span.batch} samples at {span.resolution} px in groups of {config.group(span.batch)}, dealt to"
        f" {workers} workers"
    )
    yield ""
    heads = (("sample", 14), ("worker", 6), ("epoch", 6), ("lane", 5), ("window", 7), ("place", 6))
    yield " ".join(f"{name:>{width}}" for name, width in (*heads, ("label", 6))) + " shard and key"
    numbers = np.arange(start, start + span.batch)
    for number, mirrored, line in zip(
        numbers.tolist(), _mirrored(config, numbers), _places(dataset, numbers), strict=True
    ):
        yield f"{number:>14,} {number % workers:>6} {line}{' mirrored' if mirrored else ''}"


def _mirrored(config: Config, numbers: np.ndarray) -> list[bool]:
    """Whether each is mirrored in the first attempt; a rewind draws again."""
    return flips(config, numbers, 0).tolist() if config.data.flip else [False] * len(numbers)


def _places(dataset: Dataset, numbers: np.ndarray) -> Iterator[str]:
    for key, inside in dataset.order.places(numbers):
        row = int(dataset.order.window_rows(key)[inside])
        label = int(dataset.index.label[row])
        yield (
            f"{key.epoch:>6} {key.lane:>5} {key.window:>7} {inside:>6} {label:>6}"
            f" {dataset.index.describe(row)}"
        )
