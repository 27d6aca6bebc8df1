"""How fast shards become batches: `python -m benchmarks.data`.

A real SeaweedFS holds 256 px JPEGs of some 9 KB. Three readers take turns, each in its own process:
webdataset with Pillow in one process, as in its documentation; the service's loader with one decoding
process; and simplejpeg alone on bytes in memory, which is the limit for one process. It then measures
two decoding processes against one, memory over 200,000 images, and an index of a million samples.
Prints lines `name value`.
"""

import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import simplejpeg
import webdataset
from PIL import Image

from benchmarks.variant import Variant
from cluster.local import Stack
from service.cli import Options, parse, run_command
from service.data.dataset import Dataset, Request
from service.data.decode import fit
from service.data.feeder import Feeders
from service.data.index import Index, read_index, write_index
from service.data.indexing import find_index
from service.data.loader import BATCHES_AHEAD, Loader, check_prefetch
from service.data.order import Order
from service.data.packing import encode
from service.storage import open_storage

PIXELS, QUALITY = 256, 60
DISTINCT, SHARDS, SHARD_SAMPLES = 1024, 32, 1024
RESOLUTIONS = (256, 64, 32, 8)
BATCH, LANES, WINDOW = 64, 64, 256
TURN_BATCHES = LANES * WINDOW // BATCH  # one window of every lane, so that all turns read alike
PREFETCH_BYTES = 512 << 20
ROUNDS = 5
GROWTH_IMAGES, SETTLE_S = 200_000, 5.0
MILLION = 1_000_000
URL = "s3://gan/benchmark"


def make_jpegs() -> list[bytes]:
    """Broad fields of colour with finer ones of light, encoded as by `service.pack --format jpeg`."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(DISTINCT):
        pixels = np.full((PIXELS, PIXELS, 3), 128.0, np.float32)
        for side, strength, channels in ((4, 50, 3), (16, 20, 3), (32, 12, 1), (64, 6, 1), (128, 3, 1)):
            pixels += np.stack([_field(rng, side, strength) for _ in range(channels)], axis=2)
        jpegs.append(encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "jpeg", QUALITY))
    return jpegs


def _field(rng: np.random.Generator, side: int, strength: float) -> np.ndarray:
    """Random values at side × side places, interpolated smoothly."""
    field = Image.fromarray(rng.normal(0, strength, (side, side)).astype(np.float32))
    return np.asarray(field.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC))


def upload(jpegs: list[bytes]) -> None:
    """Upload shards that webdataset's own writer made, and the service's index of them."""
    storage = open_storage(URL)
    for shard in range(SHARDS):
        buffer = io.BytesIO()
        with webdataset.TarWriter(buffer, encoder=False) as writer:
            for i in range(SHARD_SAMPLES):
                number = shard * SHARD_SAMPLES + i
                jpeg = jpegs[number % len(jpegs)]
                label = str(number % 10).encode()
                writer.write({"__key__": f"{number:08d}", "jpg": jpeg, "cls": label})
        storage.put(f"shard-{shard:06d}.tar", buffer.getvalue())
    find_index(storage, storage, held_out=0.0)


def use_webdataset(resolution: int) -> Callable[[], Any]:
    """Batches of webdataset's reader, shuffled in a buffer and decoded by Pillow."""

    def open_s3(url: str, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(storage.get(url.rpartition("/")[2]))

    def shrink(image: Image.Image) -> np.ndarray:
        if resolution != PIXELS:
            image = image.resize((resolution, resolution))
        return np.asarray(image)

    storage = open_storage(URL)
    sys.modules["webdataset.gopen"].gopen_schemes["s3"] = open_s3
    urls = [storage.url(key) for key in storage.sizes() if key.endswith(".tar")]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=100)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(shrink, int)
        .repeat()
        .batched(BATCH)
    )
    batches = iter(dataset)
    return lambda: len(next(batches)[0])


def open_feeders(resolution: int, decoders: int) -> Feeders:
    """The service's processes that read and decode."""
    index = read_index(open_storage(URL))
    order = Order(index, index.rows(False), 0, LANES, WINDOW)
    dataset = Dataset(URL, index, order, channels=3, labelled=True, retry_s=30)
    check_prefetch(dataset, 1, PREFETCH_BYTES, BATCH, 3 * resolution**2)
    return Feeders(dataset, decoders, BATCHES_AHEAD + 1, BATCH * 3 * resolution**2)


def open_loader(feeders: Feeders, resolution: int) -> Loader:
    """The service's loader, endless."""
    starts: Iterator[int] = iter(range(0, sys.maxsize, BATCH))
    return Loader(feeders, (Request(np.arange(s, s + BATCH), resolution) for s in starts))


def use_loader(resolution: int, decoders: int) -> Callable[[], int]:
    """Batches of the service's loader."""
    loader = open_loader(open_feeders(resolution, decoders), resolution)
    return lambda: len(next(loader).images)


def use_limit(resolution: int, jpegs: list[bytes]) -> Callable[[], int]:
    """simplejpeg on bytes in memory, plus an area average below its smallest scale."""
    scaled = max(resolution, PIXELS // 8)
    numbers = iter(range(sys.maxsize))
    scale = {"min_height": scaled, "min_width": scaled, "min_factor": 1}

    def batch() -> int:
        for _ in range(BATCH):
            jpeg = jpegs[next(numbers) % len(jpegs)]
            fit(simplejpeg.decode_jpeg(jpeg, "RGB", **scale), resolution)
        return BATCH

    return batch


def rates(resolution: int, jpegs: list[bytes], rounds: int) -> dict[str, float]:
    """Images a second of each reader: the median over `rounds` in which all take turns."""
    makers: dict[str, tuple[Callable[..., Callable[[], Any]], tuple, int]] = {
        "webdataset": (use_webdataset, (resolution,), TURN_BATCHES // 8),
        "loader": (use_loader, (resolution, 1), TURN_BATCHES),
        "limit": (use_limit, (resolution, jpegs), TURN_BATCHES),
    }
    if resolution == PIXELS:
        makers["two_workers"] = (use_loader, (resolution, 2), TURN_BATCHES)
    variants = {name: Variant(build, *arguments) for name, (build, arguments, _) in makers.items()}
    measurements: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, variant in variants.items():
            variant.call(8)  # drop what it read ahead while it waited for its turn
            turn = makers[name][2]
            measurements[name].append(turn * BATCH / variant.call(turn)[0])
    for variant in variants.values():
        variant.close()
    return {name: statistics.median(values) for name, values in measurements.items()}


def resident_bytes() -> int:
    """Memory of this process and its descendants, with shared pages counted once."""
    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in (me, *me.children(recursive=True)))


def watch_memory() -> Callable[[], tuple[int, int, int]]:
    """Resident bytes of a loader and its processes: idle, after a tenth of the images, and after all."""

    def run() -> tuple[int, int, int]:
        resolution = RESOLUTIONS[-1]
        with open_feeders(resolution, os.cpu_count() or 1) as feeders:
            time.sleep(SETTLE_S)
            readings = [resident_bytes()]
            with open_loader(feeders, resolution) as loader:
                for part in (GROWTH_IMAGES // 10, GROWTH_IMAGES - GROWTH_IMAGES // 10):
                    for _ in range(part // BATCH):
                        next(loader)
                    readings.append(resident_bytes())
        return readings[0], readings[1], readings[2]

    return run


def write_million(folder: Path) -> None:
    """An index of a million samples in a thousand shards."""
    numbers = np.arange(MILLION)
    size = np.full(MILLION, 11000, np.int32)
    index = Index(
        {f"shard-{i:06d}.tar": 12_000_000 for i in range(1000)},
        (numbers // 1000).astype(np.int32),
        (numbers % 1000 * 12000).astype(np.int64),
        size,
        (numbers % 1000).astype(np.int32),
        numbers % 20 == 0,
        pa.array([f"{number:08d}" for number in numbers], pa.string()),
    )
    write_index(open_storage(str(folder)), index)


def open_million(folder: Path) -> Callable[[], tuple[float, int]]:
    """Seconds and resident bytes that opening that index and its order takes."""

    def run() -> tuple[float, int]:
        before, start = resident_bytes(), time.perf_counter()
        index = read_index(open_storage(str(folder)))
        Order(index, index.rows(False), 0, 64, 256).places(np.arange(64))
        return time.perf_counter() - start, resident_bytes() - before

    return run


class DataOptions(Options):
    """How much to measure."""

    quick: bool = False
    """only 256 px and 8 px, in one turn each, without the memory test"""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print lines `name value`."""
    options = parse(DataOptions, arguments, "benchmarks.data", __doc__ or "")
    lines: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        stack = Stack.load(Path(name) / "stack")
        try:
            stack.up(["s3"])
            os.environ.update(stack.environment)
            jpegs = make_jpegs()
            upload(jpegs)
            lines["jpeg_bytes"] = statistics.mean(map(len, jpegs))
            for resolution in (256, 8) if options.quick else RESOLUTIONS:
                speeds = rates(resolution, jpegs, 1 if options.quick else ROUNDS)
                for kind, rate in speeds.items():
                    lines[f"{kind}_{resolution}_images_per_s"] = rate
                loader = speeds["loader"]
                lines[f"webdataset_ratio_{resolution}"] = loader / speeds["webdataset"]
                lines[f"limit_ratio_{resolution}"] = loader / speeds["limit"]
                if "two_workers" in speeds:
                    lines["two_workers_ratio"] = speeds["two_workers"] / loader
            if not options.quick:
                memory = Variant(watch_memory)
                before, early, late = memory.first
                memory.close()
                lines["memory_growth_ratio"] = late / early
                lines["memory_of_prefetch_share"] = (late - before) / PREFETCH_BYTES
        finally:
            stack.down()
        write_million(Path(name) / "million")
        opening = Variant(open_million, Path(name) / "million")
        lines["index_open_s"], lines["index_bytes"] = opening.first
        opening.close()
    for name, value in lines.items():
        print(f"{name} {value:.3f}")


if __name__ == "__main__":
    run_command(main)
