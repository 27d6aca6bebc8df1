"""Files that the user names, weights above all: a path, or an http(s) or s3:// address to fetch once."""

import hashlib
import http.client
import logging
import pickle
import re
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from service import environment
from service.errors import StorageError, UsageError
from service.storage import is_s3, open_storage, split_address

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
_PIECE_BYTES = 1 << 20
# torch.hub's convention: name-0123abcd.pth holds the first digits of its SHA-256.
_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def cache_folder() -> Path:
    """The folder of fetched files: gan-training in the user's cache."""
    return environment.cache_home() / "gan-training"


def local_file(address: str, cache: Path | None = None, what: str = "a file of weights") -> Path:
    """The file at a path, or the copy in `cache` of an http(s) or s3:// address, fetched if need be.

    A name such as name-0123abcd.pth must hold the first digits of the file's SHA-256. UsageError if
    there is no file, if it cannot be fetched whole, or if the digits differ.
    """
    url = urlsplit(address)
    if not is_s3(address) and url.scheme not in ("http", "https"):
        path = Path(address).expanduser()
        if not path.is_file():
            raise UsageError(f"{address}: no such file; give the path or the URL of {what}")
        return path
    shown = url._replace(query="", fragment="").geturl()  # a query may hold a signature
    name = url.path.rpartition("/")[2] or "weights"
    # the signature of a presigned address changes, the file does not
    key = f"{hashlib.sha256(shown.encode()).hexdigest()[:16]}-{name}"
    storage = open_storage(str(cache or cache_folder()))
    path = Path(storage.url(key))
    if path.is_file():
        return path
    log.warning("event=fetch address=%s to=%s", shown, path)
    digest = hashlib.sha256()
    with storage.writer(key) as file:
        for piece in _pieces(address, shown):
            digest.update(piece)
            file.write(piece)
        expected = _DIGITS.search(name)
        if expected and not digest.hexdigest().startswith(expected[1]):
            raise UsageError(
                f"{shown}: its SHA-256 begins with {digest.hexdigest()[:8]}, its name promises"
                f" {expected[1]}; the server gave another file, fetch it by hand and give its path"
            )
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state dict's file, on the CPU, and the file's SHA-256.

    Runs no code from the file. UsageError if it is another kind of file.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(torch.is_tensor(x) for x in weights.values()):
            raise ValueError("it holds something else than a dictionary of tensors")
    except Exception as error:  # a foreign file can make torch's reader fail in any way
        raise UsageError(
            f"{path}: no weights that torch can load without running code: {_kind(path, error)};"
            " give a state dict's file (.pth)"
        ) from error
    return weights, digest


def _pieces(address: str, shown: str) -> Iterator[bytes]:
    """The bytes at an http(s) or s3:// address; UsageError if they do not all arrive."""
    remedy = "correct the address, or fetch the file by hand and give its path"
    try:
        if is_s3(address):
            folder, name = split_address(address)
            yield open_storage(folder).get(name)
            return
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
            expected, received = answer.headers.get("Content-Length"), 0
            while piece := answer.read(_PIECE_BYTES):
                received += len(piece)
                yield piece
    except (OSError, http.client.HTTPException, ValueError, StorageError) as error:
        raise UsageError(f"{shown}: cannot be fetched ({error}); {remedy}") from error
    if expected and received != int(expected):
        raise UsageError(f"{shown}: {received} of {expected} bytes came; try again, or {remedy}")


def _kind(path: Path, error: Exception) -> str:
    """What kind of file it is, in words."""
    with open(path, "rb") as file:
        if file.read(64).lstrip().startswith(b"<"):
            return "it is a web page"
    if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        return "it is a TorchScript archive, which is code"
    if isinstance(error, pickle.UnpicklingError):
        return "it is no such file, damaged, or a pickle of more than tensors"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
