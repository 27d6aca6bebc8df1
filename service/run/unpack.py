"""Tensors from anybody's file: nothing runs, and no more memory is taken than the file has bytes."""

import io
import pickle
import pickletools
import struct
import zipfile
from typing import Any

import torch

_MOST_ITEMS = 1_000_000
_GLOBALS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"} | {
    f"torch {kind}Storage"
    for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}
# What the modules below raise for a file that is none of theirs.
_UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


def unpack(data: bytes) -> dict[str, Any]:
    """The dictionary of tensors, numbers and text that torch.save wrote; ValueError if it is not one."""
    try:
        _check_archive(data)
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        _check_size(content, len(data))
    except _UNREADABLE as error:
        raise ValueError(
            f"damaged, or holds more than tensors ({str(error).partition(chr(10))[0]})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError("holds no named tensors")
    return content


def _check_archive(data: bytes) -> None:
    """ValueError if it would unpack to more than its own bytes, or names anything but tensors."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("its parts overlap")
        (program,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        for operation, argument, _ in pickletools.genops(archive.read(program)):
            if operation.name == "STACK_GLOBAL" or (
                operation.name == "GLOBAL" and argument not in _GLOBALS
            ):
                raise ValueError(f"it names {argument or 'something by a detour'}")


def _check_size(content: Any, most_bytes: int) -> None:
    """ValueError if tensors have more elements than the file has bytes, or there is no end of parts."""
    waiting, items, size = [content], 0, 0
    while waiting:
        part = waiting.pop()
        items += 1
        if isinstance(part, torch.Tensor):
            size += part.numel() * part.element_size()
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        if size > most_bytes:
            raise ValueError("its tensors share memory")
        if items > _MOST_ITEMS:
            raise ValueError("it has too many parts")
