"""What all operations of the management API share: the request is read strictly, the answer has a declared form.

An endpoint is a function of a `Call` and of what was asked (a model of the query for GET and DELETE, of the body otherwise);
it returns a model. Everything else is here: unknown members and parameters are refused, `If-Match` is read, `ETag` is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Annotated, Any, TypeVar

from flask import Blueprint, Response, request
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StrictInt, StringConstraints, ValidationError
from sqlalchemy.orm import Session

from secure_llm_proxy.audit import Change
from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    InvalidRequest,
    NotFound,
    OperatorError,
    PermissionDenied,
    PreconditionFailed,
    client_error_of,
)
from secure_llm_proxy.settings import LimitSettings
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import EventName
from secure_llm_proxy.web.admin.actor import Actor
from secure_llm_proxy.web.admin.house import ManagementHouse, the_management
from secure_llm_proxy.web.admin.loader import the_actor
from secure_llm_proxy.web.admin.operations import OPERATIONS, PREFIX, Operation
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.flask_shell import arrival_of_request
from secure_llm_proxy.web.inbound import read_body
from secure_llm_proxy.web.wire import invalid

T = TypeVar("T")
Asked = TypeVar("Asked", bound=BaseModel)
Given = TypeVar("Given", bound=BaseModel)

BODY_BYTES_MAX = 256 * 1024
_ETAG = re.compile(r'"([1-9][0-9]{0,8})"\Z')
_IDENTIFIER = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")

Moment = Annotated[
    datetime, PlainSerializer(rfc3339, return_type=Annotated[str, Field(json_schema_extra={"format": "date-time"})])
]
Identifier = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$", strict=True)]


class Body(BaseModel):
    """What a client sends: an unknown member is an error, and types are not guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Versioned(Body):
    """A change of something that has a version: it may be given here instead of in `If-Match`."""

    version: Annotated[StrictInt, Field(ge=1, le=999_999_999)] | None = Field(
        default=None, description="The version that was read. When it is no longer the newest, the answer is 412."
    )


class Query(BaseModel):
    """Parameters of a query; their values are text, and each may stand once."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Told(BaseModel):
    """What we answer; made of the rooms' frozen values by name."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class Nothing(Query):
    """No parameters."""


class Done(Told):
    """It is done, and there is nothing to tell."""

    status: str = "success"


@dataclass(frozen=True, slots=True)
class Call:
    """One request of one actor. `path` are the identifiers in the path, `if_match` the version that `If-Match` names."""

    actor: Actor
    house: ManagementHouse
    arrival: Arrival
    path: Mapping[str, str]
    if_match: int | None = None

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction; what an operator would be told is told the client."""
        try:
            return self.house.database.run(work)
        except OperatorError as error:
            raise client_error_of(error) from error

    def change(
        self,
        action: str,
        subject: str,
        work: Callable[[Session], T],
        *,
        clear: Mapping[str, ClearValue] | None = None,
        body: Mapping[str, object] | None = None,
        event: EventName = EventName.ADMIN_CHANGE,
    ) -> T:
        """Run `work` in one transaction after its intent is on record; then its result is recorded, too."""
        database = self.house.database
        return self.recorded(action, subject, lambda: database.run(work), clear=clear, body=body, event=event)

    def recorded(
        self,
        action: str,
        subject: str,
        apply: Callable[[], T],
        *,
        clear: Mapping[str, ClearValue] | None = None,
        body: Mapping[str, object] | None = None,
        event: EventName = EventName.ADMIN_CHANGE,
    ) -> T:
        """Call `apply` after its intent is on record; then its result is recorded, too."""
        change = Change(
            action,
            subject,
            self.actor.name_in_log,
            {**self._provenance(), **(clear or {})},
            {"from": {"address": self.arrival.address}, **(body or {})},
            event,
        )
        return self.house.change(change, apply)

    def announce(self, kids: Iterable[str]) -> None:
        """Workers ask again about these keys; those that don't hear of it do so within API_KEY_CACHE_S."""
        for kid in kids:
            self.house.announce(kid)

    def expected_version(self, asked: Versioned | None = None) -> int | None:
        """The version that the client has seen, if it said so. Raises `InvalidRequest` when it names two."""
        told = None if asked is None else asked.version
        if told is not None and self.if_match is not None and told != self.if_match:
            raise InvalidRequest("`version` and `If-Match` differ.", param="version")
        return self.if_match if told is None else told

    def require_version(self, asked: Versioned | None, version: int) -> None:
        """Raises `PreconditionFailed` when the client has seen another version than `version`."""
        expected = self.expected_version(asked)
        if expected is not None and expected != version:
            raise PreconditionFailed(f"It is at version {version} now.")

    def _provenance(self) -> dict[str, ClearValue]:
        told: dict[str, ClearValue] = {"req": self.arrival.exchange_id}
        if self.actor.key_id is not None:
            told["key"] = self.actor.key_id
        if self.actor.session is not None:
            told["ses"] = self.actor.session.id
        return told


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What an operation takes, gives and does. `conflicts`: it may answer 409; `versioned`: it reads `If-Match` (412)."""

    run: Callable[[Call, Any], BaseModel]
    takes: type[BaseModel]
    gives: type[BaseModel]
    status: int = 200
    conflicts: bool = False
    versioned: bool = False
    also: frozenset[int] = field(default=frozenset())


def endpoint(
    run: Callable[[Call, Asked], Given],
    takes: type[Asked],
    gives: type[Given],
    *,
    status: int = 200,
    conflicts: bool = False,
    versioned: bool = False,
    also: tuple[int, ...] = (),
) -> Endpoint:
    return Endpoint(run, takes, gives, status, conflicts, versioned, frozenset(also))


def make_management_doors(endpoints: Mapping[str, Endpoint]) -> Blueprint:
    doors = Blueprint("management", __name__, url_prefix=PREFIX)
    for operation in OPERATIONS:
        doors.add_url_rule(
            operation.path,
            operation.name,
            _view_of(operation, endpoints[operation.name]),
            methods=[operation.method],
            provide_automatic_options=False,
        )
    return doors


def _view_of(operation: Operation, found: Endpoint) -> Callable[..., Response]:
    def answer(**path: str) -> Response:
        return _perform(operation, found, path)

    return answer


def _perform(operation: Operation, found: Endpoint, path: Mapping[str, str]) -> Response:
    arrival = arrival_of_request()
    for value in path.values():
        if _IDENTIFIER.match(value) is None:
            # What can't be an identifier names nothing; PostgreSQL would stumble over a NUL.
            raise NotFound("There is nothing of that name.")
    call = Call(the_actor(), the_management(), arrival, path, _if_match(arrival) if found.versioned else None)
    asked = (
        asked_in_query(found.takes) if operation.method in {"GET", "DELETE"} else asked_in_body(found.takes, arrival)
    )
    given = found.run(call, asked)
    response = Response(given.model_dump_json().encode(), found.status, content_type="application/json")
    if isinstance(version := getattr(given, "version", None), int):
        response.headers["ETag"] = f'"{version}"'
    return response


def asked_in_body(model: type[Asked], arrival: Arrival) -> Asked:
    """The body as `model`. Raises `InvalidRequest` that names the member."""
    limits = _limits(arrival.web.settings.limits)
    body = strict_json.loads_object(read_body(arrival.environ, limits, None))
    try:
        # From JSON, where pydantic's strict mode takes a moment from text, which it must.
        return model.model_validate_json(strict_json.dumps(body))
    except ValidationError as error:
        raise _refusal(error) from None


def asked_in_query(model: type[Asked]) -> Asked:
    """The query's parameters as `model`. Raises `InvalidRequest` that names the parameter."""
    values: dict[str, str] = {}
    for name, given in request.args.lists():
        if len(given) > 1:
            raise InvalidRequest("A parameter stands there more than once.", param=_harmless(name))
        values[name] = given[0]
        if "\x00" in given[0]:
            raise InvalidRequest("A parameter holds a NUL character.", param=_harmless(name))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None


@cache
def _limits(limits: LimitSettings) -> LimitSettings:
    return limits.model_copy(update={"body_bytes_max": min(limits.body_bytes_max, BODY_BYTES_MAX)})


def _refusal(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "extra_forbidden":
        name = _harmless(str(first["loc"][-1]))
        return InvalidRequest(f"There is no `{name}` here.", param=name)
    return invalid(error)


def _harmless(name: str) -> str:
    return name[:64].encode("unicode_escape").decode("ascii")


def _if_match(arrival: Arrival) -> int | None:
    """The version in `If-Match` (RFC 9110 §13.1.1): one strong entity tag of ours, or `*`, which every version matches."""
    told: str = arrival.environ.get("HTTP_IF_MATCH", "").strip()
    if told in {"", "*"}:
        return None
    found = _ETAG.match(told)
    if found is None:
        raise InvalidRequest("`If-Match` is not the `ETag` of an answer.", param="If-Match")
    return int(found[1])


def foreign() -> NotFound:
    """For what is not there and what is somebody else's alike: which of both it is, is nobody's business."""
    return NotFound("There is nothing of that name.")


def may_not_touch() -> PermissionDenied:
    return PermissionDenied("You may not act on a user of that role.", code=ErrorCode.FORBIDDEN)
