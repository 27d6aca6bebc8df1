"""Files that a command writes where a user says: checked before the work, and never over other files."""

import json
import os
import tempfile
import zipfile
from pathlib import Path

from service.errors import UsageError

_HEAD_BYTES = 4096
_PNG = b"\x89PNG\r\n\x1a\n"


def check_output(option: str, file: Path, columns: frozenset[str], keys: frozenset[str]) -> None:
    """Make the folder of `file`; UsageError if it cannot be written, or would replace another's file.

    A file that is there may be replaced by its like: a PNG by a PNG, an .npz by one, a .csv that starts
    with one of `columns`, and a .json of an object with all these `keys`.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError("is a folder")
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.exists() and not os.access(file, os.W_OK):
            raise PermissionError("is write-protected")
    except OSError as error:
        raise UsageError(f"{option} {file}: cannot be written: {error}; name a file") from error
    if file.exists() and not _is_like(file, columns, keys):
        raise UsageError(
            f"{option} {file}: holds something else, which would be lost; name another file, or delete"
            " this one"
        )


def _is_like(file: Path, columns: frozenset[str], keys: frozenset[str]) -> bool:
    """Whether the content is of the kind that the suffix says; an empty file is of every kind."""
    with file.open("rb") as content:
        head = content.read(_HEAD_BYTES)
    match file.suffix.lower():
        case _ if not head:
            return True
        case ".png":
            return head.startswith(_PNG)
        case ".npz":
            return zipfile.is_zipfile(file)
        case ".csv":
            return head.split(b",", 1)[0].decode(errors="replace") in columns
        case ".json":
            return _holds(file, keys)
    return False


def _holds(file: Path, keys: frozenset[str]) -> bool:
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(document, dict) and keys <= document.keys()
