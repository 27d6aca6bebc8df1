"""Which code runs: its commit, if anybody knows it, and its digest, which says it in any case."""

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Where the packages lie that are imported: a clone, an image, or what Ray unpacked for a job."""
COMMIT_FILE = "COMMIT"
"""Beside them: the commit that an image was made of. Code that is submitted brings none along."""
PACKAGES = ("models", "service")
SUFFIXES = (".py", ".yaml")


def provenance() -> dict[str, str]:
    """Tags of MLflow: `mlflow.source.git.commit`, and `code.sha256` of the packages' files."""
    return {"mlflow.source.git.commit": git_commit(), "code.sha256": code_digest()}


def code_digest() -> str:
    """SHA-256 over the packages' files: a line each with its name and the SHA-256 of what it holds."""
    whole = hashlib.sha256()
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    for path in sorted(path for path in files if path.suffix in SUFFIXES):
        name = path.relative_to(ROOT).as_posix()
        whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def git_commit() -> str:
    """The commit of the code: from the image's own file, else from git, else "unknown"."""
    file = ROOT / COMMIT_FILE
    if file.exists():
        return file.read_text().strip()
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()
