"""What belongs to an organisation, as conditions on a column of somebody else's table: names only, no rows leave this room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sqlalchemy import ColumnElement, exists, or_

from secure_llm_proxy.identity.models import ApiKeyRow, OrganisationRow, ProjectRow, UserRow
from secure_llm_proxy.identity.names import DEFAULT_ORGANISATION_ID

Named = Literal["user", "key", "project", "thing"]
_Belongs = Callable[[ColumnElement[str]], ColumnElement[bool]]


class OrganisationReach:
    """One organisation. A `user` or `project` is named by id, a `key` by its public part, a `thing` by any of those, or by the
    id of a key or organisation. What nobody knows (any more) is nobody's: neither own nor foreign.
    """

    def __init__(self, organisation_id: str) -> None:
        self._organisation_id = organisation_id

    @property
    def runs_deployment(self) -> bool:
        return self._organisation_id == DEFAULT_ORGANISATION_ID

    def own(self, kind: Named, reference: ColumnElement[str | None]) -> ColumnElement[bool]:
        return _named(kind, reference, lambda owner: owner == self._organisation_id)

    def foreign(self, kind: Named, reference: ColumnElement[str | None]) -> ColumnElement[bool]:
        return _named(kind, reference, lambda owner: owner != self._organisation_id)


def _named(kind: Named, reference: ColumnElement[str | None], belongs: _Belongs) -> ColumnElement[bool]:
    user = exists().where(UserRow.id == reference, belongs(UserRow.organisation_id.expression))
    if kind == "user":
        return user
    project = exists().where(ProjectRow.id == reference, belongs(ProjectRow.organisation_id.expression))
    if kind == "project":
        return project
    keys_user = ApiKeyRow.user.has(belongs(UserRow.organisation_id.expression))
    key = exists().where(ApiKeyRow.kid == reference, keys_user)
    if kind == "key":
        return key
    key_by_id = exists().where(ApiKeyRow.id == reference, keys_user)
    organisation = exists().where(OrganisationRow.id == reference, belongs(OrganisationRow.id.expression))
    return or_(user, project, key, key_by_id, organisation)
