"""Text for people: names from elsewhere in it made printable, secrets of addresses hidden."""

import re
from collections.abc import Sequence

# C0, DEL and C1; and what ends a line or turns the direction of what follows
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

HIDDEN = "***"
# A user, with a password or without one, in a URL; and one in an address without a scheme.
USER = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20}:/{1,2}|//)"
    r"(?:[^\s/:'\"<>]{0,1024}:(?!\d+/)[^\s'\"<>]{1,1024}|[^\s/'\"<>]{0,1024})@"
)
BARE_USER = re.compile(r"(?<![\w./@])[\w.%+~-]{1,256}:[^\s/'\"<>:]{1,1024}@(?=[\w\[])")
_QUERY = re.compile(
    r"(?P<url>[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s?#'\"<>]{0,2048})(?P<mark>[?#])[^\s'\"<>]+"
)


def printable(name: str) -> str:
    """The name as one line: control characters and bytes that are not UTF-8 are escaped."""
    try:
        text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # halves of surrogate pairs, from JSON
        text = name.encode("utf-8", "backslashreplace").decode()
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def redact(text: str) -> str:
    """The text with the users, passwords and queries of all addresses in it hidden."""
    text = USER.sub(lambda found: f"{found['scheme']}{HIDDEN}@", text)
    text = BARE_USER.sub(f"{HIDDEN}@", text)
    return _QUERY.sub(lambda found: f"{found['url']}{found['mark']}{HIDDEN}", text)


def some_of(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" and {len(names) - 1:,} more" if names[1:] else "")
