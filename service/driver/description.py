"""What MLflow records once for each run: parameters, versions, the data, the commit of the code."""

import importlib.metadata
from pathlib import Path

from service.config import Config
from service.config.identity import flatten
from service.config.schema import MLFLOW_DATABASE
from service.config.yaml import to_yaml
from service.data.index import Index, class_counts
from service.driver.preflight import RunDir
from service.driver.provenance import provenance
from service.recording.mlflow import Description, check_store

LONGEST_TAG = 500
PACKAGES = ("torch", "ray", "webdataset", "mlflow", "boto3", "numpy")


def describe_run(config: Config, run: RunDir, parent: str | None) -> Description:
    """What MLflow records of a run; `parent` is the key of the run that it is nested in."""
    versions = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    return Description(
        uri=config.tracking_uri,
        experiment=config.tracking.experiment,
        artifacts=None if config.tracking.uri else (Path(config.run.dir) / "artifacts").as_uri(),
        key=run.key,
        parent=parent,
        name=config.run.name,
        parameters={key: str(value) for key, value in flatten(config.model_dump()).items()},
        tags=versions
        | {
            "run.dir": config.run.dir,
            "data.fingerprint": run.index.fingerprint(),
            "data.classes": ", ".join(run.index.about.classes)[:LONGEST_TAG],
            **provenance(),
        },
        texts={"config.yaml": to_yaml(config)} | _classes_text(run.index),
    )


def check_tracking(config: Config) -> None:
    """UsageError if MLflow will never take the run."""
    new = config.tracking.uri is None and not (Path(config.run.dir) / MLFLOW_DATABASE).exists()
    if not new:  # a new database takes it, and importing MLflow takes seconds
        check_store(config.tracking_uri, config.tracking.experiment)


def _classes_text(index: Index) -> dict[str, str]:
    """A file that lists the classes: label, number of images, name."""
    counts = class_counts(index.label, index.about.classes)
    lines = [f"{label}\t{count}\t{name}\n" for label, (name, count) in enumerate(counts)]
    return {"classes.tsv": "".join(["label\timages\tname\n", *lines])} if counts else {}
