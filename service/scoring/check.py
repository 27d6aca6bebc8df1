"""Checks at the start of a run whether its checkpoints can be scored."""

from service.config import EvaluationSettings
from service.config.vocabulary import REFERENCES, need_features, need_held_out
from service.data.index import Index
from service.errors import UsageError


def check_evaluation(settings: EvaluationSettings, index: Index) -> None:
    """UsageError if scores are impossible: no image is held out, or a file cannot be loaded."""
    held_out = need_held_out(settings.scores, settings.reference)
    if held_out and not len(index.rows(held_out=True)):
        raise UsageError(
            "evaluation: scores need held-out images, but the index has none; rebuild it with a"
            " data.held_out above 0, set evaluation.reference to training, or evaluation.every_images"
            " to null"
        )
    if need_features(settings.scores):
        from service.metrics.features import open_features
        from service.metrics.reference import read_reference

        features = open_features(settings.features, settings.weights or "")
        if settings.reference not in REFERENCES:
            read_reference(settings.reference, features)
