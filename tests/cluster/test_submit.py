"""A run is submitted until it is done or has failed for good, and never twice at a time."""

import pytest
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from cluster import submit
from cluster.submit import FLAGS, RUN, GivenUpError, Next, decide
from service.cli import Exit
from service.errors import ServiceError
from tests.live import wait_for


def job(status: JobStatus, code: int | None = None, flags: str = "same") -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        status=status,
        entrypoint="",
        submission_id="x",
        driver_exit_code=code,
        metadata={RUN: "faces", FLAGS: flags},
    )


@pytest.mark.parametrize(
    ("last", "step"),
    [
        (None, Next.SUBMIT),
        (job(JobStatus.PENDING), Next.RUNS),
        (job(JobStatus.RUNNING), Next.RUNS),
        (job(JobStatus.SUCCEEDED, Exit.DONE), Next.DONE),
        (job(JobStatus.STOPPED, -15), Next.STOPPED),
        (job(JobStatus.FAILED, Exit.FAILED), Next.SUBMIT),
        (job(JobStatus.FAILED, -9), Next.SUBMIT),
        (job(JobStatus.FAILED), Next.SUBMIT),  # its node died
        (job(JobStatus.FAILED, Exit.USAGE), Next.GIVEN_UP),
        (job(JobStatus.FAILED, Exit.LASTING), Next.GIVEN_UP),
        (job(JobStatus.FAILED, Exit.LASTING, "others"), Next.SUBMIT),
    ],
)
def test_what_comes_next_follows_from_how_the_last_job_ended(last, step):
    assert decide(last, "same") == step


@pytest.fixture
def client(stack, monkeypatch) -> JobSubmissionClient:
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    return JobSubmissionClient()


def ended(client: JobSubmissionClient, name: str) -> list[JobDetails]:
    """The jobs of a run, once all have ended."""

    def jobs() -> list[JobDetails]:
        return [each for each in client.list_jobs() if (each.metadata or {}).get(RUN) == name]

    wait_for(lambda: jobs() and all(each.status.is_terminal() for each in jobs()))
    return jobs()


@pytest.mark.slow
def test_a_run_that_is_done_is_left_alone(client, capsys):
    for _ in range(2):  # the second call may find it running, or done
        submit.main(["helpful", "--", "--help"])
    assert len(ended(client, "helpful")) == 1
    submit.main(["helpful", "--", "--help"])
    assert "is done" in capsys.readouterr().out
    assert len(ended(client, "helpful")) == 1


@pytest.mark.slow
def test_a_run_with_a_wrong_setting_is_tried_once_and_its_reason_is_told(client):
    wrong = ["wrong", "--", "--preset", "digits", "--model.widht", "3"]
    submit.main(wrong)
    (first,) = ended(client, "wrong")
    assert first.driver_exit_code == Exit.USAGE
    with pytest.raises(GivenUpError, match=r"(?s)wrong: job .* reason that lasts.*widht"):
        submit.main(wrong)
    assert len(ended(client, "wrong")) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense"])
def test_without_a_cluster_it_says_so(monkeypatch, address):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(ServiceError, match="no Ray cluster takes jobs from here"):
        submit.main(["faces", "--", "--preset", "digits"])
