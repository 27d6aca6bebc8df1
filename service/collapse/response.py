"""Decides the response to a verdict: a pure function. `training/respond.py` carries it out."""

from enum import StrEnum

from service.collapse.state import Level, Verdict
from service.config import CollapseSettings
from service.errors import ServiceError


class CollapseError(ServiceError):
    """A training collapsed, and rewinds did not or could not save it."""

    lasts = True


class Response(StrEnum):
    """What follows a verdict: nothing, or one of the actions that the configuration offers."""

    NONE = "none"
    ALERT = "alert"
    PROTECT = "protect"
    REWIND = "rewind"
    STOP = "stop"


def decide(verdict: Verdict, before: Verdict, settings: CollapseSettings, rewinds: int) -> Response:
    """The response to a verdict, from the verdict `before` it and the number of `rewinds` so far.

    Each change for the worse raises one alert; a collapse that goes on raises no second.
    """
    changed = (verdict.level, verdict.kind) != (before.level, before.kind)
    if verdict.level == Level.HEALTHY:
        return Response.NONE
    if verdict.level == Level.WARNING:
        return Response.ALERT if changed and before.level == Level.HEALTHY else Response.NONE
    if settings.action == "rewind":
        return Response.REWIND if rewinds < settings.max_rewinds else Response.STOP
    if settings.action == "stop":
        return Response.STOP
    return Response(settings.action) if changed else Response.NONE
