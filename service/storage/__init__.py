"""The one door to objects: folders and s3:// addresses behind one small interface.

Keys are relative to the address, with forward slashes. A write is whole or does not happen. Transient
faults are retried with jitter for `retry_s`; lasting ones raise StorageError with the remedy. All of it
is safe with many threads.
"""

import re

from service.errors import StorageError, UsageError
from service.storage.base import (
    TIMEOUT_S,
    ChangedError,
    ConflictError,
    Entry,
    MissingError,
    Storage,
    Traffic,
    Writer,
    is_s3,
    split_address,
)
from service.storage.folder import FolderStorage


def open_storage(address: str, retry_s: float = 0, timeout_s: float = TIMEOUT_S) -> Storage:
    """The storage at a folder or s3://bucket/prefix. Nothing is contacted or created yet.

    An S3 request is abandoned if it is silent for `timeout_s`, or takes that long for a MiB. UsageError
    if the address is of another kind.
    """
    if is_s3(address):
        from service.storage.s3 import S3Storage  # importing boto3 takes time, which folders can spare

        return S3Storage(address, retry_s, timeout_s)
    if re.match(r"[A-Za-z][\w+.-]*:/", address):
        raise UsageError(f"{address}: unknown kind of address; give a folder or s3://bucket/prefix")
    return FolderStorage(address, retry_s)


__all__ = [
    "TIMEOUT_S",
    "ChangedError",
    "ConflictError",
    "Entry",
    "FolderStorage",
    "MissingError",
    "Storage",
    "StorageError",
    "Traffic",
    "Writer",
    "is_s3",
    "open_storage",
    "split_address",
]
