"""Settings that another setting leaves without effect.

In a sweep they are usual. Elsewhere they may be a mistake.
"""

from collections.abc import Callable, Iterator

from service.config.schema import Config
from service.config.sections import TrainingSettings

_Used = Callable[[Config], object]


def idle(config: Config) -> Iterator[str]:
    """Settings of `training` that are not at their default and have no effect, each with the reason."""
    training = config.training
    for names, used, because in _USES:
        for name in names:
            value = getattr(training, name)
            if value != TrainingSettings.model_fields[name].default and not used(config):
                yield f"training.{name} {value}, because {because}"


_USES: tuple[tuple[tuple[str, ...], _Used, str], ...] = (
    (("r1_every",), lambda c: c.training.r1, "training.r1 is 0"),
    (("r2_every",), lambda c: c.training.r2, "training.r2 is 0"),
    (
        ("slope_sigma",),
        lambda c: c.training.r1 or c.training.r2,
        "training.r1 and training.r2 are 0",
    ),
    (
        ("gradient_penalty_target", "gradient_penalty_every"),
        lambda c: c.training.gradient_penalty,
        "training.gradient_penalty is 0",
    ),
    (
        ("augment_target", "augment_images"),
        lambda c: c.training.augment == "ada" and c.training.augment_p is None,
        "only ada without training.augment_p uses it",
    ),
    (("labels",), lambda c: c.model.classes, "model.classes is null"),
    (("w_average_half_life_images",), lambda c: c.shape.has_styles, "model.family has no styles"),
)
