"""Secrets in addresses: refused wherever an address is a setting, hidden wherever one is printed."""

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import evaluate, export, logs, pack, register, sample, status, sweep, train
from service.address import without_secrets
from service.errors import ServiceError, StorageError, UsageError
from service.storage import open_storage
from service.text import redact

SECRET = "hunter2secret"
PLANTED = [
    f"https://user:{SECRET}@host.example/path",
    f"https://{SECRET}@host.example/path",
    f"HTTPS://user:{SECRET}@host.example",
    f"http://host.example/path?token={SECRET}",
    f"http://host.example/path?a=b&X-Amz-Signature={SECRET}",
    f"http://host.example/path#access_token={SECRET}",
    f"s3://user:{SECRET}@bucket/path",
    f"s3://user:{SECRET}/with/slashes@bucket/path",
    f"s3://bucket/path?AWSAccessKeyId=a&Signature={SECRET}",
    f"postgresql://user:{SECRET}@db/mlflow",
    f"azure://container/path?sv=1&sig={SECRET}",
    f"user:{SECRET}@host.example:5000",
    f"//user:{SECRET}@host.example/path",
    f"https://me@corp.example:{SECRET}@host.example/path",
    f"s3://user:a@b/{SECRET}@bucket/path",
    f"https:/user:{SECRET}@host.example/path",
]
ODD = [
    "http://user:p'w@host/x",
    "http://user:<pw>@host",
    "http://user:p w@host",
    "s3://bucket/x#token=abc",
]

SETTINGS = ["run.dir", "data.url", "data.index_url", "tracking.uri", "evaluation.weights"]
RUN = ["--preset", "digits", "--print-config"]
COMMANDS = [
    (pack.main, lambda address: [address, "out"]),
    (pack.main, lambda address: ["digits", address]),
    (sample.main, lambda address: [address, "--out", "x.png"]),
    (evaluate.main, lambda address: [address]),
    (evaluate.main, lambda address: ["run", "--data", address]),
    (evaluate.main, lambda address: ["run", "--weights", address]),
    (export.main, lambda address: [address, "out"]),
    (export.main, lambda address: ["run", address]),
    (register.main, lambda address: [address, "--name", "n", "--tracking-uri", "sqlite:///x.db"]),
    (register.main, lambda address: ["run", "--name", "n", "--tracking-uri", address]),
    (status.main, lambda address: [address]),
    (sweep.main, lambda address: ["--preset", "digits", "--space", "x.yaml", "--dir", address]),
]
PLAIN = [
    "s3://bucket/a@b/c",
    "/data/a@b",
    "data/what?",
    "sqlite:////x/y.db",
    "http://mlflow:5000",
    "http://mlflow:5000/at@sign",
    "http://[::1]:5000/path",
    "file:///data",
    "runs/a b",
]


@pytest.mark.parametrize("address", PLANTED)
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_takes_an_address_with_a_secret_or_repeats_it(setting, address):
    with pytest.raises(UsageError, match=rf"(?s){setting}: .*take it out, and use") as refused:
        train.main([*RUN, f"--{setting}", address])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("address", PLANTED)
@pytest.mark.parametrize(("main", "arguments"), COMMANDS)
def test_no_command_takes_an_address_with_a_secret_or_repeats_it(main, arguments, address):
    with pytest.raises(UsageError) as refused:
        main(arguments(address))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("address", ODD)
def test_odd_letters_let_no_address_pass(address):
    with pytest.raises(ValueError, match="take it out"):
        without_secrets(address)


@pytest.mark.slow
def test_hiding_takes_time_in_proportion_to_the_text():
    def seconds(length: int) -> float:
        text = "http://http:" * length
        start = time.perf_counter()
        redact(text)
        return time.perf_counter() - start

    seconds(1000)
    assert min(seconds(4000) for _ in range(3)) < 20 * max(min(seconds(1000) for _ in range(3)), 1e-4)


@pytest.mark.parametrize("address", PLAIN)
def test_other_addresses_are_taken_and_shown_as_they_are(address):
    assert without_secrets(address) == address
    assert redact(f"{address}: no such place") == f"{address}: no such place"


@pytest.mark.parametrize("address", PLANTED)
def test_errors_and_log_lines_hide_it(address, capsys):
    assert SECRET not in str(ServiceError(f"{address}: away"))
    line = logging.LogRecord("service", logging.WARNING, "", 0, "event=x address=%s", (address,), None)
    for formatter in (logs.JsonLines(), logs.PlainLines("%(message)s")):
        assert SECRET not in formatter.format(line)


WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=6, max_size=20)


@given(user=WORDS, secret=WORDS, host=WORDS, scheme=st.sampled_from(["s3", "http", "https", "x+y"]))
def test_no_user_and_no_password_survives(user, secret, host, scheme):
    text = redact(f"before {scheme}://{user}:{secret}@{host}/path: after")
    assert text == f"before {scheme}://***@{host}/path: after"


def test_the_endpoint_of_s3_is_hidden_where_it_does_not_answer(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StorageError) as away:
        open_storage("s3://bucket/run").get("key")
    assert SECRET not in str(away.value)
