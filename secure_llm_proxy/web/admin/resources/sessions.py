"""Sessions of the organisation's people: seen and ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from secure_llm_proxy.identity import LiveSession, may_act_on
from secure_llm_proxy.vocabulary.events import EventName
from secure_llm_proxy.web.admin.frame import Call, Done, Endpoint, Nothing, Told, endpoint, foreign, may_not_touch
from secure_llm_proxy.web.admin.paging import PageQuery, page_of
from secure_llm_proxy.web.auth.wire import SessionTold


class SessionQuery(PageQuery):
    user_id: (
        Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$"), Field(description="Only this user's.")]
        | None
    ) = None


class SessionPage(Told):
    items: list[SessionTold]
    next_cursor: str | None


def list_sessions(call: Call, asked: SessionQuery) -> SessionPage:
    after = asked.after()
    found = call.read(lambda session: _in_reach(call, session, asked.user_id))
    following = sorted((live for live in found if after is None or live.id > after), key=lambda live: live.id)
    items, cursor = page_of(following[: asked.limit + 1], asked.limit)
    return SessionPage(items=[SessionTold.model_validate(live) for live in items], next_cursor=cursor)


def end_session(call: Call, _asked: Nothing) -> Done:
    session_id = call.path["session_id"]
    found = call.read(lambda session: [live for live in _in_reach(call, session, None) if live.id == session_id])
    if not found:
        raise foreign()
    live = found[0]
    if live.user_id != call.actor.user_id and not may_act_on(call.actor.role, live.role):
        raise may_not_touch()
    call.change(
        "session.end",
        session_id,
        lambda session: call.house.sessions.end(session, session_id, "ended_by_administrator"),
        clear={"user": live.user_id},
        event=EventName.SESSION_ENDED,
    )
    return Done()


def _in_reach(call: Call, session: Session, user_id: str | None) -> list[LiveSession]:
    reach = call.actor.reach
    return [
        live for live in call.house.sessions.listing(session, user_id) if reach is None or live.organisation_id == reach
    ]


ENDPOINTS: dict[str, Endpoint] = {
    "list_sessions": endpoint(list_sessions, SessionQuery, SessionPage),
    "end_session": endpoint(end_session, Nothing, Done),
}
