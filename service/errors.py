"""The errors that a person can act on: each says what, where, and what to do now."""


class ServiceError(Exception):
    """A run that cannot go on, in the user's words. Commands print it alone and exit 1."""


class UsageError(ServiceError):
    """A wrong command line or configuration. Commands print it alone and exit 2."""


class StorageError(ServiceError):
    """An object that cannot be read, written or listed."""


class DataError(ServiceError):
    """Shards, an index or samples that are not what they should be."""


class LockError(ServiceError):
    """A run directory that another process holds, or has taken over."""
