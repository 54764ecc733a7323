"""What the selector's files have in common: the types of their fields, and how they are read."""

from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fathom.errors import ArtefactError, brief

Floats = NDArray[np.float64]
Depth = Annotated[int, Field(ge=1, le=32)]
#: With depth 0, the counting exit.
AnyDepth = Annotated[int, Field(ge=0, le=32)]
Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(ge=-1e12, le=1e12)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Form = TypeVar("Form")


def validated(adapter: TypeAdapter[Form], value: Any, *, kind: str, where: str, newest: int, remedy: str) -> Form:
    """A file's JSON as what it is; raises ArtefactError, in one line, for a newer schema or anything else.

    ``kind``: what the file is, and ``where`` its name. ``remedy``: what makes a new one.
    """
    found = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(found, int) and found > newest:
        newer = f"has schema_version {brief(found)}, newer than {newest}"
        raise ArtefactError(f"{where}: this {kind} {newer}; upgrade Fathom")
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key, words = brief(".".join(map(str, first["loc"]))) or "content", brief(first["msg"], 100)
        raise ArtefactError(f"{where}: not a {kind}: {key}: {words}; {remedy}") from None
