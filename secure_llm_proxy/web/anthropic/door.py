"""Messages and the counting of their tokens, as official Anthropic SDKs call them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from secure_llm_proxy.gateway import Reply, chat
from secure_llm_proxy.vocabulary.conversation import TokenCount
from secure_llm_proxy.web.answers import Answer, answer_chat
from secure_llm_proxy.web.anthropic.message import MessageStream, PassedMessageStream, message_of
from secure_llm_proxy.web.anthropic.wire import read_messages, read_prompt_to_count
from secure_llm_proxy.web.errors import anthropic_error_body

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.errors import ProxyError
    from secure_llm_proxy.vocabulary.chat import Completion
    from secure_llm_proxy.web.arrival import Arrival
    from secure_llm_proxy.web.generation import StreamWriter

_ESTIMATED = ("X-SLP-Token-Count", "estimate")


class _MessageFormat:
    """What came in Anthropic's format leaves as it came, what came in another is written in it. One for each request: its
    errors name it.
    """

    __slots__ = ("_request_id", "estimated")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self.estimated = False

    def whole(self, completion: Completion, reply: Reply) -> object:
        answer = completion.answer
        if answer is None:
            return completion.payload
        if isinstance(answer, TokenCount):
            self.estimated = answer.estimated
            return {"input_tokens": answer.tokens}
        return message_of(completion, reply)

    def stream(self, reply: Reply, *, translated: bool) -> StreamWriter:
        return MessageStream(reply) if translated else PassedMessageStream(self._request_id)

    def error_body(self, error: ProxyError) -> bytes:
        return anthropic_error_body(error, self._request_id)


def create_message(arrival: Arrival) -> Answer:
    web = arrival.web
    # Bound by partial, whose calls make no Python frame.
    read = partial(read_messages, messages_max=web.settings.limits.messages_max)
    ask = partial(chat, web.house, read_request=read)
    answer = answer_chat(arrival, "/v1/messages", ask, _MessageFormat(arrival.exchange_id))
    # Where official SDKs look for it.
    answer.headers.append(("request-id", arrival.exchange_id))
    return answer


def count_tokens(arrival: Arrival) -> Answer:
    """How many tokens a prompt is, as its provider counts; where none does, an estimate, and a header says so."""
    web = arrival.web
    read = partial(read_prompt_to_count, messages_max=web.settings.limits.messages_max)
    shape = _MessageFormat(arrival.exchange_id)
    answer = answer_chat(arrival, "/v1/messages/count_tokens", partial(chat, web.house, read_request=read), shape)
    answer.headers.append(("request-id", arrival.exchange_id))
    if shape.estimated:
        answer.headers.append(_ESTIMATED)
    return answer
