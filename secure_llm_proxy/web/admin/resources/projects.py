"""Projects of the actor's organisation, and their members."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictInt, StringConstraints
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import ConflictError, NotFoundError
from secure_llm_proxy.foundation.identifiers import new_project_id
from secure_llm_proxy.identity import Kid, Member, Project, ProjectChanges, ProjectStatus, Role
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.web.admin.frame import (
    Body,
    Call,
    Done,
    Endpoint,
    Identifier,
    Moment,
    Nothing,
    Told,
    Versioned,
    endpoint,
    foreign,
)
from secure_llm_proxy.web.admin.paging import PageQuery, page_of
from secure_llm_proxy.web.admin.resources.users import require_organisation, touchable_user

Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Rate = Annotated[StrictInt, Field(ge=1, le=1_000_000)]
_InQuery = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$")]


class ProjectTold(Told):
    id: str
    organisation_id: str
    name: str
    status: ProjectStatus
    requests_per_minute: int | None
    version: int
    created_at: Moment
    updated_at: Moment


class MemberTold(Told):
    project_id: str
    user_id: str
    username: str
    role: Role
    member_since: Moment

    @property
    def id(self) -> str:
        """What a page of members is continued after."""
        return self.user_id


class ProjectQuery(PageQuery):
    name_prefix: Name | None = None
    status: ProjectStatus | None = None
    member_id: _InQuery | None = None


class ProjectPage(Told):
    items: list[ProjectTold]
    next_cursor: str | None


class MemberPage(Told):
    items: list[MemberTold]
    next_cursor: str | None


class NewProject(Body):
    name: Name
    organisation_id: Identifier | None = Field(default=None, description="Left out: the actor's own.")
    requests_per_minute: Rate | None = None


class ProjectChange(Versioned):
    """What is left out stays; `requests_per_minute` null takes the limit away."""

    name: Name | None = None
    status: ProjectStatus | None = None
    requests_per_minute: Rate | None = None


class NewMember(Body):
    user_id: Identifier


def list_projects(call: Call, asked: ProjectQuery) -> ProjectPage:
    found = call.read(
        lambda session: call.house.organisations.list_projects(
            session,
            after=asked.after(),
            limit=asked.limit + 1,
            organisation_id=call.actor.reach,
            name_prefix=asked.name_prefix,
            status=asked.status,
            member_id=asked.member_id,
        )
    )
    items, cursor = page_of(found, asked.limit)
    return ProjectPage(items=[ProjectTold.model_validate(each) for each in items], next_cursor=cursor)


def read_project(call: Call, _asked: Nothing) -> ProjectTold:
    return ProjectTold.model_validate(call.read(lambda session: _in_reach(call, session)))


def create_project(call: Call, asked: NewProject) -> ProjectTold:
    organisation_id = asked.organisation_id or call.actor.organisation_id
    project_id = new_project_id()
    call.read(lambda session: require_organisation(call, session, organisation_id))
    made = call.change(
        "project.create",
        project_id,
        lambda session: call.house.organisations.create_project(
            session,
            organisation=organisation_id,
            name=asked.name,
            requests_per_minute=asked.requests_per_minute,
            project_id=project_id,
        ),
        clear={"org": organisation_id, "rpm": asked.requests_per_minute},
        body={"name": asked.name},
    )
    return ProjectTold.model_validate(made)


def update_project(call: Call, asked: ProjectChange) -> ProjectTold:
    before = call.read(lambda session: _in_reach(call, session))
    call.require_version(asked, before.version)
    version = call.expected_version(asked)
    changes = ProjectChanges()
    clear: dict[str, ClearValue] = {}
    if asked.name is not None:
        changes["name"] = asked.name
    if asked.status is not None:
        changes["status"] = clear["to"] = asked.status
    if "requests_per_minute" in asked.model_fields_set:
        changes["requests_per_minute"] = clear["rpm"] = asked.requests_per_minute
    changed = call.change(
        "project.update",
        before.id,
        lambda session: call.house.organisations.update_project(
            session, _in_reach(call, session).id, changes, version=version
        ),
        clear=clear,
        body={"name": asked.name, "before": before.name},
    )
    return ProjectTold.model_validate(changed)


def list_members(call: Call, asked: PageQuery) -> MemberPage:
    def find(session: Session) -> list[Member]:
        project = _in_reach(call, session)
        return call.house.organisations.members(session, project.id, after=asked.after(), limit=asked.limit + 1)

    found = [MemberTold.model_validate(member) for member in call.read(find)]
    items, cursor = page_of(found, asked.limit)
    return MemberPage(items=items, next_cursor=cursor)


def add_member(call: Call, asked: NewMember) -> MemberTold:
    project = call.read(lambda session: _in_reach(call, session))
    call.read(lambda session: touchable_user(call, session, asked.user_id))
    made = call.change(
        "project.add_member",
        project.id,
        lambda session: call.house.organisations.add_member(
            session, _in_reach(call, session).id, touchable_user(call, session, asked.user_id).id
        ),
        clear={"user": asked.user_id},
    )
    return MemberTold.model_validate(made)


def remove_member(call: Call, _asked: Nothing) -> Done:
    user_id = call.path["user_id"]
    project = call.read(lambda session: _in_reach(call, session))
    call.read(lambda session: touchable_user(call, session, user_id))

    def remove(session: Session) -> tuple[Kid, ...]:
        return call.house.organisations.remove_member(
            session, _in_reach(call, session).id, touchable_user(call, session, user_id).id
        )

    call.announce(call.change("project.remove_member", project.id, remove, clear={"user": user_id}))
    return Done()


def _in_reach(call: Call, session: Session) -> Project:
    project_id = call.path["project_id"]
    try:
        found = call.house.organisations.find_project(session, project_id, organisation_id=call.actor.reach)
    except (NotFoundError, ConflictError):
        raise foreign() from None
    if found.id != project_id or call.actor.reach not in {None, found.organisation_id}:
        raise foreign()
    return found


ENDPOINTS: dict[str, Endpoint] = {
    "list_projects": endpoint(list_projects, ProjectQuery, ProjectPage),
    "read_project": endpoint(read_project, Nothing, ProjectTold),
    "create_project": endpoint(create_project, NewProject, ProjectTold, status=201, conflicts=True, also=(404,)),
    "update_project": endpoint(update_project, ProjectChange, ProjectTold, conflicts=True, versioned=True),
    "list_members": endpoint(list_members, PageQuery, MemberPage),
    "add_member": endpoint(add_member, NewMember, MemberTold, status=201, conflicts=True),
    "remove_member": endpoint(remove_member, Nothing, Done, conflicts=True),
}
