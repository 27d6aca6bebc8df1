"""Search for good settings: `python -m service.sweep --preset NAME --space FILE [--key VALUE …]`.

FILE is YAML, a setting a line with the values that it may take:
  training.lr_generator: {loguniform: [5.0e-5, 5.0e-3]}
  training.d_steps: {choice: [1, 2]}
Also uniform and integer, with two bounds, and grid, for --search grid.

  --dir DIR          folder or s3:// address of the sweep (default: the preset's run.dir, then -sweep)
  --trials N         how many; a grid has as many as it has points (default 16)
  --search NAME      random, grid, or optuna, which learns from the scores (default random)
  --seed N           of the search (default 0)
  --scheduler NAME   asha stops what is behind, none stops nothing (default asha)
  --grace-images N   asha stops nothing before it (default: the images of a trial / reduction²)
  --reduction N      asha leaves the best 1 of N to go on (default 3)
  --concurrent N     trials at a time (default: as many as the cluster holds)
  --max-failures N   how often a trial that dies is started again (default 3)
  --model NAME       name of the best checkpoint in MLflow's registry (default: the name of DIR)
  --alias NAME       its alias there (default best)

Each trial is a run below DIR/trials, scored at evaluation.every_images; one that collapses ends and
counts as the worst. The same command goes on with a sweep that was interrupted.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from service.cli import run_command
from service.config import parse, take_flags, to_yaml
from service.errors import UsageError
from service.registry import check_names
from service.storage.lock import RunLock
from service.training.launch import join_ray
from service.training.run import check_data, settle
from service.tuning.parent import Parent
from service.tuning.plan import Method, Plan, Scheduler, Search, end_of, settle_plan
from service.tuning.report import conclude, gather
from service.tuning.space import Space, read_space

FLAGS = {
    "--space": "a file",
    "--dir": "a folder or an s3:// address",
    "--trials": "a number",
    "--search": "random, grid or optuna",
    "--seed": "a number",
    "--scheduler": "asha or none",
    "--grace-images": "a number",
    "--reduction": "a number",
    "--concurrent": "a number",
    "--max-failures": "a number",
    "--model": "a name",
    "--alias": "a name",
}
HIGHEST = 2**31 - 1  # of any number given, which the searches' seeds take
DEFAULT_TRIALS, DEFAULT_REDUCTION, DEFAULT_FAILURES = 16, 3, 3


@dataclass(frozen=True)
class Options:
    """The sweep, and what may be another at its next start."""

    plan: Plan
    concurrent: int | None
    max_failures: int
    model: str
    alias: str


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    rest, flags = take_flags(arguments, FLAGS)
    config, show = parse(rest, "service.sweep", __doc__ or "")
    place = flags.get("--dir", config.run.dir.rstrip("/") + "-sweep")
    if not place:
        raise UsageError("--dir: empty; name a folder or an s3:// address")
    config = settle(config.model_copy(update={"run": config.run.model_copy(update={"dir": place})}))
    if show:
        print(to_yaml(config), end="")
        return
    if "--space" not in flags:
        raise UsageError("--space: not given; name a YAML file of settings to sweep, see --help")
    space = read_space(flags["--space"], config)
    options = _options(Plan(config, space, _search(flags, space, end_of(config))), flags)
    check_data(options.plan.trial("", {}))
    _run(options)


def _run(options: Options) -> None:
    from service.tuning.search import search  # Ray Tune takes its time, which refusals need not

    plan = options.plan
    lock = RunLock(plan.storage)
    lock.acquire()
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        key = settle_plan(plan)
        parent = stack.enter_context(Parent(plan, key))
        with join_ray(plan.config):
            print(f"sweep {plan.dir}: {plan.search.trials} trials of {plan.end} images", flush=True)
            results = search(plan, key, options.concurrent, options.max_failures)
            rows = gather(plan, results)
        conclude(plan, rows, parent, options.model, options.alias)


def _options(plan: Plan, flags: dict[str, str]) -> Options:
    name = flags.get("--model", plan.dir.rstrip("/").rpartition("/")[2])
    alias = flags.get("--alias", "best")
    check_names("--model", name, alias)
    concurrent = _number(flags, "--concurrent", 0, 1) or None
    failures = _number(flags, "--max-failures", DEFAULT_FAILURES, 0)
    return Options(plan, concurrent, failures, name, alias)


def _search(flags: dict[str, str], space: Space, end: int) -> Search:
    method = _choice(flags, "--search", get_args(Method))
    scheduler = _choice(flags, "--scheduler", get_args(Scheduler))
    reduction = _number(flags, "--reduction", DEFAULT_REDUCTION, 2)
    grace = _number(flags, "--grace-images", max(1, math.ceil(end / reduction**2)), 1)
    if grace > end:
        raise UsageError(f"--grace-images {grace}: beyond the {end} images of a trial; give fewer")
    trials = _trials(flags, method, space)
    return Search(method, trials, _number(flags, "--seed", 0, 0), scheduler, grace, reduction)


def _trials(flags: dict[str, str], method: str, space: Space) -> int:
    """How many there are; UsageError where the space does not go with the method."""
    if method != "grid":
        for dimension in space.dimensions:
            if dimension.kind == "grid":
                raise UsageError(
                    f"--space: {dimension.key}: grid is tried out in full; write choice, or give"
                    " --search grid"
                )
        return _number(flags, "--trials", DEFAULT_TRIALS, 1)
    for dimension in space.dimensions:
        if dimension.kind not in ("grid", "choice"):
            raise UsageError(
                f"--search grid: {dimension.key}: {dimension.kind} has no end; list values in a grid"
            )
    if flags.get("--trials", str(space.points)) != str(space.points):
        raise UsageError(
            f"--trials {flags['--trials']}: the grid has {space.points} points; leave it out"
        )
    return space.points


def _choice(flags: dict[str, str], flag: str, allowed: tuple[str, ...]) -> Any:
    """One of the allowed words, by default the first."""
    value = flags.get(flag, allowed[0])
    if value not in allowed:
        raise UsageError(f"{flag} {value}: give {' or '.join(allowed)}")
    return value


def _number(flags: dict[str, str], flag: str, default: int, lowest: int) -> int:
    told = flags.get(flag)
    if told is None:
        return default
    if not told.isdecimal() or not lowest <= int(told) <= HIGHEST:
        raise UsageError(f"{flag} {told}: give a whole number from {lowest} to {HIGHEST}")
    return int(told)


if __name__ == "__main__":
    run_command(main)
