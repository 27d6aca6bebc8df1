"""Submit a run to a Ray cluster, unless it runs there, is done, or has failed for good.

`python -m cluster.submit NAME -- FLAGS of service.train`: for whoever looks after a run at intervals.
Ray's own variables say where the cluster is, and with which token: RAY_API_SERVER_ADDRESS and
RAY_AUTH_TOKEN.
"""

import shlex
from collections.abc import Sequence
from enum import StrEnum

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from service.cli import Exit, Options, Positional, Text, parse, run_command, split_flags
from service.errors import ServiceError

RUN = "gan-run"
"""The key of a job's metadata that names its run."""


class GivenUpError(ServiceError):
    """A run that failed for a reason that lasts."""

    lasts = True


class SubmitOptions(Options):
    """Which run."""

    name: Positional[Text]
    """the run's name among the cluster's jobs; what follows `--` are flags of service.train"""


class Next(StrEnum):
    """What to do for a run, or why nothing is to be done."""

    SUBMIT = "submit"
    RUNS = "runs"
    DONE = "is done"
    STOPPED = "was stopped by somebody"
    GIVEN_UP = "has failed for a reason that lasts"


def decide(last: JobDetails | None) -> Next:
    """What to do after the run's last job."""
    match last and last.status:
        case JobStatus.PENDING | JobStatus.RUNNING:
            return Next.RUNS
        case JobStatus.SUCCEEDED:
            return Next.DONE
        case JobStatus.STOPPED:
            return Next.STOPPED
        case JobStatus.FAILED if last and last.driver_exit_code in (Exit.USAGE, Exit.LASTING):
            return Next.GIVEN_UP
    return Next.SUBMIT


def main(arguments: Sequence[str]) -> None:
    """Look, and submit if that is due."""
    own, flags = split_flags(arguments)
    options = parse(SubmitOptions, own, "cluster.submit", __doc__ or "")
    try:
        client = JobSubmissionClient()
        jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN) == options.name]
    except (ConnectionError, RuntimeError) as error:
        raise ServiceError(
            f"no Ray cluster answers ({error}); it is asked again at the next try"
        ) from error
    last = max(jobs, key=lambda job: job.start_time or 0, default=None)
    step = decide(last)
    if last and step == Next.GIVEN_UP:
        raise GivenUpError(
            f"{options.name}: job {last.submission_id} {step}: {last.message}\nMend that, and submit it"
            " by hand: ray job submit -- python -m service.train … --again"
        )
    if step != Next.SUBMIT:
        print(f"{options.name}: job {last and last.submission_id} {step}")
        return
    entrypoint = shlex.join(["python", "-m", "service.train", *flags])
    job = client.submit_job(entrypoint=entrypoint, metadata={RUN: options.name})
    print(f"{options.name}: {job} submitted")


if __name__ == "__main__":
    run_command(main)
