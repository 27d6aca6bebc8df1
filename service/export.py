"""Export a trained generator: `python -m service.export CHECKPOINT DESTINATION`.

Writes weights that carry their settings, an ONNX graph that is checked against torch, and a model card.
"""

import importlib.util
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator, model_validator

from models import Stage
from service.address import Address
from service.cli import Count, Options, Positional, Shown, parse, run_command
from service.config.vocabulary import WeightsName
from service.errors import UsageError
from service.generation.look import STANDING_BATCHES
from service.generation.names import CARD_KEY, ONNX_KEY, WEIGHTS_KEY
from service.storage import Storage, open_storage
from service.text import some_of

if TYPE_CHECKING:
    from service.generation.onnx import Drawing, Styling
    from service.run.best import Trained

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
  images = generator(torch.randn(8, 12), torch.randint(10, (8,)), stage)"""

KEYS = (WEIGHTS_KEY, ONNX_KEY, CARD_KEY)
RETRY_S = 30.0
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportOptions(Options):
    """What to export, where to, and what is fixed in the graph."""

    checkpoint: Positional[Address]
    """a run.dir (its best checkpoint) or a folder in its checkpoints/; local or s3://"""
    destination: Positional[Address]
    """an empty folder or s3://bucket/prefix"""
    weights: WeightsName = "ema"
    """ema for the running average, generator for the last weights"""
    resolution: Annotated[Count | None, Shown("PX")] = None
    """a lower rung; its output layer has not changed since the next rung took over (default: the current
    rung)"""
    standing_batches: Count = STANDING_BATCHES
    """batches of 64 images to measure batch norm's statistics over"""
    no_onnx: bool = False
    """do not write generator.onnx"""
    force: bool = False
    """write even if the destination is not empty; replaces an earlier export"""
    psi: float | None = None
    """truncation, fixed in the graph: draw styles towards their average (stylegan; default 1)"""
    cutoff: Annotated[int | None, Shown("LAYER")] = None
    """truncate only the layers below this one (stylegan)"""
    noise_seed: Annotated[int | None, Field(ge=0, le=2**63 - 1), Shown("SEED")] = None
    """seed of the noise, fixed in the graph for all images (stylegan; default 0)"""
    no_noise: bool = False
    """draw without noise (stylegan)"""

    @field_validator("psi")
    @classmethod
    def _is_finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("give a number, such as 0.7")
        return value

    @model_validator(mode="after")
    def _go_together(self) -> "ExportOptions":
        if self.no_noise and self.noise_seed is not None:
            raise ValueError("--noise-seed and --no-noise: give only one of them")
        if self.no_onnx and self.style_flags:
            flag = self.style_flags[0]
            raise ValueError(f"{flag}: applies to {ONNX_KEY}, which --no-onnx leaves out; drop one")
        return self

    @property
    def style_flags(self) -> list[str]:
        """The style flags on the command line."""
        flags = {
            "--psi": self.psi is not None,
            "--cutoff": self.cutoff is not None,
            "--noise-seed": self.noise_seed is not None,
            "--no-noise": self.no_noise,
        }
        return [flag for flag, is_given in flags.items() if is_given]


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options = parse(ExportOptions, arguments, "service.export", DESCRIPTION, EPILOG)
    _check_packages(options)
    # here because they load torch, which errors and --help do not need
    from service import pretrained
    from service.engine.sampler import Sampler
    from service.generation.card import card
    from service.generation.onnx import Drawing
    from service.run.best import load

    destination = open_storage(options.destination, RETRY_S)
    present = _check_destination(destination, options.force)
    trained = load(options.checkpoint, options.weights)
    stage = _stage(trained, options.resolution)
    styling = _styling(options, trained, stage)
    print(f"{trained.address}: {trained.family} at {stage.resolution} px, {trained.clock} images")
    sampler = Sampler(
        trained.generator,
        trained.shape,
        stage,
        trained.config.run.seed,
        standing_batches=options.standing_batches,
    )
    files = {
        WEIGHTS_KEY: pretrained.to_bytes(
            sampler.generator, trained.family, trained.shape, stage, trained.classes
        )
    }
    if not options.no_onnx:
        files[ONNX_KEY] = _graph(Drawing(sampler.generator, stage, styling), trained)
    text = card(trained, options.weights, stage, options.standing_batches, not options.no_onnx, styling)
    _write(destination, files | {CARD_KEY: text.encode()}, present)


def _check_packages(options: ExportOptions) -> None:
    """UsageError if a package that the graph needs is not installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and not options.no_onnx:
        raise UsageError(
            f"{ONNX_KEY} needs {', '.join(missing)}, not installed; pip install"
            " 'gan-training-service[export]', or leave it out with --no-onnx"
        )


def _check_destination(destination: Storage, force: bool) -> list[str]:
    """The keys that exist there; UsageError if there are any, unless `force` is set."""
    present = list(destination.sizes())
    if present and not force:
        raise UsageError(
            f"{destination.address}: not empty, it holds {some_of(present)}; choose another"
            " destination, or write there anyway with --force"
        )
    return present


def _stage(trained: "Trained", resolution: int | None) -> Stage:
    """The current stage of the training, or a lower rung; UsageError if there is no such rung."""
    if resolution in (None, trained.stage.resolution):
        return trained.stage
    if resolution not in trained.rungs:
        raise UsageError(
            f"--resolution {resolution}: {trained.address} was not trained at it; choose one of"
            f" {', '.join(map(str, trained.rungs))}"
        )
    return Stage(resolution)


def _styling(options: ExportOptions, trained: "Trained", stage: Stage) -> "Styling | None":
    """The styling to fix in the graph; UsageError if the family has no styles to set."""
    from service.generation.onnx import Styling

    if not trained.shape.has_styles:
        for flag in options.style_flags:
            raise UsageError(f"{flag}: {trained.family} has no styles, only stylegan does; drop it")
        return None
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


def _graph(drawing: "Drawing", trained: "Trained") -> bytes:
    from service.generation.onnx import CHECKED_BATCHES, verified_onnx

    graph, difference = verified_onnx(drawing, trained.shape.latents, trained.shape.classes)
    sizes = ", ".join(map(str, CHECKED_BATCHES))
    print(f"{ONNX_KEY} differs from torch by at most {difference:.1e} in batches of {sizes}")
    return graph


def _write(destination: Storage, files: dict[str, bytes], present: list[str]) -> None:
    """Write all files, the card last; then delete what an earlier export left beside them."""
    for key, data in files.items():
        destination.put(key, data)
        print(f"{destination.url(key)}: {len(data):,} bytes")
    destination.delete(key for key in present if key in KEYS and key not in files)


if __name__ == "__main__":
    run_command(main)
