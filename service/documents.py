"""Files that the service writes for itself and reads back: typed, bounded and versioned.

A file in storage may be damaged, older, or from another program. `Document.from_bytes` checks it.
"""

import json
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from service.errors import DataError

LARGEST_BYTES = 256 << 20
"""No document is larger: the index of a hundred million samples has a head of some megabytes."""

Clock = Annotated[int, Field(ge=0, le=2**62)]
"""Real images that the discriminator has been shown."""
Count = Annotated[int, Field(ge=0, le=2**62)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal digits."""
Plain = dict[str, JsonValue]


class Document(BaseModel):
    """The content of a JSON file. Subclasses name their `version` as a Literal and their `remedy`.

    Fields are checked strictly: text is not read as a number, and unknown fields are errors.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())

    remedy: ClassVar[str] = "restore it from a copy"

    def to_bytes(self) -> bytes:
        """The file: indented JSON. `from_bytes` gives an equal document.

        DataError if a name in it is not valid UTF-8, as a file name may be.
        """
        content = json.dumps(self.model_dump(), indent=2, ensure_ascii=False)
        try:
            return content.encode()
        except UnicodeEncodeError as error:
            name = content[content.rindex('"', 0, error.start) + 1 : content.index('"', error.end)]
            raise DataError(f"{name!a}: not valid UTF-8, so it cannot be written; rename it") from error

    @classmethod
    def from_bytes(cls, data: bytes, address: str) -> Self:
        """The document in the file at `address`; DataError names the file, the field and the remedy."""
        if len(data) > LARGEST_BYTES:
            size = f"{len(data)} bytes, over the limit of {LARGEST_BYTES}"
            raise DataError(f"{address}: damaged ({size}); {cls.remedy}")
        try:
            document = cls.model_validate_json(data)
            if "version" not in document.model_fields_set:
                raise ValueError("no version")
        except ValueError as error:  # pydantic's errors are of this kind
            raise DataError(f"{address}: {cls._problem(data, error)}") from error
        return document

    @classmethod
    def _problem(cls, data: bytes, error: ValueError) -> str:
        """What is wrong with the file and what to do, in words."""
        expected = cls.model_fields["version"].default
        version = _version(data, expected)
        if version != expected:
            content = "no version" if version is None else f"version {json.dumps(version)[:20]}"
            return (
                f"has {content}, but this service reads version {expected}; use the version of the"
                " service that wrote it, or start anew elsewhere"
            )
        return f"damaged ({reason(error)}); {cls.remedy}"


def reason(error: Exception) -> str:
    """What an error says, in one line: the first of pydantic's findings with its field."""
    if not isinstance(error, ValidationError):
        return str(error).partition("\n")[0]
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"]


def _version(data: bytes, otherwise: object) -> object:
    """The version in a JSON object, None if it has none; `otherwise` if the data is no JSON object."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return otherwise
    return content.get("version") if isinstance(content, dict) else otherwise
