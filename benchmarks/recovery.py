"""What a death costs, and a notice: `python -m benchmarks.recovery`, in some minutes.

A worker of a small run is killed (SIGKILL) after its second checkpoint, in turns with that of a bare
Ray Train loop of one linear layer, each on a Ray of its own. Medians over rounds:
  recovery_ratio      recovery_s over bare_recovery_s
  recovery_s          seconds from the kill to the end of the first new cycle
  bare_recovery_s     the same for the bare loop
  detection_s         of recovery_s, until the driver judges what to do
  restart_s           until the new worker begins
  load_s              until it has read the checkpoint
  first_cycle_s       until it has trained a cycle, its first batch included
  notice_lost_images  images trained twice, or not at all, by a run that was asked to end (SIGTERM) and
                      started again
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import Field

from benchmarks.recovery_driver import BATCH, IMAGES, events
from service import pack
from service.cli import Options, parse, run_command

LIMIT_S = 400
PARTS = {"judged": "detection_s", "began": "restart_s", "loaded": "load_s", "cycle": "first_cycle_s"}


class RecoveryOptions(Options):
    """How thoroughly to measure."""

    rounds: Annotated[int, Field(ge=1)] = 3
    """kills of each kind"""


def main(arguments: Sequence[str]) -> None:
    """Measure in turns, and print the medians."""
    options = parse(RecoveryOptions, arguments, "benchmarks.recovery", __doc__ or "")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack.main(["digits", str(folder / "data"), "--channels", "gray", "--resolution", "16"])
        rounds = [_round(folder, number) for number in range(options.rounds)]
        lost = _lost_by_notice(folder)
    for figure in rounds[0]:
        print(f"{figure} {median(each[figure] for each in rounds):.2f}")
    print(f"notice_lost_images {lost}")


def _round(folder: Path, number: int) -> dict[str, float]:
    """One kill of each kind."""
    ours = _recovery("service", folder / f"service-{number}", folder / "data")
    bare = _recovery("bare", folder / f"bare-{number}", folder / "data")
    total = sum(ours.values())
    bare_total = sum(bare.values())
    figures = {"recovery_ratio": total / bare_total, "recovery_s": total, "bare_recovery_s": bare_total}
    return figures | ours


def _recovery(kind: str, folder: Path, data: Path) -> dict[str, float]:
    """Seconds of each part of a recovery."""
    _run(kind, folder, data, "killed")
    seen = events(folder)
    (killed,) = (event for event in seen if event["what"] == "killed")
    first: dict[str, float] = {}
    for event in seen:
        if event["at"] > killed["at"] and event["pid"] != killed["victim"]:
            first.setdefault(event["what"], event["at"])
    parts, before = {}, killed["at"]
    for what, part in PARTS.items():
        if what in first:
            parts[part], before = first[what] - before, first[what]
    return parts


def _lost_by_notice(folder: Path) -> int:
    """Images that were not trained exactly once by a run that was asked to end, and started again."""
    for fate in ("asked", "undisturbed"):
        _run("service", folder / "notice", folder / "data", fate)
    trained = [event["clock"] for event in events(folder / "notice") if event["what"] == "cycle"]
    wanted = range(BATCH, IMAGES + 1, BATCH)
    return BATCH * sum(abs(trained.count(clock) - 1) for clock in wanted)


def _run(kind: str, folder: Path, data: Path, fate: str) -> None:
    folder.mkdir(exist_ok=True)
    command: list[Any] = [sys.executable, "-m", "benchmarks.recovery_driver", kind, folder, data, fate]
    with open(folder / "log", "ab") as log:
        code = subprocess.run(command, stdout=log, stderr=log, timeout=LIMIT_S).returncode
    if code:
        raise RuntimeError(f"the run failed:\n{(folder / 'log').read_text()}")


if __name__ == "__main__":
    run_command(main)
