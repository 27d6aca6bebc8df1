"""The errors that a person can act on: each says what, where, and what to do now.

Some of them last: another try, on other nodes or later, would meet them again.
"""

from typing import ClassVar

from service.text import redact


class ServiceError(Exception):
    """A run that cannot go on, in the user's words. Commands print it alone and exit 1; 3 if it lasts.

    Users, passwords and queries of addresses in the message are hidden. `lasts` says whether only a
    person can mend it. What passes, such as a node or a network, is tried again.
    """

    lasts: ClassVar[bool] = False

    def __init__(self, message: str = ""):
        super().__init__(redact(message))


class UsageError(ServiceError):
    """A wrong command line or configuration. Commands print it alone and exit 2."""

    lasts = True


class StorageError(ServiceError):
    """An object that cannot be read, written or listed, perhaps because storage is away."""


class RefusedError(StorageError):
    """A storage that answers and refuses: by its keys, or because there is no such bucket."""

    lasts = True


class DataError(ServiceError):
    """Shards, an index or samples that are not what they should be."""

    lasts = True


class LockError(ServiceError):
    """A run directory that another process holds, or has taken over."""


class MemoryLackError(ServiceError):
    """A training that needs more memory than a worker's device has."""

    lasts = True


class TrainingError(ServiceError):
    """A run that was given up, with the reason. Its cause is the workers' own error, if there is one."""
