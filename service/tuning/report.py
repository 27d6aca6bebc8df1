"""The results of a sweep: each trial's best checkpoint, as a table and a picture, here and in MLflow."""

import csv
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from service.errors import ServiceError
from service.generation.registry import RegistryError, register
from service.recording import pictures
from service.recording.pictures import Pixels
from service.run import commits, ranking
from service.storage import Storage, open_storage
from service.tuning.parent import Parent
from service.tuning.plan import RETRY_S, Plan, TrialState
from service.tuning.space import decode

CSV_KEY, MARKDOWN_KEY, PICTURE_KEY = "trials.csv", "trials.md", "best.png"
SHOWN = 4
_GAP_PIXELS = 6


@dataclass(frozen=True)
class TrialRow:
    """A trial: its settings, how it ended, and its best checkpoint.

    `reason` says why it is in this state. `score` is None if there is none that counts.
    """

    trial: str
    state: TrialState
    clock: int
    values: dict[str, Any]
    score: float | None = None
    resolution: int = 0
    checkpoint: str = ""
    reason: str = ""


def gather(plan: Plan, results: Any) -> list[TrialRow]:
    """The rows of Ray Tune's result grid, the best first."""
    rows = [_row(plan, result) for result in results]
    return sorted(rows, key=lambda row: (row.score is None, -row.resolution, row.score or 0, row.trial))


def best_over_median(rows: Sequence[TrialRow]) -> float:
    """The best score divided by the median of all that count; there must be at least one."""
    scores = [row.score for row in rows if row.score is not None]
    return min(scores) / median(scores)


def conclude(plan: Plan, rows: Sequence[TrialRow], parent: Parent, model: str, alias: str) -> None:
    """Print the table, store it and the picture, publish both, and register the best checkpoint.

    If MLflow is away, say so and what to do later. ServiceError if no trial has a score.
    """
    files = {CSV_KEY: _csv(rows).encode(), MARKDOWN_KEY: _markdown(rows).encode()}
    if picture := _picture(plan, rows):
        files[PICTURE_KEY] = picture
    for key, data in files.items():
        plan.storage.put(key, data)
    print(_markdown(rows))
    print(f"table and picture: {', '.join(plan.storage.url(key) for key in files)}")
    best = rows[0]
    if best.score is None:
        reasons = "\n  ".join(f"{row.trial}: {row.state}: {row.reason}" for row in rows)
        raise ServiceError(f"{plan.dir}: no trial has a score that counts:\n  {reasons}")
    print(f"best: trial {best.trial}, {best.checkpoint}", flush=True)
    tags = {"sweep.best_trial": best.trial, "sweep.best_checkpoint": best.checkpoint}
    metrics = {"best_score": best.score, "best_over_median": best_over_median(rows)}
    try:
        parent.publish(files, metrics, tags)
    except Exception as error:  # MLflow's own errors, and those of its artifact store
        print(f"MLflow did not get the results ({error}); run the same command again to deliver them",
              file=sys.stderr)  # fmt: skip
    try:
        version = register(
            best.checkpoint, plan.config.tracking_uri, plan.config.tracking.experiment, model, alias
        )
        print(f"registered: {version}")
    except RegistryError as error:
        later = ["python", "-m", "service.register", best.checkpoint, "--name", model, "--alias", alias,
                 "--tracking-uri", plan.config.tracking_uri]  # fmt: skip
        print(f"not registered: {error}; nothing is lost: run the same command again, or\n  "
              + shlex.join(later), file=sys.stderr)  # fmt: skip


def _row(plan: Plan, result: Any) -> TrialRow:
    trial, last = PurePath(result.path).name, result.metrics or {}
    state = TrialState.FAILED if result.error else TrialState(last.get("state", TrialState.FAILED))
    row = TrialRow(
        trial,
        TrialState.STOPPED if state == TrialState.TRAINING else state,
        last.get("clock", 0),
        decode(plan.space, result.config),
        reason=_last_line(str(result.error or last.get("reason", ""))),
    )
    if row.state not in (TrialState.FINISHED, TrialState.STOPPED):
        return row
    storage = open_storage(plan.run_dir(trial), RETRY_S)
    names = commits.find(storage)[0]
    ranked = ranking.rank(storage, names)
    if not ranked:
        return row
    score = ranking.read(storage, ranked[:1])[ranked[0]]
    best = {"score": score.rank, "resolution": score.resolution}
    return TrialRow(**vars(row) | best | {"checkpoint": storage.url(ranked[0].folder)})


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _cells(rows: Sequence[TrialRow]) -> list[list[str]]:
    keys = list(rows[0].values) if rows else []
    table = [["trial", "state", "images", "score", *keys]]
    for row in rows:
        score = "" if row.score is None else f"{row.score:.4g}"
        values = [_short(row.values[key]) for key in keys]
        table.append([row.trial, row.state, str(row.clock), score, *values])
    return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _markdown(rows: Sequence[TrialRow]) -> str:
    cells = _cells(rows)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [f"| {' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True))} |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[TrialRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    keys = list(rows[0].values) if rows else []
    writer.writerow(["trial", "state", "images", "score", "checkpoint", "reason", *keys])
    for row in rows:
        score = "" if row.score is None else row.score
        cells = [row.trial, row.state, row.clock, score, row.checkpoint, row.reason]
        writer.writerow(cells + [row.values[key] for key in keys])
    return out.getvalue()


def _picture(plan: Plan, rows: Sequence[TrialRow]) -> bytes | None:
    """The last grids of the best trials, one below the other, each with its score and settings."""
    sheets = []
    for row in [row for row in rows if row.score is not None][:SHOWN]:
        if grid := _last_grid(open_storage(plan.run_dir(row.trial), RETRY_S)):
            values = ", ".join(f"{key} {_short(value)}" for key, value in row.values.items())
            sheets.append(pictures.labelled(_pixels(grid), [f"{row.score:.4g}: {values}"]))
    return pictures.png(_stack(sheets)) if sheets else None


def _last_grid(storage: Storage) -> bytes | None:
    grids = pictures.latest_grids(storage.sizes(f"{pictures.FOLDER}/"))
    return storage.get(grids[-1][1]) if grids else None


def _pixels(png: bytes) -> Pixels:
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _stack(sheets: Sequence[Pixels]) -> Pixels:
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(sheet, ((0, _GAP_PIXELS), (0, width - sheet.shape[1]), (0, 0))) for sheet in sheets]
    return np.concatenate(padded)
