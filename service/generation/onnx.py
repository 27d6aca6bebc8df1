"""A generator as an ONNX graph, checked against torch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from models import Stage
from models.growth import GrowingGenerator
from service.errors import ServiceError

TOLERANCE = 1e-4
CHECKED_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Styling:
    """What steers a generator with styles, fixed in the graph; `noise_seed` None draws no noise."""

    psi: float = 1.0
    cutoff: int | None = None
    noise_seed: int | None = 0

    def __str__(self) -> str:
        below = "" if self.cutoff is None else f" below layer {self.cutoff}"
        noise = "no noise" if self.noise_seed is None else f"noise of seed {self.noise_seed}"
        return f"truncation by psi {self.psi:g}{below} and {noise}"


class Drawing(nn.Module):
    """A generator as a function of latents [n, z] and, if it has classes, labels [n].

    `styling` is for families with styles, None for others: all images share one plane of noise a layer.
    """

    def __init__(self, generator: GrowingGenerator, stage: Stage, styling: Styling | None):
        super().__init__()
        self.generator, self.stage, self.styling = generator, stage, styling
        self.planes = nn.ParameterList()
        if styling is not None and styling.noise_seed is not None:
            noise = generator.draw_noise([styling.noise_seed], stage)
            self.planes.extend(nn.Parameter(plane, requires_grad=False) for plane in noise)

    @override
    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            labels = latents.new_zeros(latents.shape[0], dtype=torch.int64)
        if self.styling is None:
            return self.generator(latents, labels, self.stage)
        styles = self.generator.styles(latents, labels, self.stage)
        styles = self.generator.truncate(styles, self.styling.psi, self.styling.cutoff)
        return self.generator.synthesise(styles, self.stage, [*self.planes] or None)


def to_onnx(drawing: Drawing, latents: int, classes: int | None) -> bytes:
    """The drawing as an ONNX graph; the batch size is free."""
    inputs = _random_inputs(2, latents, classes)
    with _quiet():
        program = torch.onnx.export(
            drawing,
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=["images"],
            dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in inputs},
        )
    assert program is not None
    graph = program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]  # stack traces, with this machine's paths
    return graph.SerializeToString()


def largest_difference(graph: bytes, drawing: Drawing, latents: int, classes: int | None) -> float:
    """Largest difference of onnxruntime's and torch's pixels at several batch sizes; NaN if any is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    differences = []
    for count in CHECKED_BATCHES:
        inputs = _random_inputs(count, latents, classes)
        (images,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            expected = drawing(**inputs)
        differences.append((torch.from_numpy(images) - expected).abs().max())
    return torch.stack(differences).max().item()


def _random_inputs(count: int, latents: int, classes: int | None) -> dict[str, Tensor]:
    """Random inputs by the names that the graph gives them."""
    random = torch.Generator().manual_seed(count)
    inputs = {"latents": torch.randn(count, latents, generator=random)}
    if classes:
        inputs["labels"] = torch.randint(classes, (count,), generator=random)
    return inputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's warnings, at every export, of its own deprecations and a missing torchvision."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def verified_onnx(drawing: Drawing, latents: int, classes: int | None) -> tuple[bytes, float]:
    """The graph, and the largest difference between its pixels and torch's.

    ServiceError if that is more than TOLERANCE.
    """
    graph = to_onnx(drawing, latents, classes)
    difference = largest_difference(graph, drawing, latents, classes)
    if not difference <= TOLERANCE:
        raise ServiceError(
            f"the ONNX graph differs from torch by {difference:.1e}, more than {TOLERANCE:g}: nothing is"
            " written; export with --no-onnx, and report this error"
        )
    return graph, difference
