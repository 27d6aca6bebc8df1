"""Submit a run to a Ray cluster, unless it runs there, is done, or has failed for good.

`python -m cluster.submit NAME -- FLAGS of service.train`: for whoever looks after a run at intervals.
Ray's own variables say where the cluster is, and with which token: RAY_API_SERVER_ADDRESS and
RAY_AUTH_TOKEN.
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from enum import StrEnum

from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from service.cli import Exit, Options, Positional, Text, parse, run_command, split_flags
from service.errors import ServiceError

RUN, FLAGS = "gan-run", "gan-flags"
"""The keys of a job's metadata that name its run, and the digest of its flags."""


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


def decide(last: JobDetails | None, flags: str) -> Next:
    """What to do after the run's last job; `flags` is the digest of what would be submitted now.

    With other flags, what lasted may be over.
    """
    match last and last.status:
        case JobStatus.PENDING | JobStatus.RUNNING:
            return Next.RUNS
        case JobStatus.SUCCEEDED:
            return Next.DONE
        case JobStatus.STOPPED:
            return Next.STOPPED
        case JobStatus.FAILED if last and last.driver_exit_code in (Exit.USAGE, Exit.LASTING):
            if (last.metadata or {}).get(FLAGS) == flags:
                return Next.GIVEN_UP
    return Next.SUBMIT


def main(arguments: Sequence[str]) -> None:
    """Look, and submit if that is due."""
    own, flags = split_flags(arguments)
    options = parse(SubmitOptions, own, "cluster.submit", __doc__ or "")
    try:
        _look_after(JobSubmissionClient(), options.name, flags)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ServiceError(
            f"no Ray cluster takes jobs from here ({error}); RAY_API_SERVER_ADDRESS is the address of"
            " its dashboard, http://HOST:8265, RAY_AUTH_TOKEN its token; correct them, or try later"
        ) from error


def _look_after(client: JobSubmissionClient, name: str, flags: Sequence[str]) -> None:
    digest = hashlib.sha256(shlex.join(flags).encode()).hexdigest()
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN) == name]
    last = max(jobs, key=lambda job: job.start_time or 0, default=None)
    step = decide(last, digest)
    about = json.dumps({RUN: name})
    if last and step == Next.GIVEN_UP:
        raise GivenUpError(
            f"{name}: job {last.submission_id} {step}: {last.message}\nMend that. Other flags are"
            f" submitted by themselves; to try these again: ray job submit --metadata-json '{about}' --"
            f" python -m service.train {shlex.join(flags)} --again"
        )
    if step != Next.SUBMIT:
        print(f"{name}: job {last and last.submission_id} {step}")
        return
    entrypoint = shlex.join(["python", "-m", "service.train", *flags])
    job = client.submit_job(entrypoint=entrypoint, metadata={RUN: name, FLAGS: digest})
    print(f"{name}: {job} submitted")


if __name__ == "__main__":
    run_command(main)
