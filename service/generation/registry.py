"""MLflow's registry: a checkpoint as a model that `mlflow.pyfunc` loads, under a name and an alias."""

import importlib.metadata
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import models
import service
from service import pretrained
from service.errors import ServiceError
from service.recording.mlflow import limit_requests
from service.run.best import Trained, load

CHECKPOINT_TAG = "gan.checkpoint"
PACKAGES = ("mlflow", "torch", "safetensors", "numpy", "pandas")


class RegistryError(ServiceError):
    """A registry did not register a model; says why."""


def register(address: str, uri: str, experiment: str, name: str, alias: str) -> str:
    """Register a checkpoint, or the best of a run.dir, and give it the alias.

    Returns "name version N (models:/name@alias)". The model holds the EMA's weights. A checkpoint that
    has this name already is not registered twice. Raises UsageError or DataError if there is no such
    checkpoint, and RegistryError if the registry at the tracking address `uri` fails.
    """
    trained = load(address)
    limit_requests()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        version = _registered(uri, name, trained) or _register(uri, experiment, name, trained)
        _client(uri).set_registered_model_alias(name, alias, version)
    except Exception as error:  # MLflow's own errors, and those of its artifact store
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RegistryError(f"{uri}: could not register {name}: {reason}") from error
    return f"{name} version {version} (models:/{name}@{alias})"


def _registered(uri: str, name: str, trained: Trained) -> str | None:
    """The version under which this checkpoint is registered already, if any."""
    for version in _client(uri).search_model_versions(f"name = '{name}'"):
        if version.tags.get(CHECKPOINT_TAG) == trained.address:
            return str(version.version)
    return None


def _register(uri: str, experiment: str, name: str, trained: Trained) -> str:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    tags = {CHECKPOINT_TAG: trained.address, "gan.images": str(trained.clock)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow asks for other annotations, and for an example
        from service.generation import serving

        file = Path(folder) / "generator.safetensors"
        weights = pretrained.to_bytes(
            trained.generator, trained.family, trained.shape, trained.stage, trained.classes
        )
        file.write_bytes(weights)
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=serving.__file__,
            artifacts={serving.ARTIFACT: str(file)},
            code_paths=[str(Path(package.__path__[0])) for package in (models, service)],
            signature=_signature(trained),
            pip_requirements=[f"{p}=={importlib.metadata.version(p)}" for p in PACKAGES],
            tags=tags | {"gan.fingerprint": trained.fingerprint},
        )
    return str(mlflow.register_model(logged.model_uri, name, tags=tags).version)


def _signature(trained: Trained) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    # beside a missing value pandas turns whole numbers into floats, which MLflow's types would refuse
    optional = {"type": AnyType(), "required": False}
    inputs = [
        ColSpec(name="class", **optional),
        ColSpec(DataType.long, "seed"),
        ColSpec(name="truncation", **optional),
    ]
    side, channels = trained.stage.resolution, trained.shape.channels
    images = TensorSpec(np.dtype(np.uint8), (-1, side, side, channels))
    return ModelSignature(Schema(inputs), Schema([images]))


def _client(uri: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri)
