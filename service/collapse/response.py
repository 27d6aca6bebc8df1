"""What is done about a verdict: a pure decision, which the training loop carries out."""

from service.collapse.detector import Verdict
from service.config import Collapse
from service.errors import ServiceError

RESPONSES = ("none", "alert", "protect", "rewind", "stop")


class CollapseError(ServiceError):
    """A training that fell apart, and was not or could not be saved by rewinds."""


def respond(verdict: Verdict, before: Verdict, settings: Collapse, rewinds: int) -> str:
    """Which of RESPONSES follows a verdict, and the one `before` it, after so many `rewinds`.

    Alerts come once for a change for the worse: what collapsed and is left alone is not told again.
    """
    changed = (verdict.level, verdict.kind) != (before.level, before.kind)
    if verdict.level == "healthy":
        return "none"
    if verdict.level == "warning":
        return "alert" if changed and before.level == "healthy" else "none"
    if settings.action == "rewind":
        return "rewind" if rewinds < settings.max_rewinds else "stop"
    if settings.action == "stop":
        return "stop"
    return settings.action if changed else "none"
