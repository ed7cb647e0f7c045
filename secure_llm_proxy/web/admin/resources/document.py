"""The OpenAPI document of the management API."""

from __future__ import annotations

from pydantic import ConfigDict

from secure_llm_proxy.web.admin.frame import Call, Endpoint, Nothing, Told, endpoint
from secure_llm_proxy.web.admin.openapi import openapi_document


class Document(Told):
    """An OpenAPI 3.1 document."""

    model_config = ConfigDict(extra="allow", frozen=True)


def read_document(_call: Call, _asked: Nothing) -> Document:
    return Document.model_validate(openapi_document())


ENDPOINTS: dict[str, Endpoint] = {"read_document": endpoint(read_document, Nothing, Document)}
