"""Judges a training by its signals over time: healthy, warning or collapsed, with kind and reason.

A pure function of the measurements, so that all workers and all restarts judge alike. Most thresholds
are ratios to the real images or to the run's own past; none depends on the data set.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.collapse.state import HISTORY, Kind, Level, Measurement, Verdict

GRACE, GRACE_CYCLES = 2, 100
"""Measurements, and cycles, that do not count at the start and after each change of span."""

LASTING, WARN = 5, 2
"""A collapse shows in all but one of the last LASTING measurements, a warning in WARN of them."""

RISING_AFTER, RISING = 3, 1.15
"""Low variety is no trouble if it grew by the factor RISING within RISING_AFTER measurements."""


LOGITS = 4000.0
"""A bounded discriminator's logits differ by no more than this. Two RGB images of 1024 px are at most
2 √(3 · 1024²) = 3,547 apart. Spectral norm and gradient penalty aim at a slope of 1; then the logits
are no further apart."""


@dataclass(frozen=True)
class Rule:
    """How one kind of trouble shows: `grade` gives 0, 1 or 2 for a measurement and those before it.

    0 is nothing; if it lasts, 1 is a warning and 2 a collapse. `reason` puts the last measurement in
    words and says what to do.
    """

    kind: Kind
    grade: Callable[[Measurement, Sequence[Measurement]], int]
    reason: Callable[[Measurement], str]
    lasting: int = LASTING


def judge(history: Sequence[Measurement]) -> Verdict:
    """The verdict on the last measurement of a history, oldest first.

    The most severe verdict counts; among equals, the first rule's.
    """
    settled = _settled(history)
    verdicts = [verdict for rule in RULES if (verdict := _apply(rule, history, settled))]
    return max(
        verdicts,
        key=lambda verdict: verdict.level.severity,
        default=Verdict(onset=history[-1].clock if history else 0),
    )


def _apply(rule: Rule, history: Sequence[Measurement], settled: Sequence[int]) -> Verdict | None:
    """The rule's verdict, or None if all is well.

    A warning needs WARN bad grades among the last `lasting`; a collapse needs all but one to be severe.
    A single grade decides only if `lasting` is 1.
    """
    judged = range(len(history)) if rule.lasting == 1 else settled
    if not judged or judged[-1] != len(history) - 1:
        return None
    grades = [rule.grade(history[i], history[:i]) for i in judged]
    recent = grades[-rule.lasting :]
    bad, severe = sum(g >= 1 for g in recent), sum(g >= 2 for g in recent)
    needed = max(1, rule.lasting - 1)
    collapsed = severe >= needed
    level = Level.COLLAPSED if collapsed else Level.WARNING
    if level == Level.WARNING and bad < min(WARN, rule.lasting):
        return None
    at = judged[_begin(grades)]
    onset = history[at - 1].clock if at else 0
    return Verdict(level, rule.kind, rule.reason(history[-1]), onset)


def _begin(grades: Sequence[int]) -> int:
    """Index at which the current trouble began: the first bad grade after two good ones in a row."""
    first = len(grades) - 1
    for i in range(len(grades) - 1, -1, -1):
        if grades[i]:
            first = i
        elif i and not grades[i - 1]:
            break
    return first


def _settled(history: Sequence[Measurement]) -> list[int]:
    """Indices of the measurements that count: all but the first few of the run and of each span."""
    settled, since = [], 0
    for i, measurement in enumerate(history):
        changed = i > 0 and measurement.span != history[i - 1].span
        since = 1 if changed else since + 1
        if since > GRACE and measurement.cycles > GRACE_CYCLES:
            settled.append(i)
    return settled


# The rules -----------------------------------------------------------------------------------------


def _numeric(m: Measurement, _: Sequence[Measurement]) -> int:
    return 2 if _get(m, "nonfinite", 0.0) > 0 else 0


def _variety(m: Measurement) -> float:
    """The lower of the varieties over all images and within classes; 1 is that of real images."""
    return min(_get(m, "variety_pixels", 1.0), _get(m, "within_pixels", 1.0))


def _mode_collapse(m: Measurement, before: Sequence[Measurement]) -> int:
    variety = _variety(m)
    if before and variety > RISING * _variety(before[-RISING_AFTER:][0]):
        return 0  # low but rising, as at the beginning of every training
    return _steps(variety, below=(0.5, 0.4))


def _divergence(m: Measurement, before: Sequence[Measurement]) -> int:
    norms = [_explosion(m, before, name) for name in ("grad_norm_d", "grad_norm_g")]
    spectra = [_explosion(m, before, f"spectrum_{name}") for name in ("discriminator", "generator")]
    return max(
        _steps(_get(m, "shift", 0.0), above=(1.5, 2.0)),
        _steps(_get(m, "variety_pixels", 1.0), above=(1.7, 2.2)),
        _steps(_get(m, "roughness", 1.0), above=(2.0, 3.0)),
        _steps(_get(m, "roughness", 1.0), below=(0.4, 0.25)) if len(before) > RISING_AFTER else 0,
        _steps(_get(m, "saturation", 0.0), above=(0.4, 0.6)),
        _steps(max(norms), above=(30.0, 300.0)),
        _steps(max(spectra), above=(3.0, 10.0)),  # Brock et al. 2019, §4
        _steps(_logits(m), above=(LOGITS, 10 * LOGITS)),
    )


def _logits(m: Measurement) -> float:
    """How far apart the discriminator's logits are."""
    return max(abs(_get(m, name, 0.0)) for name in ("spread_real", "spread_fake", "margin"))


def _explosion(m: Measurement, before: Sequence[Measurement], name: str) -> float:
    """A signal over its median in the past; 1 if there is too little past."""
    past = [_get(b, name, 0.0) for b in before[-HISTORY // 2 :]]
    median = statistics.median(past) if len(past) >= RISING_AFTER else 0.0
    return _get(m, name, 0.0) / median if median > 0 else 1.0


def _d_overfit(m: Measurement, _: Sequence[Measurement]) -> int:
    seen, unseen = _get(m, "accuracy_real", 0.0), _get(m, "accuracy_held_out", 1.0)
    if seen >= 0.95 and unseen <= 0.4:
        return 2
    return int(seen >= 0.9 and unseen <= 0.6)


def _d_too_strong(m: Measurement, _: Sequence[Measurement]) -> int:
    right = min(_get(m, "accuracy_real", 0.0), _get(m, "accuracy_fake", 0.0))
    return _steps(right, above=(0.99, 0.99 if _draws_poorly(m) else math.inf))


def _g_too_strong(m: Measurement, _: Sequence[Measurement]) -> int:
    spread = max(_get(m, "spread_real", 0.0), _get(m, "spread_fake", 0.0))
    margin = _get(m, "margin", 0.0) / spread if spread > 0 else 0.0
    return _steps(margin, below=(-0.3, -0.3 if _draws_poorly(m) else -math.inf))


def _draws_poorly(m: Measurement) -> bool:
    """Whether the images look wrong. One network ahead of the other is no collapse by itself."""
    off = _get(m, "shift", 0.0) > 0.8 or not 0.4 < _get(m, "roughness", 1.0) < 2.0
    return off or _variety(m) < 0.6


def _steps(
    value: float,
    above: tuple[float, float] = (math.inf, math.inf),
    below: tuple[float, float] = (-math.inf, -math.inf),
) -> int:
    """How many of the thresholds are passed."""
    return max(sum(value > limit for limit in above), sum(value < limit for limit in below))


def _get(m: Measurement, name: str, missing: float) -> float:
    """A signal, or `missing` if it could not be measured."""
    value = m.values.get(name, missing)
    return missing if math.isnan(value) else value


def _sentence(text: str) -> Callable[[Measurement], str]:
    """A function that fills the signals of a measurement into `text`."""

    def reason(m: Measurement) -> str:
        values = {name: _get(m, name, math.nan) for name in SIGNALS} | {"variety": _variety(m)}
        return text.format(**values)

    return reason


SIGNALS = (
    "accuracy_fake", "accuracy_held_out", "accuracy_real", "grad_norm_d", "grad_norm_g", "logit_fake",
    "logit_real", "loss_d", "margin", "nonfinite", "roughness", "saturation", "shift", "spread_fake",
    "spectrum_discriminator", "spectrum_generator", "spread_real", "variety_pixels", "within_pixels",
)  # fmt: skip
"""All signals that rules look at and reasons quote."""

RULES = (
    Rule(
        Kind.NUMERIC,
        _numeric,
        _sentence(
            "losses or gradients are NaN or infinite in {nonfinite:.0%} of the cycles: lower the rates,"
            " or set training.precision to fp32"
        ),
        lasting=1,
    ),
    Rule(
        Kind.MODE_COLLAPSE,
        _mode_collapse,
        _sentence(
            "generated images are {variety:.2f} times as varied as real ones ({variety_pixels:.2f} over"
            " all, {within_pixels:.2f} within classes): lower the generator's rate, or raise the"
            " discriminator's"
        ),
    ),
    Rule(
        Kind.DIVERGENCE,
        _divergence,
        _sentence(
            "generated images drift away from real ones: their mean is off by {shift:.2f} real spreads,"
            " variety {variety_pixels:.2f}, roughness {roughness:.2f}, saturation {saturation:+.2f};"
            " gradient norms D {grad_norm_d:.3g}, G {grad_norm_g:.3g}, largest singular values"
            " D {spectrum_discriminator:.3g}, G {spectrum_generator:.3g}, margin of logits {margin:.3g}:"
            " lower both rates, and make sure that D is bounded (model.spectral_norm,"
            " training.gradient_penalty)"
        ),
    ),
    Rule(
        Kind.D_OVERFIT,
        _d_overfit,
        _sentence(
            "the discriminator has memorised its training images: right on {accuracy_real:.0%} of them,"
            " on {accuracy_held_out:.0%} of held-out ones; add data, training.augment or training.r1"
        ),
    ),
    Rule(
        Kind.D_TOO_STRONG,
        _d_too_strong,
        _sentence(
            "the discriminator is right on {accuracy_real:.1%} of real and {accuracy_fake:.1%} of"
            " generated images, and its loss is {loss_d:.3g}: lower its rate or steps, or raise"
            " training.r1"
        ),
    ),
    Rule(
        Kind.G_TOO_STRONG,
        _g_too_strong,
        _sentence(
            "the discriminator rates generated images as more real than real ones (logits"
            " {logit_fake:.2f} against {logit_real:.2f}): raise its rate or training.d_steps"
        ),
    ),
)
