"""Search for good settings: `python -m service.sweep --preset NAME --space FILE [--key VALUE …]`.

FILE is YAML: one setting per line, with the values that it may take:
  training.lr_generator: {loguniform: [5.0e-5, 5.0e-3]}
  training.d_steps: {choice: [1, 2]}
uniform and integer also take two bounds; grid lists values for --search grid.

Each trial is a run below DIR/trials, scored at evaluation.every_images. A trial that collapses ends and
counts as the worst. The same command continues an interrupted sweep.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, field_validator

from service.cli import Count, Seed, Shown, Text, run_command
from service.config import Config
from service.config.command_line import ConfigOptions, parse_config
from service.config.yaml import to_yaml
from service.driver.settle import settle
from service.errors import UsageError
from service.generation.names import check_alias, check_name
from service.tuning.plan import Method, Plan, Scheduler, Search, end_of, settle_plan
from service.tuning.space import Space, read_space

EPILOG = """examples:
  python -m service.sweep --preset digits --space space.yaml --dir runs/digits-sweep --trials 16
  python -m service.sweep --preset digits --space space.yaml --search optuna --scale.workers 2"""
DEFAULT_TRIALS = 16


class SweepOptions(ConfigOptions):
    """The sweep's options, beside the settings that all trials share."""

    space: Annotated[Text | None, Shown("FILE")] = None
    """YAML file of the settings to sweep, see above"""
    dir: Annotated[Text | None, Shown("DIR")] = None
    """folder or s3:// address of the sweep (default: run.dir with -sweep appended)"""
    trials: Count | None = None
    """number of trials (default 16, or all points of a grid)"""
    search: Method = "random"
    """random, grid, or optuna, which learns from the scores"""
    seed: Seed = 0
    """seed of the search"""
    scheduler: Scheduler = "asha"
    """asha stops trials that fall behind; none stops no trial"""
    grace_images: Count | None = None
    """asha stops no trial before this many images (default: a trial's images / reduction²)"""
    reduction: Annotated[int, Field(ge=2, le=2**31 - 1)] = 3
    """asha lets the best 1 in N go on"""
    concurrent: Count | None = None
    """trials at a time (default: as many as the cluster holds)"""
    max_failures: Annotated[int, Field(ge=0, le=2**31 - 1)] = 3
    """how often to restart a trial that dies"""
    model: Text | None = None
    """name of the best checkpoint in MLflow's registry (default: the name of DIR)"""
    alias: Text = "best"
    """its alias there"""

    check_alias = field_validator("alias")(check_alias)


def main(arguments: Sequence[str]) -> None:
    """Parse, build, run, close."""
    options, config = parse_config(SweepOptions, arguments, "service.sweep", __doc__ or "", EPILOG)
    config = settle(_in_dir(config, options.dir))
    if options.print_config:
        print(to_yaml(config), end="")
        return
    if options.space is None:
        raise UsageError("--space: not given; name a YAML file of settings to sweep, see --help")
    space = read_space(options.space, config)
    plan = Plan(config, space, _search(options, space, end_of(config)))
    model = _model(options, plan)
    from service.driver.description import check_tracking
    from service.driver.preflight import check_data, check_networks  # load torch; errors need none

    check_data(plan.trial("", {}))
    check_networks(config)
    check_tracking(plan.config)
    _run(plan, options, model)


def _in_dir(config: Config, folder: str | None) -> Config:
    """The configuration that all trials share, with the sweep's folder as run.dir."""
    place = folder or config.run.dir.rstrip("/") + "-sweep"
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": place})})


def _run(plan: Plan, options: SweepOptions, model: str) -> None:
    # here because they load Ray and MLflow, which errors do not need
    from service.driver.join import join_ray
    from service.storage.lock import RunLock
    from service.tuning.parent import Parent
    from service.tuning.report import conclude, gather
    from service.tuning.search import search

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
        conclude(plan, rows, parent, model, options.alias)


def _model(options: SweepOptions, plan: Plan) -> str:
    """The name of the best checkpoint in MLflow's registry."""
    name = options.model or plan.dir.rstrip("/").rpartition("/")[2]
    try:
        return check_name(name)
    except ValueError as error:
        raise UsageError(f"--model {name!r}: {error}") from error


def _search(options: SweepOptions, space: Space, end: int) -> Search:
    grace = options.grace_images or max(1, math.ceil(end / options.reduction**2))
    if grace > end:
        raise UsageError(f"--grace-images {grace}: beyond the {end} images of a trial; give fewer")
    return Search(
        options.search,
        _trials(options, space),
        options.seed,
        options.scheduler,
        grace,
        options.reduction,
    )


def _trials(options: SweepOptions, space: Space) -> int:
    """The number of trials; UsageError if the space does not suit the method."""
    for dimension in space.dimensions:
        if options.search == "grid" and dimension.kind not in ("grid", "choice"):
            raise UsageError(
                f"--search grid: {dimension.key}: {dimension.kind} lists no values; write a grid"
            )
        if options.search != "grid" and dimension.kind == "grid":
            raise UsageError(
                f"--space: {dimension.key}: grid works only with --search grid; add it, or write choice"
            )
    if options.search != "grid":
        return options.trials or DEFAULT_TRIALS
    if options.trials not in (None, space.points):
        raise UsageError(f"--trials {options.trials}: the grid has {space.points} points; leave it out")
    return space.points


if __name__ == "__main__":
    run_command(main)
