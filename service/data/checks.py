"""Whether the labels and channels of the data fit the model."""

import numpy as np
from numpy.typing import NDArray

from service.data.index import Index, class_counts
from service.data.tar import NO_LABEL
from service.errors import DataError


def check_labels(index: Index, classes: int | None) -> None:
    """DataError unless a model's classes are those of the labels; a label outside names its sample.

    Samples without a label pass and count as bad ones later, unless no sample has a label.
    """
    if classes is None:
        return
    if not np.any(index.label != NO_LABEL):
        raise DataError(
            f"{next(iter(index.shards))}: no sample has a label"
            + (
                f" in the field {index.about.choice.label} of its .json member (data.label)"
                if index.about.choice.label
                else " (a .cls member that holds a number or a name)"
            )
            + "; set model.classes to null to train without labels"
        )
    outside = np.flatnonzero(index.label >= classes)
    known = len(class_counts(index.label, index.about.classes))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{index.describe(row)}: label {index.label[row]} is outside 0 … {classes - 1}"
            f" ({len(outside)} such samples); set model.classes to {known}, or correct the labels"
        )
    if classes > known:
        raise DataError(
            f"model.classes: {classes}, but the data's labels are 0 … {known - 1}; set it to {known},"
            " or correct the labels"
        )


def check_unlabelled(index: Index, rows: NDArray[np.int64], allowed: int) -> None:
    """DataError if more of these rows lack a label than may be bad."""
    without = rows[index.label[rows] == NO_LABEL]
    if len(without) > allowed:
        raise DataError(
            f"{len(without)} of {len(rows)} samples have no label, such as"
            f" {index.describe(int(without[0]))}, but data.max_bad_samples allows {allowed}; label them,"
            " leave them out of the shards, or raise the limit"
        )


def check_channels(index: Index, channels: int) -> None:
    """DataError if the images' channels differ from the model's."""
    packed = index.about.channels
    if packed not in (None, channels):
        raise DataError(
            f"the data has {packed} channels, the model {channels}; set model.channels to {packed}"
            " or pack again with other --channels"
        )
