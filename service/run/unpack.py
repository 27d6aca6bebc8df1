"""Tensors from anybody's file: nothing runs, and little more memory is taken than the file has bytes.

torch.load runs the small program of a pickle, with an allowlist of functions. That program is read here
first, without running it: it may do what torch.save lets it do, and nothing else.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from typing import Any

import torch

MOST_STEPS, MOST_PROGRAM_BYTES, MOST_DEPTH = 300_000, 16 << 20, 100
"""Of a program; the states of large networks take some ten thousand steps."""

_REBUILD, _ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_STORAGES = {
    f"torch {kind}Storage"
    for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}
_PUSHED = {
    "BINUNICODE": "text",
    "SHORT_BINUNICODE": "text",
    "BININT": "int",
    "BININT1": "int",
    "BININT2": "int",
    "LONG1": "int",
    "BINFLOAT": "float",
    "NONE": "none",
    "NEWTRUE": "bool",
    "NEWFALSE": "bool",
    "EMPTY_DICT": "dict",
    "EMPTY_LIST": "list",
    "EMPTY_TUPLE": "tuple",
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FILLING = ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD")
_MEMORY = ("MARK", "TUPLE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET")
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
        program, keys = _open(data)
        _Reader(keys).read(program)
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        _check_size(content, len(data))
    except _UNREADABLE as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"damaged, or holds more than tensors ({why})") from error
    if not isinstance(content, dict):
        raise ValueError("holds no named tensors")
    return content


def _open(data: bytes) -> tuple[bytes, set[str]]:
    """The program of an archive, and the keys of its tensors' bytes.

    ValueError if it would unpack to more than its own bytes.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("its parts overlap")
        if len({name.lower() for name in names}) != len(entries):
            raise ValueError("its parts have one name")
        (program,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        if program.file_size > MOST_PROGRAM_BYTES:
            raise ValueError("its program is too long")
        folder = program.filename.removesuffix("data.pkl") + "data/"
        return archive.read(program), {n.removeprefix(folder) for n in names if n.startswith(folder)}


class _Value:
    """What a step leaves on the stack: its kind, the text or the name of it, the items of a tuple."""

    __slots__ = ("items", "kind", "text")

    def __init__(self, kind: str, text: str = "", items: tuple[str, ...] = ()):
        self.kind, self.text, self.items = kind, text, items


class _Reader:
    """Follows a program step by step; ValueError at the first that torch.save never writes."""

    def __init__(self, keys: set[str]):
        self._keys = keys
        self._stack: list[_Value] = []
        self._marks: list[int] = []
        self._memo: dict[int, _Value] = {}

    def read(self, program: bytes) -> None:
        """Follow it to its end."""
        for count, (step, argument, _) in enumerate(pickletools.genops(program)):
            if count > MOST_STEPS:
                raise ValueError("it has too many parts")
            self._take(step.name, argument)

    def _take(self, step: str, argument: Any) -> None:
        if step in _PUSHED:
            self._stack.append(_Value(_PUSHED[step], argument if _PUSHED[step] == "text" else ""))
        elif step in _TUPLES:
            self._pack(len(self._stack) - _TUPLES[step])
        elif step in _FILLING:
            self._fill(step)
        elif step in _MEMORY:
            self._remember(step, argument)
        elif step == "GLOBAL":
            self._name(argument)
        elif step == "BINPERSID":
            self._storage()
        elif step == "REDUCE":
            self._call()
        elif step not in ("PROTO", "STOP"):
            raise ValueError(f"it does {step}")

    def _remember(self, step: str, argument: Any) -> None:
        if step == "MARK":
            self._marks.append(len(self._stack))
        elif step == "TUPLE":
            self._pack(self._marks.pop())
        elif step.endswith("BINPUT"):
            self._memo[argument] = self._stack[-1]
        else:
            self._stack.append(self._memo[argument])

    def _pack(self, start: int) -> None:
        if start < 0:
            raise ValueError("it takes what is not there")
        items = self._stack[start:]
        del self._stack[start:]
        key = items[2].text if len(items) == 5 else ""
        self._stack.append(_Value("tuple", key, tuple(item.kind for item in items)))

    def _name(self, name: str) -> None:
        if name not in (_REBUILD, _ORDERED, *_STORAGES):
            raise ValueError(f"it names {name}")
        self._stack.append(_Value("type" if name in _STORAGES else "function", name))

    def _storage(self) -> None:
        """A tensor's bytes: what kind of bytes, by which key, on which device, how many elements."""
        asked = self._stack.pop()
        if asked.items != ("text", "type", "text", "text", "int") or asked.text not in self._keys:
            raise ValueError("it asks for bytes that are not there")
        self._stack.append(_Value("storage"))

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if function.kind != "function" or arguments.kind != "tuple":
            raise ValueError("it calls what is no function")
        if function.text == _ORDERED and not arguments.items:
            self._stack.append(_Value("dict"))
        elif function.text == _REBUILD and arguments.items[:1] == ("storage",):
            self._stack.append(_Value("tensor"))
        else:
            raise ValueError(f"it calls {function.text} with {arguments.items}")

    def _fill(self, step: str) -> None:
        count = {"SETITEM": 2, "APPEND": 1, "BUILD": 1}.get(step)
        start = self._marks.pop() if count is None else len(self._stack) - count
        items = self._stack[start:]
        del self._stack[start:]
        container = "list" if step.startswith("APPEND") else "dict"
        if self._stack[-1].kind != container:
            raise ValueError(f"it does {step} to {self._stack[-1].kind}")
        keys = items[::2] if step.startswith("SETITEM") else []
        if any(key.kind not in ("text", "int") for key in keys):
            raise ValueError("its keys are neither text nor numbers")
        if step == "BUILD" and items[0].kind != "dict":
            raise ValueError("it sets what is no attribute")


def _check_size(content: Any, most_bytes: int) -> None:
    """ValueError if tensors have more elements than the file has bytes, or parts lie too deep."""
    waiting, items, size = [(content, 0)], 0, 0
    while waiting:
        part, depth = waiting.pop()
        items += 1
        if isinstance(part, torch.Tensor):
            size += max(part.numel() * part.element_size(), part.untyped_storage().nbytes())
        elif isinstance(part, dict):
            waiting += [(item, depth + 1) for item in part.values()]
        elif isinstance(part, list | tuple):
            waiting += [(item, depth + 1) for item in part]
        if size > most_bytes:
            raise ValueError("its tensors share memory")
        if items > MOST_STEPS or depth > MOST_DEPTH:
            raise ValueError("it has too many parts")
