"""What the page asks for, and what the client is given for it."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fathom.errors import InvalidRequestError, brief

#: Depths that are asked for by number are there to be compared, so the deadline is not theirs.
PATIENCE_S = 5.0


class Question(BaseModel):
    """A history or a user, and what is wanted; ids, names and lists are checked by the server.

    ``depth``: for reasons, the depth that is asked about.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    items: tuple[str, ...] = ()
    user_id: str = ""
    bundle: str = ""
    profile: str = ""
    k: Annotated[int, Field(ge=1, le=100)] = 10
    deadline_ms: Annotated[float, Field(gt=0, le=60_000)] = 1000.0
    categories: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    block_lists: tuple[str, ...] = ()
    include_seen: bool = False
    strict: bool = False
    depth: Annotated[int, Field(ge=0, le=1000)] | None = None

    @classmethod
    def read(cls, body: bytes) -> Self:
        """The question in a JSON text; raises InvalidRequestError for what cannot be one."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the request"
            raise InvalidRequestError(f"{brief(where)}: {brief(first['msg'], 120)}") from None

    @property
    def deadline_s(self) -> float:
        """The deadline of the answer as served."""
        return self.deadline_ms / 1000

    def options(self, depth: int | None, *, reasons: bool = False) -> dict[str, Any]:
        """The fields of ``fathom.client.Query`` for one depth; None: the depth that the server chooses."""
        return {**self.model_dump(exclude={"deadline_ms", "depth"}), "depth": depth, "reasons": reasons}
