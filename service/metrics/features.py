"""Feature networks by name: the one place that opens them."""

from pathlib import Path

import torch

from service.config.vocabulary import FEATURES
from service.errors import UsageError
from service.metrics import efficientnet, inception
from service.metrics.feature_set import FeatureSet


def open_features(
    name: str = efficientnet.NAME,
    weights: str = "",
    device: torch.device | str = "cpu",
    cache: Path | None = None,
) -> FeatureSet:
    """The feature network of this name.

    `inception` takes its `weights` from a path, or from an http(s) or s3:// address, which it fetches
    once into `cache` (~/.cache/gan-training). `efficientnet_lite0` brings its own. UsageError for
    another name, and if packages or files are missing or wrong.
    """
    if name not in FEATURES:
        raise UsageError(f"features {name!r}: unknown; there are {', '.join(FEATURES)}")
    if name == inception.NAME:
        if not weights:
            raise UsageError(
                f"features {name} need their weights: give the path or the URL of"
                f" {inception.STANDARD_FILE}, or take {efficientnet.NAME}"
            )
        return inception.load_inception(weights, device, cache)
    if weights:
        raise UsageError(f"features {name} bring their own weights; leave out {weights}")
    return efficientnet.load_efficientnet(device)
