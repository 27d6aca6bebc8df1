"""A digest of what is written, taken while it is written."""

import hashlib
import io
from typing import Any

from typing_extensions import override

from service.storage.base import Writer


class DigestingFile(io.RawIOBase):
    """A file for a writer: it passes on what is written, counts its bytes and digests it.

    `error` is what the writer raised, for callers that learn no more than that something failed.
    """

    def __init__(self, writer: Writer):
        self._writer = writer
        self.count = 0
        self.sha256 = hashlib.sha256()
        self.error: Exception | None = None

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        try:
            self._writer.write(piece)
        except Exception as error:
            self.error = error
            raise
        self.sha256.update(piece)
        self.count += len(piece)
        return len(piece)
