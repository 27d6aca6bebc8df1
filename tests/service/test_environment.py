"""What the service reads of its environment is read in one place, and a wrong value is named."""

import ast
from pathlib import Path

import pytest

from service import environment
from service.errors import UsageError
from tests.conftest import ROOT


def reads(file: Path) -> list[int]:
    """The lines that read a variable: os.environ.get, os.environ[…] and os.getenv."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ"), attr="get")):
                found.append(node.lineno)
            case ast.Call(func=ast.Attribute(attr="getenv")):
                found.append(node.lineno)
            case ast.Subscript(value=ast.Attribute(attr="environ"), ctx=ast.Load()):
                found.append(node.lineno)
    return found


def test_variables_are_read_in_one_place():
    elsewhere = {
        str(file.relative_to(ROOT)): lines
        for file in [*(ROOT / "service").rglob("*.py"), *(ROOT / "models").rglob("*.py")]
        if file.name != "environment.py" and (lines := reads(file))
    }
    assert elsewhere == {}
    assert len(reads(ROOT / "service/environment.py")) == 2


@pytest.mark.parametrize(
    ("variable", "value", "read", "expected"),
    [
        ("LOG_LEVEL", " info ", environment.log_level, "INFO"),
        ("LOG_LEVEL", "", environment.log_level, "WARNING"),
        ("RAY_ADDRESS", "", environment.ray_address, "local"),
        ("RAY_ADDRESS", "auto", environment.ray_address, "auto"),
        ("GAN_PROMETHEUS_TARGETS", "", environment.prometheus_targets, None),
        ("XDG_CACHE_HOME", "", environment.cache_home, Path("~/.cache").expanduser()),
        ("AWS_ENDPOINT_URL_S3", "", environment.s3_endpoint, None),
        ("AWS_ENDPOINT_URL_S3", "http://minio:9000", environment.s3_endpoint, "http://minio:9000"),
    ],
)
def test_a_variable_is_taken_as_meant(monkeypatch, variable, value, read, expected):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv(variable, value)
    assert read() == expected


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("LOG_LEVEL", "loud", environment.log_level),
        ("AWS_ENDPOINT_URL", "localhost:8333", environment.s3_endpoint),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(monkeypatch, variable, value, read):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"^{variable}={value}: [^\n]*$"):
        read()
