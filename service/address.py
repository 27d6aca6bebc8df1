"""Addresses as settings: without secrets, which would travel into MLflow, checkpoints and logs.

Keys belong into the environment or into the files that each client reads by itself.
"""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from service.text import BARE_USER, USER

_WEB = re.compile(r"https?://[^?#]*[?#].", re.IGNORECASE)
_SECRET_QUERY = re.compile(
    r"://[^?#]*[?#](?:.*[&;])?[^=&;]*(?:sig|token|key|secret|cred|pass|pwd|auth)", re.IGNORECASE
)

REMEDIES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, a profile, or a role",
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the"
    " environment",
    "": "the environment, or a file that the client reads by itself",
}
"""Where the keys belong, by the kind of address."""


class SecretError(ValueError):
    """An address that holds a secret; whoever tells of it does not repeat the address."""


def without_secrets(address: str) -> str:
    """The address itself; SecretError if it holds a user or a query."""
    holds = ""
    if USER.search(address) or BARE_USER.match(address) or _has_user(address):
        holds = "a user, a password or a token"
    elif _WEB.match(address) or _SECRET_QUERY.search(address):
        holds = "a query, which may be a signature or a token"
    if holds:
        kind = address.partition("://")[0].lower() if "://" in address else ""
        remedy = REMEDIES.get("http" if kind == "https" else kind, REMEDIES[""])
        raise SecretError(f"the address holds {holds}; take it out, and use {remedy}")
    return address


def _has_user(address: str) -> bool:
    """Whether a client might read a user out of it, however odd its letters are."""
    try:
        return "@" in urlsplit(address).netloc
    except ValueError:  # such as a bracket that is not closed
        return "@" in address


Address = Annotated[str, Field(pattern=r"\S"), AfterValidator(without_secrets)]
"""A folder or a URL that holds no secret."""
