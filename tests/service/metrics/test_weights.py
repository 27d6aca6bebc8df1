"""Files of weights from paths, a real web server and a real S3, and files that are none."""

import hashlib
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import UsageError
from service.metrics.weights import cache_folder, local_file, read_weights
from service.storage import open_storage

CONTENT = b"weights" * 1000
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts what it was asked, and breaks off in the middle of `short` files."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        if "short" not in self.path:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100])
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """The address of a web server, the folder that it serves, and what it has been asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Here(Handler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

    Here.asked = asked
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}", folder, asked
        finally:
            web.shutdown()
            thread.join()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_path_is_itself_and_a_missing_one_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(CONTENT)
    assert local_file(str(path)) == path
    with pytest.raises(UsageError, match=r"gone\.pth: no such file; give the path or the URL"):
        local_file(str(tmp_path / "gone.pth"))


def test_an_address_is_fetched_once_and_a_signature_is_no_part_of_it(server, tmp_path):
    address, folder, asked = server
    (folder / f"net-{DIGITS}.pth").write_bytes(CONTENT)
    cache = tmp_path / "cache"
    paths = {local_file(f"{address}/net-{DIGITS}.pth{query}", cache) for query in ("", "?key=1", "")}
    assert len(paths) == len(asked) == 1
    assert paths.pop().read_bytes() == CONTENT


def test_two_addresses_are_two_files(server, tmp_path):
    address, folder, _ = server
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "w.pth").write_bytes(name.encode())
    contents = [local_file(f"{address}/{name}/w.pth", tmp_path / "cache").read_bytes() for name in "ab"]
    assert contents == [b"a", b"b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net-01234567.pth", f"SHA-256 begins with {DIGITS}, its name promises 01234567"),
        ("short.pth", "100 of 7000 bytes came; try again"),
        ("missing.pth", r"missing\.pth: cannot be fetched \(HTTP Error 404.*give its path"),
    ],
)
def test_what_does_not_come_as_promised_is_refused_and_not_kept(server, tmp_path, name, message):
    address, folder, _ = server
    (folder / "net-01234567.pth").write_bytes(CONTENT)
    cache = tmp_path / "cache"
    with pytest.raises(UsageError, match=message):
        local_file(f"{address}/{name}?signature=secret", cache)
    assert files(cache) == []


def test_errors_do_not_tell_a_signature(server, tmp_path):
    with pytest.raises(UsageError) as error:
        local_file(f"{server[0]}/missing.pth?signature=secret", tmp_path)
    assert "secret" not in str(error.value)


def test_a_server_that_is_not_there_is_a_usage_error(tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as web:
        port = web.server_port
    with pytest.raises(UsageError, match="cannot be fetched"):
        local_file(f"http://127.0.0.1:{port}/w.pth", tmp_path)


def test_weights_come_from_s3(s3, tmp_path):
    open_storage(f"{s3}/weights").put("w.pth", CONTENT)
    assert local_file(f"{s3}/weights/w.pth", tmp_path).read_bytes() == CONTENT
    with pytest.raises(UsageError, match=r"gone\.pth: cannot be fetched"):
        local_file(f"{s3}/weights/gone.pth", tmp_path)


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gan-training"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "gan-training"


def test_a_state_dict_is_read_with_its_digest(tmp_path):
    path = tmp_path / "w.pth"
    for zipped in (True, False):
        torch.save({"a": torch.arange(3)}, path, _use_new_zipfile_serialization=zipped)
        weights, digest = read_weights(path)
        assert torch.equal(weights["a"], torch.arange(3))
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


class Opener:
    """What a pickle may do when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def save_script(path: Path, mark: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))


def save_code(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Opener(mark)))


def save_zipped_code(path: Path, mark: Path) -> None:
    torch.save({"a": Opener(mark)}, path)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path, _: path.write_text("<!DOCTYPE html><p>Sign in</p>"), "it is a web page"),
        (lambda path, _: path.write_bytes(b""), "without running code"),
        (lambda path, _: path.write_bytes(bytes(range(256)) * 9), "without running code"),
        (save_script, "it is a TorchScript archive, which is code"),
        (save_code, "more than tensors"),
        (save_zipped_code, "more than tensors"),
        (lambda path, _: torch.save([torch.zeros(1)], path), "something else than a dictionary"),
        (lambda path, _: torch.save({"a": 1}, path), "something else than a dictionary"),
        (lambda path, _: np.savez(path.open("wb"), a=1), "without running code"),
    ],
    ids=["web page", "empty", "bytes", "script", "pickle", "zip", "list", "numbers", "npz"],
)
@pytest.mark.filterwarnings("ignore")
def test_other_files_are_refused_and_none_of_their_code_runs(tmp_path, save, message):
    path, mark = tmp_path / "w.pth", tmp_path / "mark"
    save(path, mark)
    with pytest.raises(UsageError, match=rf"w\.pth: no weights.*{message}.*give a state dict's file"):
        read_weights(path)
    assert not mark.exists()


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UsageError, match="no weights"):
        read_weights(path)
