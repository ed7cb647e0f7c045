"""Who is stopped at once, everywhere, running answers included.

No step-up to stop somebody: what burns must not wait for an app. Letting go again waits for it: a stolen administration key
must not undo what stopped its like.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import OperatorError, PermissionDenied
from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, KillSubject, KillSwitch, Role, may_act_on
from secure_llm_proxy.identity.kill_switches import EVERYTHING
from secure_llm_proxy.web.admin.frame import (
    Body,
    Call,
    Endpoint,
    Identifier,
    Moment,
    Nothing,
    Told,
    endpoint,
    foreign,
    may_not_touch,
)
from secure_llm_proxy.web.admin.paging import PageQuery, page_of
from secure_llm_proxy.web.admin.resources.users import touchable_user

Reason = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class KillSwitchTold(Told):
    """`id` is that of the key, user, project or organisation that is stopped, or `everything`."""

    id: str
    kind: str
    name: str
    organisation_id: str | None
    reason: str
    created_by: str
    created_at: Moment


class KillSwitchPage(Told):
    items: list[KillSwitchTold]
    next_cursor: str | None


class NewKillSwitch(Body):
    subject: Identifier = Field(description="An id of a key, user, project or organisation, or `everything`.")
    reason: Reason


def list_kill_switches(call: Call, asked: PageQuery) -> KillSwitchPage:
    after = asked.after()
    found = call.read(call.house.kill_switches.listing)
    told = sorted((_told(switch) for switch in found if _sees(call, switch.subject)), key=lambda each: each.id)
    following = [each for each in told if after is None or each.id > after]
    items, cursor = page_of(following[: asked.limit + 1], asked.limit)
    return KillSwitchPage(items=items, next_cursor=cursor)


def kill(call: Call, asked: NewKillSwitch) -> KillSwitchTold:
    subject = call.read(lambda session: _touchable(call, session, asked.subject))
    made = call.change(
        "kill",
        subject.id,
        lambda session: call.house.kill_switches.kill(
            session, _touchable(call, session, subject.id).id, asked.reason, call.actor.name_in_log
        ),
        clear={"kind": subject.kind},
        body={"name": subject.name, "reason": asked.reason},
    )
    call.announce((subject.id,))
    return _told(made)


def unkill(call: Call, _asked: Nothing) -> KillSwitchTold:
    """What another kill switch still stops stays stopped."""
    subject = call.read(lambda session: _stopped(call, session))
    ended = call.change(
        "unkill",
        subject.id,
        lambda session: call.house.kill_switches.unkill(session, _stopped(call, session).id),
        clear={"kind": subject.kind},
        body={"name": subject.name},
    )
    call.announce((subject.id,))
    return _told(ended)


def _touchable(call: Call, session: Session, subject_id: str) -> KillSubject:
    """The subject in reach that the actor may stop, by its id. Raises `NotFound` or `PermissionDenied`."""
    try:
        found = call.house.kill_switches.find_subject(session, subject_id)
    except OperatorError:
        raise foreign() from None
    if found.id != subject_id:
        raise foreign()
    _require_may(call, session, found)
    return found


def _stopped(call: Call, session: Session) -> KillSubject:
    subject_id = call.path["subject"]
    for switch in call.house.kill_switches.listing(session):
        if switch.subject.id == subject_id and _sees(call, switch.subject):
            _require_may(call, session, switch.subject)
            return switch.subject
    raise foreign()


def _require_may(call: Call, session: Session, subject: KillSubject) -> None:
    if subject.organisation_id is None:
        # Everything, or what is gone and belonged to nobody knows whom: that is for who runs the deployment.
        if not _runs_deployment(call):
            raise PermissionDenied("That is for people of the organisation that runs this deployment.")
        return
    if call.actor.reach not in {None, subject.organisation_id}:
        raise foreign()
    if subject.kind == "user":
        touchable_user(call, session, subject.id)
    elif subject.kind == "organisation" and not may_act_on(call.actor.role, Role.ADMIN):
        # It would stop the administrators.
        raise may_not_touch()
    elif subject.kind == "key":
        touchable_user(call, session, call.house.keys.find_api_key(session, subject.id).user_id)


def _sees(call: Call, subject: KillSubject) -> bool:
    if subject.organisation_id is None:
        return subject.id == EVERYTHING or _runs_deployment(call)
    return call.actor.reach in {None, subject.organisation_id}


def _runs_deployment(call: Call) -> bool:
    return call.actor.reach in {None, DEFAULT_ORGANISATION_ID}


def _told(switch: KillSwitch) -> KillSwitchTold:
    subject = switch.subject
    return KillSwitchTold(
        id=subject.id,
        kind=subject.kind,
        name=subject.name,
        organisation_id=subject.organisation_id,
        reason=switch.reason,
        created_by=switch.created_by,
        created_at=switch.created_at,
    )


ENDPOINTS: dict[str, Endpoint] = {
    "list_kill_switches": endpoint(list_kill_switches, PageQuery, KillSwitchPage),
    "kill": endpoint(kill, NewKillSwitch, KillSwitchTold, status=201, also=(404,)),
    "unkill": endpoint(unkill, Nothing, KillSwitchTold),
}
