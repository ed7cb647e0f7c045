"""Chat completions and the list of models, as official OpenAI SDKs call them."""

from __future__ import annotations

from functools import partial

from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.gateway import Reply, chat, list_models
from secure_llm_proxy.vocabulary.chat import Completion
from secure_llm_proxy.web.answers import Answer, answer_chat, answer_json, ask_corridor, refused
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.errors import anthropic_error_body, error_body, wants_anthropic
from secure_llm_proxy.web.generation import PassedOn, StreamWriter
from secure_llm_proxy.web.headers import reply_headers
from secure_llm_proxy.web.openai.chat_answer import ChatStream, chat_completion
from secure_llm_proxy.web.openai.wire import read_chat_completion


class ChatFormat:
    """Chat completions: what came in this format leaves as it came, what came in another is written in it."""

    def whole(self, completion: Completion, reply: Reply) -> object:
        return completion.payload if completion.answer is None else chat_completion(completion, reply)

    def stream(self, reply: Reply, *, translated: bool) -> StreamWriter:
        return ChatStream(reply) if translated else PassedOn()

    def error_body(self, error: ProxyError) -> bytes:
        return error_body(error)


_CHAT = ChatFormat()


def create_chat_completion(arrival: Arrival) -> Answer:
    web = arrival.web
    # Bound by partial, whose calls make no Python frame.
    read = partial(read_chat_completion, messages_max=web.settings.limits.messages_max)
    ask = partial(chat, web.house, read_request=read)
    return answer_chat(arrival, "/v1/chat/completions", ask, _CHAT)


def answer_models(arrival: Arrival, wanted: str | None = None) -> Answer:
    """The models that this key may use, or the one that is `wanted`."""
    house = arrival.web.house
    door = "/v1/models" if wanted is None else "/v1/models/{id}"
    reply, _ = ask_corridor(arrival, door, lambda inbound: list_models(house, inbound, wanted))
    headers = reply_headers(reply.facts)
    if isinstance(reply.outcome, ProxyError):
        if not wants_anthropic(arrival.environ):
            return refused(reply.outcome, headers)
        headers.append(("request-id", arrival.exchange_id))
        return refused(reply.outcome, headers, partial(anthropic_error_body, request_id=arrival.exchange_id))
    if not isinstance(reply.outcome, tuple):
        raise TypeError("the corridor for models answers with names")
    if "HTTP_ANTHROPIC_VERSION" in arrival.environ:
        return answer_json(_as_anthropic_lists(reply.outcome, one=wanted is not None), headers)
    # OpenAI's `created` is the model's age, which a name alone does not tell: 0 is the honest value of a required field.
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "secure-llm-proxy"} for name in reply.outcome]
    return answer_json({"object": "list", "data": models} if wanted is None else models[0], headers)


def _as_anthropic_lists(names: tuple[str, ...], *, one: bool) -> object:
    """For clients that say that they speak Anthropic's API (its reference of "list models", 2026-11, has the epoch stand for
    a release date that is not known). All of them at once, whatever page is asked for.
    """
    models = [
        {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"} for name in names
    ]
    if one:
        return models[0]
    ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
    return {"data": models, "has_more": False, **ends}
