"""The OpenAPI 3.1 document, made of the table of operations and of the models that the operations really use.

Source: OpenAPI 3.1.1 (2024-10-24), JSON Schema 2020-12.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from secure_llm_proxy import __version__
from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.web.admin.frame import Endpoint
from secure_llm_proxy.web.admin.operations import PREFIX, Operation

_PATH_PART = re.compile(r"<(\w+)>")
_DEFINITIONS = "#/components/schemas/{model}"
_MEANINGS = {
    400: "The request is malformed; `field` names what is wrong.",
    401: "Nobody has logged in, or the credential is not good (any more).",
    403: "Not permitted; `step_up_required` asks for the second factor.",
    404: "There is nothing of that name within reach.",
    405: "What stands in the path is no identifier, and leads to something else.",
    408: "The body did not arrive in time.",
    409: "It contradicts what is there.",
    412: "It has another version than the one that was read.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    421: "This server does not answer for that host name.",
    429: "Too many requests; `Retry-After` tells when to come back.",
    500: "A defect of ours; the request id finds it in the log.",
    503: "A part that is needed is away; nothing was changed.",
}
_ALWAYS = frozenset({400, 401, 403, 421, 429, 500, 503})


def make_document(operations: Sequence[Operation], endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    taken = {endpoints[operation.name].takes for operation in operations if _has_body(operation)}
    given = {endpoints[operation.name].gives for operation in operations}
    names, schema = models_json_schema(
        # What is taken and what is given may differ in form (a moment), so each is described in its own mode.
        [
            *((model, "validation") for model in sorted(taken, key=_name)),
            *((model, "serialization") for model in sorted(given, key=_name)),
        ],
        ref_template=_DEFINITIONS,
    )
    references: dict[type, Any] = {model: reference for (model, _mode), reference in names.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = PREFIX + _PATH_PART.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _described(
            operation, endpoints[operation.name], references
        )
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Secure LLM Proxy: management API",
            "version": __version__,
            "description": "Users, keys, projects and what guards them. Changes are recorded before they are made.",
            "license": {"name": "Open edition"},
        },
        "servers": [{"url": "/"}],
        "security": [{"session_token": []}, {"session_header": []}, {"session_cookie": [], "csrf_token": []}],
        "paths": paths,
        "components": {
            "schemas": {**schema.get("$defs", {}), "Error": _error_schema()},
            "responses": {_response_name(status): _error_response(status) for status in _MEANINGS},
            "securitySchemes": {
                "session_token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Of POST /auth/login, or slp_adm_…",
                },
                "session_header": {"type": "apiKey", "in": "header", "name": "X-Session-Token"},
                "session_cookie": {"type": "apiKey", "in": "cookie", "name": "__Host-slp_sid"},
                "csrf_token": {"type": "apiKey", "in": "header", "name": "X-CSRF-Token"},
            },
        },
    }


def statuses_of(operation: Operation, found: Endpoint) -> frozenset[int]:
    """Every error status that the operation may answer."""
    told = set(_ALWAYS)
    if "<" in operation.path:
        told |= {404, 405}
    if _has_body(operation):
        told |= {408, 413, 415}
    if found.conflicts:
        told.add(409)
    if found.versioned:
        told.add(412)
    return frozenset(told | found.also)


def _described(operation: Operation, found: Endpoint, references: dict[type, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.resource],
        "responses": {
            str(found.status): {
                "description": "Done." if operation.method != "GET" else "As asked.",
                "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
                "content": {"application/json": {"schema": references[found.gives]}},
            },
            **{
                str(status): {"$ref": f"#/components/responses/{_response_name(status)}"}
                for status in sorted(statuses_of(operation, found))
            },
        },
    }
    needs = "Permission: " + (operation.permission or "whoever has logged in")
    told["description"] = needs + (". Takes a second factor shown within 5 minutes." if operation.step_up else ".")
    if parameters := [*_path_parameters(operation), *_query_parameters(operation, found), *_if_match(found)]:
        told["parameters"] = parameters
    if _has_body(operation):
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": references[found.takes]}}}
    return told


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    schema = {"type": "string", "pattern": "^[0-9A-Za-z_-]{1,64}$"}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema} for name in _PATH_PART.findall(operation.path)
    ]


def _query_parameters(operation: Operation, found: Endpoint) -> list[dict[str, Any]]:
    if _has_body(operation):
        return []
    schema = _without_references(found.takes.model_json_schema())
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "schema": _given_or_left_out({key: value for key, value in each.items() if key != "title"}),
        }
        for name, each in schema.get("properties", {}).items()
    ]


def _without_references(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter stands by itself: what it refers to (an enumeration) is written where it is used."""
    definitions: dict[str, Any] = schema.pop("$defs", {})

    def resolved(part: object) -> object:
        if isinstance(part, list):
            return [resolved(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolved(definitions[part["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in part.items()}

    told = resolved(schema)
    assert isinstance(told, dict)
    return told


def _given_or_left_out(schema: dict[str, Any]) -> dict[str, Any]:
    """In a query there is no null: a parameter is left out."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) != 1:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf" and not (key == "default" and value is None)}
    return {**kinds[0], **rest}


def _if_match(found: Endpoint) -> list[dict[str, Any]]:
    if not found.versioned:
        return []
    schema = {"type": "string", "pattern": r'^("[1-9][0-9]{0,8}"|\*)$'}
    return [{"name": "If-Match", "in": "header", "required": False, "schema": schema}]


def _has_body(operation: Operation) -> bool:
    return operation.method not in {"GET", "DELETE"}


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _response_name(status: int) -> str:
    return f"Error{status}"


def _error_response(status: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "description": _MEANINGS[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if status in {429, 503}:
        told["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Whole seconds."}}
    return told


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                # What the worker or nginx refuse by themselves, before it is anybody's, has these four.
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": text,
                    "code": {"type": "string", "enum": [code.value for code in ErrorCode]},
                    "field": text,
                    "hint": text,
                    "docs_url": {"type": "string"},
                },
            },
            "retry_after": {"type": "integer"},
        },
    }
