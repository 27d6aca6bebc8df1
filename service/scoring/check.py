"""Checks at the start of a run whether its checkpoints can be scored."""

from service.config import EvaluationSettings
from service.config.vocabulary import need_features
from service.data.index import Index
from service.errors import UsageError


def check_evaluation(settings: EvaluationSettings, index: Index) -> None:
    """UsageError if scores are impossible: no image is held out, or the features cannot be loaded."""
    if not len(index.rows(held_out=True)):
        raise UsageError(
            "evaluation: scores need held-out images, but the index has none; rebuild it with a"
            " data.held_out above 0, or set evaluation.every_images to null"
        )
    if need_features(settings.scores):
        from service.metrics.features import open_features

        open_features(settings.features, settings.weights or "")
