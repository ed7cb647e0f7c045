"""Chat completions and the list of models, as official OpenAI SDKs call them."""

from __future__ import annotations

from functools import partial

import orjson
from flask import Blueprint, Response, g

from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.gateway import Reply, chat, list_models
from secure_llm_proxy.web.answers import answer
from secure_llm_proxy.web.errors import error_body, error_headers
from secure_llm_proxy.web.headers import reply_headers
from secure_llm_proxy.web.house import the_house
from secure_llm_proxy.web.inbound import inbound_of_request
from secure_llm_proxy.web.openai.wire import read_chat_completion


def make_openai_doors() -> Blueprint:
    doors = Blueprint("openai", __name__)

    @doors.post("/v1/chat/completions")
    def create_chat_completion() -> Response:
        web = the_house()
        read = partial(read_chat_completion, messages_max=web.settings.limits.messages_max)
        reply = chat(web.house, inbound_of_request("/v1/chat/completions"), read)
        return answer(
            reply, present=lambda completion, _reply: completion.payload, present_event=lambda event: event.data
        )

    @doors.get("/v1/models", endpoint="list_models")
    def list_all_models() -> Response:
        return _listed(list_models(the_house().house, inbound_of_request("/v1/models")), many=True)

    @doors.get("/v1/models/<path:model>")
    def retrieve_model(model: str) -> Response:
        return _listed(list_models(the_house().house, inbound_of_request("/v1/models/{id}"), model), many=False)

    return doors


def _listed(reply: Reply, *, many: bool) -> Response:
    g.presence.stop()
    headers = reply_headers(reply.facts)
    if isinstance(reply.outcome, ProxyError):
        return Response(error_body(reply.outcome), reply.outcome.status, headers + error_headers(reply.outcome))
    if not isinstance(reply.outcome, tuple):
        raise TypeError("the corridor for models answers with names")
    # OpenAI's `created` is the model's age, which a name alone does not tell: 0 is the honest value of a required field.
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "secure-llm-proxy"} for name in reply.outcome]
    body: object = {"object": "list", "data": models} if many else models[0]
    return Response(orjson.dumps(body), headers=[*headers, ("Content-Type", "application/json")])
