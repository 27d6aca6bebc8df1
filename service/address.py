"""Addresses as settings: without secrets, which would travel into MLflow, checkpoints and logs.

Keys belong into the environment or into the files that each client reads by itself.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from service.text import BARE_USER, USER

_WEB = re.compile(r"https?://[^?#]*[?#].", re.IGNORECASE)
_SECRET_QUERY = re.compile(
    r"://[^?]*\?(?:.*[&;])?[^=&;]*(?:sig|token|key|secret|cred|pass|pwd|auth)", re.IGNORECASE
)

REMEDIES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, a profile, or a role",
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the"
    " environment",
    "": "the environment, or a file that the client reads by itself",
}
"""Where the keys belong, by the kind of address."""


def without_secrets(address: str) -> str:
    """The address itself; ValueError, which does not repeat it, if it holds a user or a query."""
    holds = ""
    if USER.search(address) or BARE_USER.match(address):
        holds = "a user, a password or a token"
    elif _WEB.match(address) or _SECRET_QUERY.search(address):
        holds = "a query, which may be a signature or a token"
    if holds:
        kind = address.partition("://")[0].lower() if "://" in address else ""
        remedy = REMEDIES.get("http" if kind == "https" else kind, REMEDIES[""])
        raise ValueError(f"the address holds {holds}; take it out, and use {remedy}")
    return address


Address = Annotated[str, Field(pattern=r"\S"), AfterValidator(without_secrets)]
"""A folder or a URL that holds no secret."""
