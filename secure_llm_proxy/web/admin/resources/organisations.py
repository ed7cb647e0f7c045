"""Organisations: an owner's are all, everybody else sees the own one."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.errors import NotFoundError
from secure_llm_proxy.foundation.identifiers import new_organisation_id
from secure_llm_proxy.identity import Organisation
from secure_llm_proxy.web.admin.frame import Body, Call, Endpoint, Moment, Nothing, Told, Versioned, endpoint, foreign
from secure_llm_proxy.web.admin.paging import PageQuery, page_of

Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class OrganisationTold(Told):
    id: str
    name: str
    version: int
    created_at: Moment
    updated_at: Moment


class OrganisationQuery(PageQuery):
    name_prefix: Name | None = None


class OrganisationPage(Told):
    items: list[OrganisationTold]
    next_cursor: str | None


class NewOrganisation(Body):
    name: Name


class OrganisationChange(Versioned):
    name: Name


def list_organisations(call: Call, asked: OrganisationQuery) -> OrganisationPage:
    found = call.read(
        lambda session: call.house.organisations.list_organisations(
            session,
            after=asked.after(),
            limit=asked.limit + 1,
            name_prefix=asked.name_prefix,
            organisation_id=call.actor.reach,
        )
    )
    items, cursor = page_of(found, asked.limit)
    return OrganisationPage(items=[OrganisationTold.model_validate(each) for each in items], next_cursor=cursor)


def read_organisation(call: Call, _asked: Nothing) -> OrganisationTold:
    return OrganisationTold.model_validate(call.read(lambda session: _in_reach(call, session)))


def create_organisation(call: Call, asked: NewOrganisation) -> OrganisationTold:
    organisation_id = new_organisation_id()
    made = call.change(
        "organisation.create",
        organisation_id,
        lambda session: call.house.organisations.create_organisation(
            session, name=asked.name, organisation_id=organisation_id
        ),
        body={"name": asked.name},
    )
    return OrganisationTold.model_validate(made)


def rename_organisation(call: Call, asked: OrganisationChange) -> OrganisationTold:
    before = call.read(lambda session: _in_reach(call, session))
    call.require_version(asked, before.version)
    version = call.expected_version(asked)
    changed = call.change(
        "organisation.rename",
        before.id,
        lambda session: call.house.organisations.rename_organisation(session, before.id, asked.name, version=version),
        body={"name": asked.name, "before": before.name},
    )
    return OrganisationTold.model_validate(changed)


def _in_reach(call: Call, session: Session) -> Organisation:
    organisation_id = call.path["organisation_id"]
    try:
        found = call.house.organisations.find_organisation(session, organisation_id)
    except NotFoundError:
        raise foreign() from None
    if found.id != organisation_id or call.actor.reach not in {None, found.id}:
        raise foreign()
    return found


ENDPOINTS: dict[str, Endpoint] = {
    "list_organisations": endpoint(list_organisations, OrganisationQuery, OrganisationPage),
    "read_organisation": endpoint(read_organisation, Nothing, OrganisationTold),
    "create_organisation": endpoint(create_organisation, NewOrganisation, OrganisationTold, status=201, conflicts=True),
    "rename_organisation": endpoint(
        rename_organisation, OrganisationChange, OrganisationTold, conflicts=True, versioned=True
    ),
}
