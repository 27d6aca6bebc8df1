"""Checks at the start of a run whether its checkpoints can be scored."""

from collections.abc import Collection

from service.config import EvaluationSettings
from service.config.vocabulary import OF_LABELS, REFERENCES, need_features, need_held_out
from service.data.attributes import read_attributes
from service.data.index import Index
from service.data.sources import shows_stacked_digits
from service.data.tar import NO_LABEL
from service.errors import UsageError


def check_evaluation(settings: EvaluationSettings, index: Index, resolution: int) -> None:
    """UsageError if scores are impossible: for want of held-out images, labels, features or a file.

    `resolution` is that of the finished network. DataError if a file of attributes does not belong to
    the data.
    """
    held_out = need_held_out(settings.scores, settings.reference)
    if held_out and not len(index.rows(held_out=True)):
        raise UsageError(
            "evaluation: scores need held-out images, but the index has none; rebuild it with a"
            " data.held_out above 0, set evaluation.reference to training, or evaluation.every_images"
            " to null"
        )
    _check_labels(settings, index)
    if need_network(settings.scores, index):
        from service.metrics.features import open_features
        from service.metrics.reference import read_reference

        features = open_features(settings.features, settings.weights or "")
        if settings.reference not in REFERENCES:
            measured = read_reference(settings.reference, features).resolution
            if measured not in (None, resolution):
                raise UsageError(
                    f"{settings.reference}: measured on images of {measured} px, but the finished"
                    f" network draws {resolution} px; make it anew with service.evaluate"
                    " --save-reference, or give evaluation.reference another file"
                )


def need_network(scores: Collection[str], index: Index) -> bool:
    """Whether a score needs a network of features. The modes of stacked digits are read from pixels."""
    stacked = shows_stacked_digits(index.about)
    return need_features([score for score in scores if not (stacked and score == "modes")])


def _check_labels(settings: EvaluationSettings, index: Index) -> None:
    """UsageError or DataError if scores need labels that the data, or the file of attributes, lacks."""
    needy = [score for score in settings.scores if score in OF_LABELS]
    if "separability" in needy and settings.attributes:
        needy.remove("separability")
        read_attributes(settings.attributes, index)
    if not needy:
        return
    from service.metrics.real import select_rows  # with torch, which other checks do not load

    labels = index.label[select_rows(index.rows(held_out=False), settings.images)]
    classes = len(set(labels[labels != NO_LABEL].tolist()))
    if classes < 2:
        file = ", give evaluation.attributes" if "separability" in needy else ""
        raise UsageError(
            f"evaluation.scores: {', '.join(needy)}: needs two classes or more, but the training images"
            f" that are measured have {classes or 'none'}; leave it out{file}, raise evaluation.images,"
            " or pack the images with labels"
        )
