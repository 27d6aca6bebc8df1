"""Whether networks of a shape, and so many images, allow the scores that are asked for."""

import models
from service.config.sections import EvaluationSettings
from service.config.vocabulary import OF_STYLES

IMAGES_PER_DIMENSION = 20
"""With fewer images for each number of a latent, a plane tells even random attributes apart."""


def impossible(settings: EvaluationSettings, family: str, shape: models.Shape) -> str | None:
    """What makes a score impossible, and the remedy; None if all are possible."""
    styles = [score for score in settings.scores if score in OF_STYLES]
    if styles and not shape.has_styles:
        instead = ", ".join(score.replace("_w_", "_z_") for score in styles)
        return (
            f"evaluation.scores: {', '.join(styles)}, but {family} has no styles; leave it out, or take"
            f" {instead}"
        )
    fewest = IMAGES_PER_DIMENSION * shape.latents
    if "separability" in settings.scores and settings.images < fewest:
        return (
            f"evaluation.images: {settings.images}, but separability fits planes between latents of"
            f" {shape.latents} numbers, which takes {fewest} images; raise it, or leave separability out"
        )
    return None
