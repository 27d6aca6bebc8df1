"""The model card of an exported generator: what it is, how it was trained, how to load it."""

import copy
import dataclasses
import json
import re
from collections.abc import Iterator

from models import Stage
from models.growth import GrowingGenerator
from models.layers import has_batch_norm, parameter_count
from service.data.index import MAX_CLASSES_NAMED
from service.engine.sampler import BATCH
from service.generation.names import ONNX_KEY, WEIGHTS_KEY
from service.generation.onnx import Styling
from service.run.best import Trained


def card(
    trained: Trained,
    weights: str,
    stage: Stage,
    standing_batches: int,
    onnx: bool,
    styling: Styling | None,
) -> str:
    """The model card in Markdown. `onnx` says if there is a graph, `styling` what the graph fixes."""
    shape = trained.shape
    colours = {1: "gray", 3: "RGB"}[shape.channels]
    classes = f" in {shape.classes} classes" if shape.classes else ""
    fade = f", fading in at alpha {stage.alpha:.3g}" if stage.fading else ""
    kinds = {"ema": "running average (EMA) of the generator's", "generator": "the generator's own"}
    settings = json.dumps(dataclasses.asdict(shape), indent=2)
    sections = [
        _front_matter(trained, onnx),
        f"# {trained.family}, {stage.resolution}×{stage.resolution}",
        f"A GAN's generator of {colours} images{classes}, {stage.resolution}×{stage.resolution} pixels.",
        _table(
            {
                "family": trained.family,
                "resolution": f"{stage.resolution} px{fade}",
                "weights": kinds[weights],
                "parameters": _parameters(trained.generator, stage),
                "images trained": f"{trained.clock:,}",
                "data fingerprint": f"`{trained.fingerprint}`",
            }
        ),
        *_classes(trained),
        f"## Settings\n\n```json\n{settings}\n```",
        "## Metrics\n\n" + _metrics(trained.metrics),
        "## Use\n\n" + _use(trained, standing_batches) + (_use_onnx(trained, styling) if onnx else ""),
        "## Licence\n\nNot stated. Before you publish this model, add one that the rights in the"
        " training images allow, here and as `license:` above.",
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


def _classes(trained: Trained) -> Iterator[str]:
    """The section of the classes' names; a long list is cut."""
    if trained.shape.classes and trained.classes:
        names = trained.classes[:MAX_CLASSES_NAMED]
        listed = "\n".join(f"- {label}: {_escaped(name)}" for label, name in enumerate(names))
        rest = len(trained.classes) - len(names)
        more = f"\n\nand {rest:,} more, in the header of `{WEIGHTS_KEY}`." if rest else ""
        yield f"## Classes\n\n{listed}{more}"


def _escaped(name: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", name)


def _parameters(generator: GrowingGenerator, stage: Stage) -> str:
    (total,) = parameter_count([generator])
    used = sum(p.numel() for p in copy.deepcopy(generator).activate(stage))
    return f"{total:,}" if used == total else f"{total:,} ({used:,} used at this resolution)"


def _metrics(metrics: dict[str, float]) -> str:
    if not metrics:
        return "None were recorded with this checkpoint."
    return _table({f"`{name}`": f"{value:.6g}" for name, value in sorted(metrics.items())})


def _use(trained: Trained, standing_batches: int) -> str:
    z, classes = trained.shape.latents, trained.shape.classes
    labels = f"torch.randint({classes}, (8,))" if classes else "torch.zeros(8, dtype=torch.int64)"
    text = f"""With the code of gan-training-service, which needs only torch and safetensors for this:

```python
import torch
from service.pretrained import load

generator, stage = load("{WEIGHTS_KEY}")
images = generator(torch.randn(8, {z}), {labels}, stage)
```

Images are float32 [n, {trained.shape.channels}, r, r], nominally in [-1, 1]: clamp them."""
    if not classes:
        text += " Labels are ignored."
    if trained.shape.has_styles:
        text += (
            " The call above adds no noise, so details are missing: give"
            " `noise=generator.draw_noise(range(8), stage)`. `generator.truncate` pulls styles towards"
            " their average."
        )
    if has_batch_norm(trained.generator):
        text += (
            f" Batch norm's statistics were measured over {standing_batches * BATCH:,} latents from"
            " N(0, 1)."
        )
    return text


def _use_onnx(trained: Trained, styling: Styling | None) -> str:
    z, classes = trained.shape.latents, trained.shape.classes
    fixed = f" ({styling} are fixed in the graph)" if styling else ""
    feed = ', "labels": labels' if classes else ""
    label_line = f"\nlabels = np.random.randint({classes}, size=8, dtype=np.int64)" if classes else ""
    return f"""

Without that code, in onnxruntime{fixed}:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{ONNX_KEY}")
latents = np.random.randn(8, {z}).astype(np.float32){label_line}
(images,) = session.run(["images"], {{"latents": latents{feed}}})
```"""
