"""A failure that lasts, written down in the run's directory: another start would meet it again.

Who starts drivers again, such as Kubernetes, gets the same answer at once, and no cluster for it.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from service.collapse.response import CollapseError
from service.config import Config
from service.config.identity import flatten
from service.documents import Document, Plain
from service.errors import TrainingError
from service.storage import MissingError, Storage

FAILURE_KEY = "failure.json"


class FailureDocument(Document):
    """Why the run ended, in the words of then, and the configuration that it ended with.

    `collapsed` says whether it was a collapse: that is a result of a trial, not a failure of a sweep.
    """

    remedy: ClassVar[str] = "delete it"

    version: Literal[1] = 1
    message: Annotated[str, Field(max_length=100_000)]
    config: Plain
    collapsed: bool = False


class FailedBeforeError(TrainingError):
    """A run that ended for a reason that lasts, and is started again as it was."""

    lasts = True


def write_failure(storage: Storage, config: Config, error: TrainingError) -> None:
    """Write down that the run ended for a reason that lasts."""
    collapsed = isinstance(error.__cause__, CollapseError)
    failure = FailureDocument(message=str(error), config=config.model_dump(), collapsed=collapsed)
    storage.put(FAILURE_KEY, failure.to_bytes())


def check_failure(storage: Storage, config: Config, again: bool) -> None:
    """TrainingError if the run ended for a reason that lasts; a collapse is its cause.

    The message closes with the first run's error, so that both outputs end with the same line. Nothing
    if a setting has changed since, or if the start is to be tried `again`: then it is forgotten.
    """
    try:
        failure = FailureDocument.from_bytes(storage.get(FAILURE_KEY), storage.url(FAILURE_KEY))
    except MissingError:
        return
    if not again and flatten(failure.config) == flatten(config.model_dump(mode="json")):
        raise FailedBeforeError(
            "the run ended before, and no setting has changed since: mend the cause, then start it with"
            f" --again. It ended so:\n{failure.message}"
        ) from (CollapseError(failure.message) if failure.collapsed else None)
    storage.delete([FAILURE_KEY])
