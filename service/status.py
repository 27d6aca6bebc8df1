"""Where a run stands: `python -m service.status RUN`. It needs no Ray, and nothing has to run."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.address import Address
from service.cli import Options, Positional, parse, run_command
from service.errors import UsageError
from service.recording.forecast import duration
from service.run.summary import Checkpoint, Lock, Scored, Summary, summarise
from service.storage import open_storage
from service.text import printable

EPILOG = """RUN is a run.dir: a folder, or s3://bucket/prefix. The states:
  starting     a driver holds the run: it waits for nodes, or rehearses
  training     its workers report
  silent       a driver holds the run, but has written nothing for a while: its node may be cut off
  finished     it has trained to its end
  interrupted  it was asked to stop; the same command continues it
  failed       it ended with an error, which is shown
  died         its driver ended without a word; the same command continues it

examples:
  python -m service.status runs/digits
  python -m service.status s3://gan/runs/faces --json"""
RETRY_S = 10.0


class StatusOptions(Options):
    """Which run, and how to show it."""

    run: Positional[Address]
    """the run's directory"""
    json_: bool = False
    """print one JSON object, for programs"""


def main(arguments: Sequence[str]) -> None:
    """Read and print."""
    options = parse(StatusOptions, arguments, "service.status", __doc__ or "", EPILOG)
    if Path(options.run).is_file():
        raise UsageError(f"{options.run}: a file; give the run.dir that holds it")
    summary = summarise(open_storage(options.run, RETRY_S))
    if options.json_:
        print(json.dumps(dataclasses.asdict(summary), indent=2))
    else:
        print("\n".join(f"{name:<11} {printable(text)}" for name, text in in_words(summary)))


def in_words(summary: Summary) -> Iterator[tuple[str, str]]:
    """The lines for people: a word, and what it is."""
    yield "run", f"{summary.address} (key {summary.key})"
    yield "state", summary.state + (f", {summary.stage}" if summary.stage else "")
    share = 100 * summary.clock / max(1, summary.end)
    yield "clock", f"{summary.clock:,} of {summary.end:,} images, {share:.0f}%"
    if summary.images_per_s is not None:
        left = "" if summary.left_s is None else f", left {duration(summary.left_s)}"
        yield "rate", f"{summary.images_per_s:.0f} images/s{left}"
    if summary.verdict:
        about = f": {summary.verdict.kind}, {summary.verdict.reason}" if summary.verdict.kind else ""
        yield "verdict", summary.verdict.level + about
    if summary.attempt:
        yield "rewinds", str(summary.attempt)
    yield "checkpoint", _checkpoint(summary.checkpoint)
    if summary.last_score:
        yield "score", _score(summary.last_score)
    if summary.best_score:
        yield "best", _score(summary.best_score)
    for name in ("still", "trouble", "error"):
        if text := getattr(summary, name):
            yield name, text
    yield "lock", _lock(summary.lock)
    if summary.age_s is not None:
        yield "as of", _ago(summary.age_s)


def _ago(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"  # other clocks may be ahead


def _checkpoint(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "none"
    age = "" if checkpoint.age_s is None else f", {_ago(checkpoint.age_s)}"
    return f"{checkpoint.clock:,} images{age}: {checkpoint.address}"


def _score(score: Scored) -> str:
    return f"{score.by} {score.values[score.by]:.4g} at {score.clock:,} images"


def _lock(lock: Lock | None) -> str:
    if lock is None:
        return "never held"
    if lock.pid == 0:
        return f"free; token {lock.token}"
    who = f"process {lock.pid} on {lock.host}, token {lock.token}, renewed {_ago(lock.renewed_s)}"
    return ("held by " if lock.held else "free; last held by ") + who


if __name__ == "__main__":
    run_command(main)
