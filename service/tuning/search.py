"""Runs a sweep with Ray Tune: search, successive halving, as many trials as fit, and resuming."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from service.config import Config
from service.driver.group import worker_resources
from service.driver.supervisor import ray_storage
from service.errors import ServiceError, UsageError
from service.tuning.plan import Plan
from service.tuning.space import Dimension, encode
from service.tuning.trial import METRIC, TIME, WORST_SCORE, Trial

log = logging.getLogger(__name__)

NAME = "tune"
# A trial must reserve something, but no CPU: its own workers need those.
TRIAL_RESOURCES = {"memory": 1 << 20}
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would go on as if the sweep were over
    "TUNE_GLOBAL_CHECKPOINT_S": "10",  # a crash loses this much of the search, and nothing of the trials
    "RAY_AIR_NEW_OUTPUT": "0",  # Announcer prints instead
}
# Tune would hand the keys from this process's environment to its trials as a runtime environment, which
# Ray writes to its logs and its dashboard shows. Each node has credentials of its own.
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


def search(plan: Plan, key: str, concurrent: int | None, max_failures: int) -> tune.ResultGrid:
    """Run the trials that are not over yet, or go on with them; Ray is joined already.

    Run `concurrent` trials at a time, by default as many as the cluster holds. A trial that dies is
    started again, up to `max_failures` times. ServiceError if the stored search cannot be read.
    """
    os.environ.update(_ENVIRONMENT)
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_SECRETS)
    trainable = tune.with_resources(tune.with_parameters(Trial, plan=plan, key=key), TRIAL_RESOURCES)
    place = ray_storage(plan.dir)
    path, files = f"{place['storage_path']}/{NAME}", place.get("storage_filesystem")
    if tune.Tuner.can_restore(path, storage_filesystem=files):
        try:
            tuner = tune.Tuner.restore(path, trainable, storage_filesystem=files, restart_errored=True)
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            raise ServiceError(
                f"{path}: the state of the search cannot be read ({error}); restore it from a copy, or"
                " choose another --dir"
            ) from error
        return tuner.fit()
    count = concurrent or concurrency(plan.config, ray.cluster_resources())
    log.info("event=search trials=%d concurrent=%d", plan.search.trials, count)
    return tune.Tuner(
        trainable,
        param_space={dimension.key: _domain(plan, dimension) for dimension in plan.space.dimensions},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            num_samples=1 if plan.search.method == "grid" else plan.search.trials,
            search_alg=_algorithm(plan, count),
            scheduler=_scheduler(plan),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=NAME,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[Announcer()],
            **place,
        ),
    ).fit()


def concurrency(config: Config, resources: Mapping[str, float]) -> int:
    """How many trials, each with workers and a scorer, the cluster holds at a time; at least 1."""
    workers, evaluation = config.worker_counts[0], config.evaluation
    need = {kind: amount * workers for kind, amount in worker_resources(config).items()}
    need["CPU"] += evaluation.cpus
    if evaluation.gpus:
        need["GPU"] = need.get("GPU", 0.0) + evaluation.gpus
    return max(1, min(int(resources.get(kind, 0.0) // amount) for kind, amount in need.items()))


class Announcer(tune.Callback):
    """Prints a line for each score and each trial that died."""

    def __init__(self) -> None:
        self.best = WORST_SCORE

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print a score."""
        self.best = min(self.best, result[METRIC])
        ended = sum(each.is_finished() for each in trials)
        what = result["state"] if result[METRIC] == WORST_SCORE else f"score {result[METRIC]:.4g}"
        progress = f"{result[TIME]} images, {what}; best {self.best:.4g}, {ended} trials ended"
        print(f"trial {trial.trial_id}: {progress}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial died."""
        print(f"trial {trial.trial_id}: died after {trial.num_failures} failures", flush=True)


def _domain(plan: Plan, dimension: Dimension) -> Any:
    """The dimension in Tune's terms; an integer may take both of its bounds."""
    match dimension.kind:
        case "uniform" | "loguniform":
            return getattr(tune, dimension.kind)(*dimension.values)
        case "integer":
            low, high = dimension.values
            return tune.randint(low, high + 1)
    values = [encode(value) for value in dimension.values]
    return tune.grid_search(values) if plan.search.method == "grid" else tune.choice(values)


def _algorithm(plan: Plan, concurrent: int) -> Any:
    seed = plan.search.seed
    if plan.search.method != "optuna":
        return BasicVariantGenerator(max_concurrent=concurrent, random_state=seed)
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise UsageError(
            "--search optuna: optuna is not installed; run pip install"
            " 'gan-training-service[sweep]', or use --search random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed)
    return ConcurrencyLimiter(OptunaSearch(metric=METRIC, mode="min", sampler=sampler), concurrent)


def _scheduler(plan: Plan) -> Any:
    if plan.search.scheduler == "none":
        return None
    return ASHAScheduler(
        time_attr=TIME,
        max_t=plan.end,
        grace_period=plan.search.grace_images,
        reduction_factor=plan.search.reduction,
    )
