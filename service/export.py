"""Export a trained generator: `python -m service.export CHECKPOINT DESTINATION`.

Writes weights that carry their settings, an ONNX graph that is checked against torch, and a model card.
"""

import argparse
import copy
import dataclasses
import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import Growing, Stage, stylegan
from models.layers import has_batch_norm, parameter_count
from service import pretrained
from service.cli import run_command
from service.engine.sampler import BATCH, STANDING_BATCHES, Sampler
from service.errors import ServiceError, UsageError
from service.storage import Storage, open_storage
from service.training.trained import WEIGHTS, Trained, load

DESCRIPTION = """Export a trained generator, ready to draw, as three files:
  generator.safetensors  weights, with the settings that rebuild the network in the header
  generator.onnx         latents [batch, z] (and labels [batch]) to images [batch, c, r, r]
  README.md              a model card: what it is, how it was trained, how to load it"""
EPILOG = """examples:
  python -m service.export runs/digits exported/digits
  python -m service.export runs/digits/checkpoints/000000032000-000001-000001 exported/early
  python -m service.export s3://bucket/runs/faces s3://bucket/models/faces --weights generator
  python -m service.export runs/faces exported/faces --psi 0.7 --cutoff 8 --noise-seed 3
  python -m service.export runs/digits exported/digits --no-onnx --force

in Python, with torch and safetensors alone:
  from service.pretrained import load
  generator, stage = load("exported/digits/generator.safetensors")
  images = generator(torch.randn(8, 80), torch.randint(10, (8,)), stage)"""
RESOLUTION_HELP = """a lower rung of the ladder, whose layer that draws images stayed as it was when
the next rung took over (default: where the training stands)"""

WEIGHTS_KEY = "generator.safetensors"
ONNX_KEY = "generator.onnx"
CARD_KEY = "README.md"
KEYS = (WEIGHTS_KEY, ONNX_KEY, CARD_KEY)

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
CHECKED_BATCHES = (1, 2, 5)
RETRY_S = 30.0


@dataclass(frozen=True)
class Styling:
    """What steers a StyleGAN, fixed in the graph; no noise where `noise_seed` is None."""

    psi: float = 1.0
    cutoff: int | None = None
    noise_seed: int | None = 0


class Drawing(nn.Module):
    """A generator as a function of latents [n, z] and, where there are classes, labels [n] alone.

    A StyleGAN's `styling` is fixed: one plane of noise a layer, the same for all images.
    """

    def __init__(self, generator: Growing, stage: Stage, styling: Styling):
        super().__init__()
        self.generator, self.stage, self.styling = generator, stage, styling
        self.planes = nn.ParameterList()
        if isinstance(generator, stylegan.Generator) and styling.noise_seed is not None:
            noise = generator.draw_noise([styling.noise_seed], stage)
            self.planes.extend(nn.Parameter(plane, requires_grad=False) for plane in noise)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            labels = latents.new_zeros(latents.shape[0], dtype=torch.int64)
        if not isinstance(self.generator, stylegan.Generator):
            return self.generator(latents, labels, self.stage)
        styles = self.generator.styles(latents, labels, self.stage)
        styles = self.generator.truncate(styles, self.styling.psi, self.styling.cutoff)
        return self.generator.synthesise(styles, self.stage, [*self.planes] or None)


def to_onnx(drawing: Drawing, latents: int, classes: int | None) -> bytes:
    """The drawing as an ONNX graph with a free batch size."""
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
    """Between onnxruntime's pixels and torch's, over batches of several sizes; NaN if there is one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    differences = []
    for count in CHECKED_BATCHES:
        inputs = _random_inputs(count, latents, classes)
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            expected = drawing(**inputs)
        differences.append((torch.from_numpy(found) - expected).abs().max())
    return torch.stack(differences).max().item()


def _random_inputs(count: int, latents: int, classes: int | None) -> dict[str, Tensor]:
    """By name, as the graph takes them."""
    random = torch.Generator().manual_seed(count)
    inputs = {"latents": torch.randn(count, latents, generator=random)}
    if classes:
        inputs["labels"] = torch.randint(classes, (count,), generator=random)
    return inputs


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns at every export of its own deprecations, and that torchvision is not there."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# The model card -----------------------------------------------------------------------------------


def card(trained: Trained, weights: str, stage: Stage, standing_batches: int, onnx: str | None) -> str:
    """The model card; `onnx` says what its graph has fixed, None that there is no graph."""
    shape = trained.shape
    colours = {1: "gray", 3: "RGB"}[shape.channels]
    classes = f" in {shape.classes} classes" if shape.classes else ""
    fade = f", fading in at alpha {stage.alpha:.3g}" if stage.fading else ""
    kinds = {"ema": "running average (EMA) of the generator's", "generator": "the generator's own"}
    settings = json.dumps(dataclasses.asdict(shape), indent=2)
    sections = [
        _front_matter(trained, onnx is not None),
        f"# {trained.family}, {stage.resolution}×{stage.resolution}",
        f"A GAN's generator of {colours} images{classes}, {stage.resolution}×{stage.resolution} pixels.",
        _table(
            {
                "family": trained.family,
                "resolution": f"{stage.resolution} px{fade}",
                "weights": kinds[weights],
                "parameters": _parameters(trained.generator, stage),
                "images trained": f"{trained.images:,}",
                "data fingerprint": f"`{trained.fingerprint}`",
            }
        ),
        f"## Settings\n\n```json\n{settings}\n```",
        "## Metrics\n\n" + _metrics(trained.metrics),
        "## Use\n\n" + _use(trained, standing_batches, onnx),
        "## Licence\n\nNot stated. Whoever publishes this model adds one, here and as `license:` above,"
        " that the rights in the training images allow.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(trained: Trained, onnx: bool) -> str:
    tags = ["gan", trained.family, "pytorch", "safetensors", *(["onnx"] if onnx else [])]
    lines = ["---", "tags:", *(f"  - {tag}" for tag in tags)]
    if not trained.shape.classes:
        lines.append("pipeline_tag: unconditional-image-generation")
    return "\n".join([*lines, "---"])


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _parameters(generator: Growing, stage: Stage) -> str:
    (total,) = parameter_count([generator])
    used = sum(p.numel() for p in copy.deepcopy(generator).activate(stage))
    return f"{total:,}" if used == total else f"{total:,}, of which {used:,} work at this resolution"


def _metrics(metrics: dict[str, float]) -> str:
    if not metrics:
        return "None were recorded with this checkpoint."
    return _table({f"`{name}`": f"{value:.6g}" for name, value in sorted(metrics.items())})


def _use(trained: Trained, standing_batches: int, onnx: str | None) -> str:
    z, classes = trained.shape.latents, trained.shape.classes
    labels = f"torch.randint({classes}, (8,))" if classes else "torch.zeros(8, dtype=torch.int64)"
    text = f"""With the code of gan-training-service, of which this takes torch and safetensors alone:

```python
import torch
from service.pretrained import load

generator, stage = load("{WEIGHTS_KEY}")
images = generator(torch.randn(8, {z}), {labels}, stage)
```

Images are float32 [n, {trained.shape.channels}, r, r], nominally in [-1, 1]: clamp them."""
    if not classes:
        text += " Labels are ignored."
    if isinstance(trained.generator, stylegan.Generator):
        text += (
            " Without noise, as called above, details are missing: give"
            " `noise=generator.draw_noise(range(8), stage)`. `generator.truncate` draws styles towards"
            " their average."
        )
    if has_batch_norm(trained.generator):
        text += (
            f" Batch norm's statistics were measured over {standing_batches * BATCH:,} latents from"
            " N(0, 1)."
        )
    if onnx is not None:
        feed = ', "labels": labels' if classes else ""
        label_line = (
            f"\nlabels = np.random.randint({classes}, size=8, dtype=np.int64)" if classes else ""
        )
        text += f"""

Without any of it, in onnxruntime{onnx}:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{ONNX_KEY}")
latents = np.random.randn(8, {z}).astype(np.float32){label_line}
(images,) = session.run(["images"], {{"latents": latents{feed}}})
```"""
    return text


def _fixed(styling: Styling) -> str:
    """What the graph of a StyleGAN has fixed, in words."""
    truncation = f"psi {styling.psi:g}" + (
        "" if styling.cutoff is None else f" below layer {styling.cutoff}"
    )
    noise = "no noise" if styling.noise_seed is None else f"noise of seed {styling.noise_seed}"
    return f" (truncation by {truncation} and {noise} are fixed in the graph)"


# The command --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", help="a run.dir, for its best checkpoint, or the folder of one; local or s3://")
    add("destination", help="folder or s3://bucket/prefix, empty so far")
    add(
        "--weights", choices=WEIGHTS, default="ema", help="running average or last (default %(default)s)"
    )
    add("--resolution", type=int, metavar="PX", help=RESOLUTION_HELP)
    add(
        "--standing-batches",
        type=int,
        default=STANDING_BATCHES,
        metavar="N",
        help=f"batches of {BATCH} that batch norm is measured over (default %(default)s)",
    )
    add("--no-onnx", action="store_true", help="leave generator.onnx out")
    add("--force", action="store_true", help="write beside other files, and over an earlier export")
    styles = parser.add_argument_group("stylegan", "fixed in generator.onnx")
    styles.add_argument("--psi", type=float, help="truncation: draw styles towards their average (1.0)")
    styles.add_argument("--cutoff", type=int, metavar="LAYER", help="truncate the layers below it alone")
    noise = styles.add_mutually_exclusive_group()
    noise.add_argument("--noise-seed", type=int, metavar="SEED", help="of the noise of all images (0)")
    noise.add_argument("--no-noise", action="store_true", help="draw without noise")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options = _parser().parse_args(arguments)
    _check_options(options)
    destination = open_storage(options.destination, RETRY_S)
    present = _check_destination(destination, options.force)
    trained = load(options.checkpoint, options.weights)
    stage = _stage(trained, options.resolution)
    styling = _styling(options, trained, stage)
    print(f"{trained.address}: {trained.family} at {stage.resolution} px, {trained.images} images")
    sampler = Sampler(
        trained.generator,
        trained.shape,
        stage,
        trained.config.run.seed,
        standing_batches=options.standing_batches,
    )
    files = {WEIGHTS_KEY: pretrained.to_bytes(sampler.generator, trained.family, trained.shape, stage)}
    fixed = None
    if not options.no_onnx:
        files[ONNX_KEY] = _verified_onnx(Drawing(sampler.generator, stage, styling), trained)
        fixed = _fixed(styling) if sampler.has_styles else ""
    text = card(trained, options.weights, stage, options.standing_batches, fixed)
    _write(destination, files | {CARD_KEY: text.encode()}, present)


def _check_options(options: argparse.Namespace) -> None:
    """What can be told before anything is read; UsageError."""
    for name in ("checkpoint", "destination"):
        if not getattr(options, name).strip():
            raise UsageError(f"{name}: empty; see --help")
    if options.standing_batches < 1:
        raise UsageError(f"--standing-batches {options.standing_batches}: give 1 or more")
    if options.noise_seed is not None and not 0 <= options.noise_seed < 2**63:
        raise UsageError(f"--noise-seed {options.noise_seed}: give 0 to 2⁶³ − 1")
    if options.psi is not None and not math.isfinite(options.psi):
        raise UsageError(f"--psi {options.psi}: give a number, such as 0.7")
    if options.no_onnx:
        for flag in _style_flags(options):
            raise UsageError(f"{flag}: is fixed in {ONNX_KEY}, which --no-onnx leaves out; drop either")
        return
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{ONNX_KEY} needs {', '.join(missing)}, not installed here; pip install"
            " 'gan-training-service[export]', or leave it out with --no-onnx"
        )


def _style_flags(options: argparse.Namespace) -> list[str]:
    given = {
        "--psi": options.psi is not None,
        "--cutoff": options.cutoff is not None,
        "--noise-seed": options.noise_seed is not None,
        "--no-noise": options.no_noise,
    }
    return [flag for flag, is_given in given.items() if is_given]


def _check_destination(destination: Storage, force: bool) -> list[str]:
    """The keys that are there; UsageError where there are some, unless by `force`."""
    present = list(destination.sizes())
    if present and not force:
        raise UsageError(
            f"{destination.address}: not empty, it holds {present[0]}"
            + (f" and {len(present) - 1} more" if present[1:] else "")
            + "; choose another destination, or --force to write there all the same"
        )
    return present


def _stage(trained: Trained, resolution: int | None) -> Stage:
    """The stage that the training stands at, or a rung below it; UsageError where there is none."""
    if resolution in (None, trained.stage.resolution):
        return trained.stage
    if resolution not in trained.rungs:
        raise UsageError(
            f"--resolution {resolution}: no rung that {trained.address} was trained on; choose of"
            f" {', '.join(map(str, trained.rungs))}"
        )
    return Stage(resolution)


def _styling(options: argparse.Namespace, trained: Trained, stage: Stage) -> Styling:
    """The options of a StyleGAN; UsageError where another family is given some."""
    if not isinstance(trained.generator, stylegan.Generator):
        for flag in _style_flags(options):
            raise UsageError(f"{flag}: {trained.family} has no styles, only stylegan has; drop it")
        return Styling()
    layers = trained.generator.layer_count(stage)
    if options.cutoff is not None and not 0 <= options.cutoff <= layers:
        raise UsageError(
            f"--cutoff {options.cutoff}: there are {layers} layers at {stage.resolution} px; give 0 to"
            f" {layers}"
        )
    return Styling(
        1.0 if options.psi is None else options.psi,
        options.cutoff,
        None if options.no_noise else options.noise_seed or 0,
    )


def _verified_onnx(drawing: Drawing, trained: Trained) -> bytes:
    """The graph; ServiceError where it draws anything else than torch does."""
    z, classes = trained.shape.latents, trained.shape.classes
    graph = to_onnx(drawing, z, classes)
    difference = largest_difference(graph, drawing, z, classes)
    sizes = ", ".join(map(str, CHECKED_BATCHES))
    told = f"{ONNX_KEY} differs from torch by at most {difference:.1e} in batches of {sizes}"
    if not difference <= TOLERANCE:
        raise ServiceError(
            f"{told}, more than {TOLERANCE:g}: nothing is written; export with --no-onnx, and report it"
        )
    print(told)
    return graph


def _write(destination: Storage, files: dict[str, bytes], present: list[str]) -> None:
    """All files, the card last; then away with what an earlier export left beside them."""
    for key, data in files.items():
        destination.put(key, data)
        print(f"{destination.url(key)}: {len(data):,} bytes")
    destination.delete(key for key in present if key in KEYS and key not in files)


if __name__ == "__main__":
    run_command(main)
