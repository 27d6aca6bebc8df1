"""Copy the project's version from pyproject.toml to the files that must spell it out: `make version`."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Each pattern's group is a version. The Dockerfile is given it by `make image`.
PLACES = {
    "helm/gan-training/Chart.yaml": r'^(?:version: |appVersion: ")([^"\n]+)',
    "cluster/aws.yaml": r"gan-training:(\S+)",
    "cluster/gcp.yaml": r"gan-training:(\S+)",
}


# What Python and the chart, which asks for SemVer, both take.
VERSION = r"\d+\.\d+\.\d+(-(a|b|rc)\.\d+)?"


def project_version() -> str:
    """The version in pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if not re.fullmatch(VERSION, version):
        raise SystemExit(
            f"pyproject.toml: version {version!r}: write it as 1.2.3 or 1.2.3-rc.1, which Python and the"
            " chart both take"
        )
    return version


def with_version(text: str, pattern: str, version: str) -> str:
    """The text with this version wherever the pattern has one."""
    result, count = re.subn(
        pattern, lambda found: found[0].replace(found[1], version), text, flags=re.MULTILINE
    )
    if not count:
        raise SystemExit(f"no version matches {pattern!r}: mend PLACES in .ci/version.py")
    return result


def main() -> None:
    """Write the version to each place that has another, and name it."""
    version = project_version()
    for path, pattern in PLACES.items():
        text = (ROOT / path).read_text()
        if (changed := with_version(text, pattern, version)) != text:
            (ROOT / path).write_text(changed)
            print(f"{path}: {version}", file=sys.stderr)
    print(version)


if __name__ == "__main__":
    main()
