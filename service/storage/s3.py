"""Objects in S3 and compatible servers, through boto3. Requests have time limits; reads are counted.

Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …).
"""

import contextlib
import functools
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import boto3
import urllib3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from typing_extensions import override

from service import environment
from service.errors import RefusedError, StorageError, UsageError
from service.storage.base import (
    S3_SCHEME,
    TIMEOUT_S,
    ChangedError,
    ConflictError,
    Entry,
    MissingError,
    Storage,
    Writer,
)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 64
# The part size of the AWS tools, so that objects that they copy keep their ETags.
PART_BYTES = 8 << 20
PARTS_AHEAD = 4
_PIECE_BYTES = 1 << 20
_SET_KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of this process and of the"
    " cluster's nodes"
)
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")


class BrokenAnswer(Exception):
    """An answer that does not match the request; another try may succeed."""


class _PastEnd(StorageError):
    """A range that begins beyond the end of the object."""


class S3Storage(Storage):
    """Objects of a bucket below a prefix."""

    def __init__(self, address: str, retry_s: float = 0, timeout_s: float = TIMEOUT_S):
        super().__init__(retry_s)
        bucket, _, prefix = address.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise UsageError(f"{address}: names no bucket; write s3://bucket/prefix")
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.address = f"{S3_SCHEME}{bucket}" + (f"/{self.prefix}" if self.prefix else "")
        self.timeout_s = timeout_s
        self._client_lock = threading.Lock()
        self._client_now: Any = None
        self._is_signed = True

    @property
    def client(self) -> Any:
        """boto3's client, made when it is first needed and after credentials expired."""
        with self._client_lock:
            if self._client_now is None:
                self._client_now = self._connect()
            return self._client_now

    def _connect(self) -> Any:
        # Not boto3's default session, which keeps the first credentials that it finds.
        session = boto3.session.Session()
        # Without keys, requests are not signed: public buckets are read like that.
        self._is_signed = session.get_credentials() is not None
        return session.client(
            "s3",
            config=Config(
                signature_version=None if self._is_signed else UNSIGNED,
                connect_timeout=min(CONNECT_TIMEOUT_S, self.timeout_s),
                read_timeout=self.timeout_s,
                # We retry, and count retries; boto3 only throttles.
                retries={"mode": "adaptive", "total_max_attempts": 1},
                max_pool_connections=MAX_CONNECTIONS,
                region_name=None if environment.has_region() else "us-east-1",
                # Servers other than Amazon's use one host name for all buckets.
                s3={"addressing_style": "path" if environment.s3_endpoint() else "auto"},
            ),
        )

    @override
    def get(self, key: str, start: int = 0, length: int | None = None, etag: str = "") -> bytes:
        if length == 0:
            return b""
        end = "" if length is None else start + length - 1
        span = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}

        def read() -> bytes:
            answer = self.client.get_object(**self.name_of(key), **span)
            try:
                if etag and answer["ETag"] != etag:
                    raise ChangedError(f"{self.url(key)}: its ETag is {answer['ETag']}, not {etag}")
                if span:
                    _check_span(answer, start, length)
                return self._body(answer)
            finally:
                answer["Body"].close()

        self.traffic.add(requests=1)
        try:
            data = self.call(key, read)
        except _PastEnd:
            return b""
        self.traffic.add(bytes=len(data))
        return data

    @override
    def get_versioned(self, key: str) -> tuple[bytes, str]:
        def read() -> tuple[bytes, str]:
            answer = self.client.get_object(**self.name_of(key))
            return self._body(answer), answer["ETag"]

        return self.call(key, read)

    @override
    def put(self, key: str, data: bytes) -> None:
        self.call(key, lambda: self.client.put_object(**self.name_of(key), Body=data))

    @override
    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        tries = 0

        def write() -> str:
            nonlocal tries
            tries += 1
            return self.client.put_object(**self.name_of(key), Body=data, **condition)["ETag"]

        try:
            return self.call(key, write)
        except ConflictError:
            # An earlier try may have succeeded, and only its answer was lost.
            if tries > 1:
                present, present_version = self.get_versioned(key)
                if present == data:
                    return present_version
            raise

    @override
    @contextlib.contextmanager
    def writer(self, key: str) -> Iterator[Writer]:
        upload = _Upload(self, key)
        try:
            yield upload
            upload.finish()
        except BaseException:
            upload.abort()
            raise

    @override
    def entries(self, prefix: str = "") -> dict[str, Entry]:
        root = f"{self.prefix}/" if self.prefix else ""

        def walk() -> dict[str, Entry]:
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=root + prefix
            )
            objects = (entry for page in pages for entry in page.get("Contents", ()))
            entries = {o["Key"].removeprefix(root): Entry(o["Size"], o["ETag"]) for o in objects}
            return dict(sorted(entries.items()))

        return self.call(prefix, walk)

    @override
    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.call(key, functools.partial(self.client.delete_object, **self.name_of(key)))

    @override
    def sweep(self, prefix: str) -> None:
        def left() -> list[dict[str, Any]]:
            root = f"{self.prefix}/" if self.prefix else ""
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=root + prefix
            )
            return [upload for page in pages for upload in page.get("Uploads", ())]

        for upload in self.call("", left):
            name = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            self.call("", functools.partial(self.client.abort_multipart_upload, **name))

    def name_of(self, key: str) -> dict[str, str]:
        """Bucket and key of an object, as boto3 takes them."""
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}" if self.prefix else key}

    def _body(self, answer: dict[str, Any]) -> bytes:
        """The whole body; BrokenAnswer if it ends early or is too slow."""
        expected = answer["ContentLength"]
        deadline = time.monotonic() + self.timeout_s * (1 + expected / (1 << 20))
        # botocore's own read() waits for all the bytes, for days if need be.
        stream = answer["Body"]._raw_stream  # noqa: SLF001
        pieces: list[bytes] = []
        missing = expected
        while missing:
            piece = stream.read1(_PIECE_BYTES)
            if not piece:
                raise BrokenAnswer(f"the body ended {missing} bytes short of {expected}")
            pieces.append(piece)
            missing -= len(piece)
            if time.monotonic() > deadline or self._closed.is_set():
                raise BrokenAnswer(f"too slow: {missing} of {expected} bytes are still missing")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def call(self, key: str, request: Callable[[], T]) -> T:
        """The result of a request, retried; StorageError names the object `key` and the remedy."""
        try:
            return self._persist(self.url(key), request, self._is_worth_another_try)
        except StorageError:
            raise
        except Exception as error:
            raise self._in_words(key, error) from error

    def _is_worth_another_try(self, error: Exception) -> bool:
        code, status = _s3_code(error)
        if code in _EXPIRED:
            with self._client_lock:
                self._client_now = None  # a new client reads the credentials again
            return True
        broken = (
            BrokenAnswer,
            ConnectionError,
            HTTPClientError,
            IncompleteReadError,
            ResponseStreamingError,
            urllib3.exceptions.HTTPError,
        )
        return status in (408, 409, 429) or status >= 500 or isinstance(error, broken)

    def _in_words(self, key: str, error: Exception) -> StorageError:
        code, status = _s3_code(error)
        where = self.url(key)
        match code:
            case "NoSuchKey" | "404":
                return MissingError(f"{where}: no such object")
            case "NoSuchBucket":
                return RefusedError(
                    f"{S3_SCHEME}{self.bucket}: no such bucket; create it or correct the address"
                )
            case "InvalidRange":
                return _PastEnd(where)
            case "PreconditionFailed":
                return ConflictError(f"{where}: changed by another process")
            case "NoCredentialsError" | "PartialCredentialsError":
                return RefusedError(f"{where}: no credentials; {_SET_KEYS}")
        if code in _EXPIRED:
            return RefusedError(
                f"{where}: the credentials have expired ({code}), retried for {self.retry_s:.0f} s;"
                " renew AWS_SESSION_TOKEN and its keys here and on the cluster's nodes, then start again"
            )
        if status in (401, 403) and not self._is_signed:
            return RefusedError(
                f"{where}: not public ({code}), and there are no credentials; {_SET_KEYS}"
            )
        if status in (401, 403):
            return RefusedError(
                f"{where}: the credentials were refused ({code}); check AWS_ACCESS_KEY_ID,"
                " AWS_SECRET_ACCESS_KEY and the bucket's policy"
            )
        if self._is_worth_another_try(error):
            reason = f"{code}: {error}" if isinstance(error, BrokenAnswer) else code
            return StorageError(
                f"{where}: the storage does not answer ({reason}), retried for {self.retry_s:.0f} s;"
                " check AWS_ENDPOINT_URL and that the server is up"
            )
        return StorageError(f"{where}: {error}")


def _check_span(answer: dict[str, Any], start: int, length: int | None) -> None:
    """BrokenAnswer unless the answer holds the requested bytes, or as many of them as exist."""
    total = int(answer.get("ContentRange", "/0").rpartition("/")[2])
    expected = total - start if length is None else min(length, total - start)
    span, count = answer.get("ContentRange", "no range").partition("-")[0], answer["ContentLength"]
    if (span, count) != (f"bytes {start}", expected):
        raise BrokenAnswer(f"received {count} bytes from {span}, expected {expected} from {start}")


class _Upload:
    """A multipart upload that sends a part while the next is written; small objects need one request."""

    def __init__(self, storage: S3Storage, key: str):
        self.storage, self.key = storage, key
        self._buffer = bytearray()
        self._id: str | None = None
        self._threads = ThreadPoolExecutor(PARTS_AHEAD, thread_name_prefix="upload")
        self._parts: deque[Future[str]] = deque()
        self._sent: list[str] = []

    def write(self, data: bytes) -> None:
        """Append bytes; waits if too many parts are under way."""
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            self._send(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    def finish(self) -> None:
        """Send what is left and assemble the object from its parts."""
        if self._id is None:
            self.storage.put(self.key, bytes(self._buffer))
        else:
            if self._buffer:
                self._send(bytes(self._buffer))
            while self._parts:
                self._sent.append(self._parts.popleft().result())
            parts = [{"PartNumber": i + 1, "ETag": etag} for i, etag in enumerate(self._sent)]
            try:
                self._do(
                    "complete_multipart_upload", UploadId=self._id, MultipartUpload={"Parts": parts}
                )
            except StorageError:
                # An earlier try may have succeeded, and only its answer was lost.
                present = self.storage.entries(self.key).get(self.key)
                if present is None or present.etag.strip('"') != self._etag():
                    raise
        self._threads.shutdown()

    def _etag(self) -> str:
        """The ETag that S3 computes from the parts' ETags."""
        digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in self._sent)
        return f"{hashlib.md5(digests).hexdigest()}-{len(self._sent)}"

    def abort(self) -> None:
        """Leave nothing behind; an object that was there before stays."""
        self._threads.shutdown(cancel_futures=True)
        if self._id is not None:
            # The first error matters more; the bucket's lifecycle sweeps the parts.
            with contextlib.suppress(StorageError):
                self._do("abort_multipart_upload", UploadId=self._id)

    def _send(self, data: bytes) -> None:
        if self._id is None:
            self._id = self._do("create_multipart_upload")["UploadId"]
        while len(self._parts) >= PARTS_AHEAD:
            self._sent.append(self._parts.popleft().result())
        part = len(self._sent) + len(self._parts) + 1
        self._parts.append(self._threads.submit(self._part, part, data))

    def _part(self, number: int, data: bytes) -> str:
        return self._do("upload_part", UploadId=self._id, PartNumber=number, Body=data)["ETag"]

    def _do(self, operation: str, **arguments: Any) -> Any:
        storage, name = self.storage, self.storage.name_of(self.key)
        return storage.call(self.key, lambda: getattr(storage.client, operation)(**name, **arguments))


def _s3_code(error: Exception) -> tuple[str, int]:
    """Error code and HTTP status of a client error; otherwise the exception's name and 0."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, dict):
        return type(error).__name__, 0
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(answer.get("Error", {}).get("Code", status)), int(status)
