"""Names of an export's files, and of models in MLflow's registry. Imports no torch."""

import re

WEIGHTS_KEY, ONNX_KEY, CARD_KEY = "generator.safetensors", "generator.onnx", "README.md"


def check_name(name: str) -> str:
    """The name of a registered model; ValueError if MLflow's registry would refuse it."""
    if not re.fullmatch(r"[^/:.%\"'\s]([^/:.%\"']*[^/:.%\"'\s])?", name):
        raise ValueError("give a name without / : . % or quotes")
    return name


def check_alias(alias: str) -> str:
    """The alias of a version; ValueError if MLflow's registry would refuse it."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", alias) or re.fullmatch(r"(?i)latest|v\d+", alias):
        raise ValueError("give letters, digits, - and _, but not latest, or v and a number")
    return alias
