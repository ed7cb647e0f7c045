"""The code behind every operation of the table, and the document made of both."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import ConfigDict

from secure_llm_proxy.web.admin.frame import Call, Endpoint, Nothing, Told, endpoint
from secure_llm_proxy.web.admin.openapi import make_document
from secure_llm_proxy.web.admin.operations import OPERATIONS
from secure_llm_proxy.web.admin.resources import (
    address_rules,
    audit_records,
    keys,
    kill_switches,
    me,
    organisations,
    projects,
    sessions,
    users,
)


class Document(Told):
    """An OpenAPI 3.1 document."""

    model_config = ConfigDict(extra="allow", frozen=True)


def read_document(_call: Call, _asked: Nothing) -> Document:
    return Document.model_validate(openapi_document())


ENDPOINTS: dict[str, Endpoint] = {
    "read_document": endpoint(read_document, Nothing, Document),
    **me.ENDPOINTS,
    **users.ENDPOINTS,
    **keys.ENDPOINTS,
    **projects.ENDPOINTS,
    **organisations.ENDPOINTS,
    **sessions.ENDPOINTS,
    **address_rules.ENDPOINTS,
    **audit_records.ENDPOINTS,
    **kill_switches.ENDPOINTS,
}


@cache
def openapi_document() -> dict[str, Any]:
    return make_document(OPERATIONS, ENDPOINTS)
