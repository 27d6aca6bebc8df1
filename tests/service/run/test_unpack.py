"""Files of tensors from strangers: nothing in them runs, and none takes more memory than its bytes."""

import contextlib
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.run.unpack import unpack
from tests.conftest import ROOT

MEBIBYTE = 1 << 20


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def repacked(data: bytes, compression: int = zipfile.ZIP_STORED, program: bytes | None = None) -> bytes:
    """The same archive, compressed, or with another program for the unpickler."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            other = program is not None and name.endswith("data.pkl")
            new.writestr(name, program if other and program else old.read(name))
    return buffer.getvalue()


def test_what_training_saves_comes_back_as_it_was():
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numbers": (1, 2.5, None, True, "text"),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    found = unpack(saved(content))
    assert torch.equal(found["network"]["weight"], network.weight)
    assert found["network"]["weight"].stride() == network.weight.stride()
    assert torch.equal(
        found["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
    assert found["numbers"] == content["numbers"]
    assert torch.equal(found["half"], content["half"])


def calling(function: str, argument: Any) -> bytes:
    """A pickle that calls a function by its module and name, as its result."""
    module, _, name = function.rpartition(".")
    head = f"c{module}\n{name}\n".encode()
    return pickle.PROTO + b"\x02" + head + pickle.dumps((argument,), 2)[2:-1] + b"R."


def laughs() -> bytes:
    """Lists of ten lists each, of which all are the same: a billion parts in a few bytes."""
    part: list[Any] = [0] * 10
    for _ in range(9):
        part = [part] * 10
    return pickle.dumps({"x": part}, 2)


def nested(depth: int) -> bytes:
    """Steps that leave a list in a list in a list."""
    return b"]" * depth + b"a" * (depth - 1)


def spelt() -> bytes:
    """An archive whose tensor is asked for in capitals, which torch's own look-up does not mind."""
    buffer = io.BytesIO()
    good = saved({"x": torch.ones(4)})
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00A")
            new.writestr(name.replace("data/0", "data/a"), content)
    return buffer.getvalue()


GOOD = saved({"x": torch.ones(4)})
ATTACKS = {
    "a compressed bomb": (
        repacked(saved({"x": torch.zeros(300 * MEBIBYTE // 4)}), zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "a tensor that repeats one number": (saved({"x": torch.ones(1).expand(10**12)}), "share memory"),
    "a call of the system": (
        repacked(GOOD, program=calling("os.system", "touch /tmp/pwned")),
        "names os system",
    ),
    "a large buffer": (
        repacked(GOOD, program=calling("builtins.bytearray", 1 << 32)),
        "names builtins b",
    ),
    "a large tensor": (repacked(GOOD, program=calling("torch.zeros", 1 << 40)), "names torch zeros"),
    "a name by a detour": (
        repacked(GOOD, program=b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93."),
        "it does",
    ),
    "a billion parts": (repacked(GOOD, program=laughs()), "too many parts"),
    "keys that lie deep": (
        repacked(GOOD, program=b"\x80\x02})" + b"\x85" * 150_000 + b"K\x01s."),
        "neither",
    ),
    "a key of bytes that lies deep": (
        repacked(GOOD, program=b"\x80\x02)" + b"\x85" * 150_000 + b"Q."),
        "not there",
    ),
    "a dictionary of a tensor's rows": (
        repacked(GOOD, program=calling("collections.OrderedDict", [(1, 2)])),
        "it calls",
    ),
    "dictionaries without end": (
        repacked(GOOD, program=b"\x80\x02" + b"}" * 800_000 + b"."),
        "too many",
    ),
    "sets without end": (repacked(GOOD, program=b"\x80\x02" + b"\x8f" * 1000 + b"."), "EMPTY_SET"),
    "lists within lists": (repacked(GOOD, program=b"\x80\x02}K\x01" + nested(500) + b"s."), "too many"),
    "one tensor by many names": (spelt(), "not there"),
    "a list": (saved([torch.ones(1)]), "holds no named tensors"),
    "no archive": (b"PK\x03\x04" + bytes(100), "damaged"),
    "nothing": (b"", "damaged"),
    "a plain pickle": (pickle.dumps({"x": 1}), "damaged"),
    "an archive of something else": (repacked(GOOD, program=b"."), "damaged"),
}

LIMITED = """
import pathlib, resource, sys
from service.run.unpack import unpack
data = pathlib.Path(sys.argv[1]).read_bytes()
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    unpack(data)
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
"""


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_told(attack):
    data, words = ATTACKS[attack]
    with pytest.raises(ValueError, match=words):
        unpack(data)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["a compressed bomb", "a large buffer", "a billion parts"])
def test_what_would_take_gigabytes_takes_some_mebibytes(attack, tmp_path: Path):
    data, _ = ATTACKS[attack]
    (tmp_path / "file.pt").write_bytes(data)
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "file.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *_, kibibytes = done.stdout.split()
    assert int(kibibytes) < 200 * 1024
    assert len(data) < MEBIBYTE


@given(st.data())
def test_no_changed_byte_leads_to_anything_but_a_dictionary_or_a_value_error(data):
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert isinstance(unpack(bytes(content)), dict)
