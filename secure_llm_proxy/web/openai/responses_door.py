"""`POST /v1/responses`: OpenAI's Responses API, in front of any provider. Nothing is kept, so nothing can be fetched later."""

from __future__ import annotations

from functools import partial

from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.gateway import Reply, chat, fetch_response
from secure_llm_proxy.vocabulary.chat import Completion
from secure_llm_proxy.web.answers import Answer, answer_chat, ask_corridor, refused
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.errors import error_body
from secure_llm_proxy.web.generation import StreamWriter
from secure_llm_proxy.web.headers import reply_headers
from secure_llm_proxy.web.openai.responses_answer import response_of
from secure_llm_proxy.web.openai.responses_request import read_response_request
from secure_llm_proxy.web.openai.responses_stream import PassedOnResponse, WrittenResponse


class ResponsesFormat:
    """What came in this format leaves as it came, what came in another is written in it."""

    def whole(self, completion: Completion, reply: Reply) -> object:
        return completion.payload if completion.answer is None else response_of(completion, reply)

    def stream(self, reply: Reply, *, translated: bool) -> StreamWriter:
        return WrittenResponse(reply) if translated else PassedOnResponse()

    def error_body(self, error: ProxyError) -> bytes:
        return error_body(error)


_RESPONSES = ResponsesFormat()


def create_response(arrival: Arrival) -> Answer:
    web = arrival.web
    read = partial(read_response_request, items_max=web.settings.limits.messages_max)
    ask = partial(chat, web.house, read_request=read)
    return answer_chat(arrival, "/v1/responses", ask, _RESPONSES)


def retrieve_response(arrival: Arrival) -> Answer:
    """Whoever asks for a response that was made earlier is told why there is none."""
    reply, _ = ask_corridor(arrival, "/v1/responses/{id}", partial(fetch_response, arrival.web.house))
    headers = reply_headers(reply.facts)
    if isinstance(reply.outcome, ProxyError):
        return refused(reply.outcome, headers)
    raise TypeError("no response is ever found")
