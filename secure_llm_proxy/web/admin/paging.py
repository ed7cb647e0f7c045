"""Long lists in pages. A cursor is the identifier after which the next page begins: identifiers sort by creation time."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Protocol, TypeVar

from pydantic import Field

from secure_llm_proxy.foundation.errors import InvalidRequest
from secure_llm_proxy.web.admin.frame import Query

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
_MARK = "1:"
_IDENTIFIER = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")


class Identified(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=Identified)


class PageQuery(Query):
    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX, description="Most items in one answer.")] = LIMIT_DEFAULT
    cursor: Annotated[str, Field(max_length=128, description="`next_cursor` of the page before.")] | None = None

    def after(self) -> str | None:
        """The identifier after which this page begins. Raises `InvalidRequest` for a cursor that is none of ours."""
        if self.cursor is None:
            return None
        try:
            text = base64.urlsafe_b64decode(self.cursor.encode("ascii") + b"==").decode("ascii")
        except (binascii.Error, ValueError):
            text = ""
        if not text.startswith(_MARK) or _IDENTIFIER.match(text[len(_MARK) :]) is None:
            raise InvalidRequest("That is no cursor of ours.", param="cursor")
        return text[len(_MARK) :]


def page_of(items: Sequence[Item], limit: int) -> tuple[list[Item], str | None]:
    """The first `limit` of `items`, of which there is one more when another page follows, and the next page's cursor."""
    shown = list(items[:limit])
    if len(items) <= limit or not shown:
        return shown, None
    return shown, base64.urlsafe_b64encode((_MARK + shown[-1].id).encode()).decode().rstrip("=")
