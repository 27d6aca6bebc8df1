"""The one door to objects: folders and s3:// addresses behind one small interface.

Keys are relative to the address, with forward slashes. Every write is whole or not at all. Transient
faults are tried again with jitter for `retry_s`; lasting ones raise StorageError with the remedy.
S3's endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …).
"""

import fcntl
import functools
import hashlib
import logging
import os
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from service.errors import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

S3_SCHEME = "s3://"
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
_UNFINISHED = ".unfinished-"


class MissingError(StorageError):
    """No object has this key."""


class ConflictError(StorageError):
    """A conditional write lost: another wrote first."""


class Storage(ABC):
    """Objects below one address."""

    address: str

    @abstractmethod
    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The object, or `length` bytes of it from `start`; MissingError where there is none."""

    @abstractmethod
    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object and its version, for a later `put_if`."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write the object, over one that is there."""

    @abstractmethod
    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        """Write if the object's version is still `version` (None: absent), and return the new one.

        ConflictError where another was faster.
        """

    @abstractmethod
    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every object whose key starts with `prefix`, by key, sorted."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove the objects; those that are gone already are no error."""

    def url(self, key: str) -> str:
        """The address of an object, for people."""
        return f"{self.address}/{key}"


def is_s3(address: str) -> bool:
    """Whether the address names a bucket, not a folder."""
    return address.startswith(S3_SCHEME)


def s3_endpoint() -> str | None:
    """The S3 server that the environment names; None for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def open_storage(address: str, retry_s: float = 0) -> Storage:
    """The storage at a folder or s3://bucket/prefix. Nothing is contacted or made yet."""
    if is_s3(address):
        return S3Storage(address, retry_s)
    if "://" in address:
        raise StorageError(f"{address}: only folders and s3:// addresses are known")
    return FolderStorage(address, retry_s)


def _persist(call: Callable[[], T], transient: Callable[[Exception], bool], retry_s: float) -> T:
    """The result of `call`, tried again with jittered, doubling pauses until `retry_s` is over."""
    deadline = time.monotonic() + retry_s
    pause = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except Exception as error:
            if not transient(error) or time.monotonic() + pause > deadline:
                raise
            log.warning("event=storage_retry pause_s=%.1f error=%s", pause, error)
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_S)


class FolderStorage(Storage):
    """Files below a folder, made when first written to."""

    def __init__(self, address: str, retry_s: float = 0):
        self.root = Path(address).absolute()
        self.address = str(self.root)
        self.retry_s = retry_s

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        def read() -> bytes:
            with open(self.root / key, "rb") as file:
                file.seek(start)
                return file.read() if length is None else file.read(length)

        return self._call(key, read)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, hashlib.sha256(data).hexdigest()

    def put(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._write(key, data))

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        with self._alone():
            try:
                present = self.get_versioned(key)[1]
            except MissingError:
                present = None
            if present != version:
                raise ConflictError(f"{self.url(key)}: changed by another process")
            self.put(key, data)
        return hashlib.sha256(data).hexdigest()

    def sizes(self, prefix: str = "") -> dict[str, int]:
        def walk() -> dict[str, int]:
            found = {}
            for folder, _, names in os.walk(self.root / os.path.dirname(prefix)):
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self.root).as_posix()
                    if key.startswith(prefix) and not name.startswith(_UNFINISHED):
                        found[key] = path.stat().st_size
            return dict(sorted(found.items()))

        return self._call(prefix, walk)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._call(key, functools.partial(self._remove, self.root / key))

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self.root or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock file, so that compare-and-write is one act for all processes."""
        self._call("", functools.partial(self.root.mkdir, parents=True, exist_ok=True))
        key = f"{_UNFINISHED}lock"
        with self._call(key, lambda: open(self.root / key, "w")) as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def _write(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _call(self, key: str, call: Callable[[], T]) -> T:
        try:
            return _persist(call, _is_transient_file_error, self.retry_s)
        except FileNotFoundError as error:
            raise MissingError(f"{self.url(key)}: no such file") from error
        except OSError as error:
            raise StorageError(
                f"{self.url(key)}: {error.strerror or error}; make room or correct the permissions,"
                " then start again"
            ) from error


def _is_transient_file_error(error: Exception) -> bool:
    lasting = (
        FileNotFoundError,
        FileExistsError,
        PermissionError,
        NotADirectoryError,
        IsADirectoryError,
    )
    return isinstance(error, OSError) and not isinstance(error, lasting)


class S3Storage(Storage):
    """Objects of a bucket below a prefix."""

    def __init__(self, address: str, retry_s: float = 0):
        bucket, _, prefix = address.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise StorageError(f"{address}: names no bucket; write s3://bucket/prefix")
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.address = f"{S3_SCHEME}{bucket}" + (f"/{self.prefix}" if self.prefix else "")
        self.retry_s = retry_s

    @functools.cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        # A session of its own: boto3's default one keeps the first credentials that it met.
        return boto3.session.Session().client(
            "s3",
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"mode": "adaptive", "total_max_attempts": 1},
                max_pool_connections=32,
                region_name=None if os.environ.get("AWS_DEFAULT_REGION") else "us-east-1",
                # Servers other than Amazon's answer below one host name.
                s3={"addressing_style": "path" if s3_endpoint() else "auto"},
            ),
        )

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        end = "" if length is None else start + length - 1
        span = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}

        def read() -> bytes:
            return self._client.get_object(**self._name(key), **span)["Body"].read()

        return self._call(key, read)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        def read() -> tuple[bytes, str]:
            answer = self._client.get_object(**self._name(key))
            return answer["Body"].read(), answer["ETag"]

        return self._call(key, read)

    def put(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._client.put_object(**self._name(key), Body=data))

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        tries = 0

        def write() -> str:
            nonlocal tries
            tries += 1
            return self._client.put_object(**self._name(key), Body=data, **condition)["ETag"]

        try:
            return self._call(key, write)
        except ConflictError:
            # An earlier try may have come through, and only its answer been lost.
            if tries > 1:
                present, found = self.get_versioned(key)
                if present == data:
                    return found
            raise

    def sizes(self, prefix: str = "") -> dict[str, int]:
        root = f"{self.prefix}/" if self.prefix else ""

        def walk() -> dict[str, int]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=root + prefix
            )
            objects = (entry for page in pages for entry in page.get("Contents", ()))
            return dict(sorted((o["Key"].removeprefix(root), o["Size"]) for o in objects))

        return self._call(prefix, walk)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._call(key, functools.partial(self._client.delete_object, **self._name(key)))

    def _name(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}" if self.prefix else key}

    def _call(self, key: str, call: Callable[[], T]) -> T:
        try:
            return _persist(call, _is_transient_s3_error, self.retry_s)
        except Exception as error:
            raise self._in_words(key, error) from error

    def _in_words(self, key: str, error: Exception) -> StorageError:
        code, status = _s3_code(error)
        where = self.url(key)
        match code:
            case "NoSuchKey" | "404":
                return MissingError(f"{where}: no such object")
            case "NoSuchBucket":
                return StorageError(
                    f"{S3_SCHEME}{self.bucket}: no such bucket; create it or correct the address"
                )
            case "PreconditionFailed":
                return ConflictError(f"{where}: changed by another process")
            case "NoCredentialsError" | "PartialCredentialsError":
                return StorageError(
                    f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the"
                    " environment of this process and of the cluster's nodes"
                )
        if status in (401, 403):
            return StorageError(
                f"{where}: the credentials were refused ({code}); check AWS_ACCESS_KEY_ID,"
                " AWS_SECRET_ACCESS_KEY and the bucket's policy"
            )
        if _is_transient_s3_error(error):
            return StorageError(
                f"{where}: the storage does not answer ({code}), tried for {self.retry_s:.0f} s;"
                " check AWS_ENDPOINT_URL and that the server is up"
            )
        return StorageError(f"{where}: {error}")


def _s3_code(error: Exception) -> tuple[str, int]:
    """Error code and HTTP status of a client error; otherwise the exception's name and 0."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return type(error).__name__, 0
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(answer.get("Error", {}).get("Code", status)), int(status)


def _is_transient_s3_error(error: Exception) -> bool:
    from botocore.exceptions import (
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
        ResponseStreamingError,
    )

    status = _s3_code(error)[1]
    broken = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError)
    return status in (408, 409, 429) or status >= 500 or isinstance(error, broken)
