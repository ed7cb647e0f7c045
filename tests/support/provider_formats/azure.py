"""Azure OpenAI, played: the v1 API (the deployment is the body's model) and the older one by date (it is in the path).

Source, read 2026-11-21: Azure OpenAI in Microsoft Foundry Models, REST API v1 reference; data plane inference reference of
2024-10-21; Content filtering; Quotas and error codes. Written by us; no answer is a recording.

Differs from OpenAI: the key in `api-key`, results of the content filter in every answer (a stream opens with an event of them
that has no choice), other words and codes for refusals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from tests.support.provider_formats.openai import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RESPONSES,
    OpenAIFamily,
    refuse_misfit,
)
from tests.support.provider_formats.openai import refuse as refuse_as_openai
from tests.support.provider_formats.playing import Arrived, Failure, Reply, data_event, json_reply
from tests.support.provider_formats.shapes import View
from tests.support.provider_formats.speaking import Said

MODELS = ("my-gpt-deployment", "my-gpt-deployment-thinking")
_BY_DATE = re.compile(r"/openai/deployments/(?P<deployment>[^/]+)(?P<door>/.*)")
_SAFE = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}
_BLOCKED = {**_SAFE, "violence": {"filtered": True, "severity": "high"}}

_REFUSALS: dict[Failure, tuple[int, str, str]] = {
    Failure.AUTHENTICATION: (
        401,
        "401",
        "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key.",
    ),
    Failure.PERMISSION: (403, "403", "Access denied due to Virtual Network/Firewall rules."),
    Failure.NOT_FOUND: (
        404,
        "DeploymentNotFound",
        "The API deployment for this resource does not exist. Please wait a moment and try again.",
    ),
    Failure.RATE_LIMITED: (
        429,
        "429",
        "Requests to the ChatCompletions_Create Operation have exceeded the call rate limit. Please retry after 2 seconds.",
    ),
    Failure.QUOTA: (403, "403", "Out of call volume quota. Quota will be replenished in 7 days."),
    Failure.OVERLOADED: (503, "503", "The service is temporarily unable to process your request."),
}


def refuse(failure: Failure, model: str) -> Reply:
    if failure is Failure.CONTENT_POLICY:
        error: dict[str, object] = {
            "message": "The response was filtered due to the prompt triggering the content management policy.",
            "type": None,
            "param": "prompt",
            "code": "content_filter",
            "status": 400,
            "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": _BLOCKED},
        }
        return json_reply({"error": error}, status=400)
    if failure not in _REFUSALS:
        return refuse_as_openai(failure, model)
    status, code, message = _REFUSALS[failure]
    headers = {"retry-after": "2"} if failure is Failure.RATE_LIMITED else {}
    return json_reply({"error": {"code": code, "message": message}}, status=status, headers=headers)


class Azure(OpenAIFamily):
    def authorised(self, arrived: Arrived, key: str) -> bool:
        return arrived.headers.get("api-key") == key

    def answer(self, arrived: Arrived) -> Reply:
        if arrived.path.startswith("/openai/v1/"):
            return super().answer(replace(arrived, path=arrived.path.removeprefix("/openai/v1")))
        found = _BY_DATE.fullmatch(arrived.path)
        if found is None or not re.fullmatch(r"20\d\d-\d\d-\d\d(-preview)?", arrived.query.get("api-version", "")):
            return json_reply({"error": {"code": "404", "message": "Resource not found"}}, status=404)
        body = {**arrived.view.names, "model": found["deployment"]}
        return super().answer(replace(arrived, path=found["door"], body=body))

    def say_chat(self, view: View) -> Reply:
        reply = super().say_chat(view)
        if reply.events:
            return reply
        answer = json.loads(reply.body)
        answer["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": _SAFE}]
        for choice in answer["choices"]:
            choice["content_filter_results"] = _SAFE
        return json_reply(answer)

    def chat_events(self, view: View, said: Said) -> Iterator[bytes]:
        yield data_event(
            {
                "id": "",
                "object": "",
                "created": 0,
                "model": "",
                "choices": [],
                "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _SAFE}],
            }
        )
        yield from super().chat_events(view, said)


PROVIDER = Azure(
    name="azure",
    base_path="",
    chat=CHAT,
    completions=COMPLETIONS,
    embeddings=EMBEDDINGS,
    responses=RESPONSES,
    refuse=refuse,
    refuse_misfit=refuse_misfit,
    models=MODELS,
)
