"""There and back: what OpenAI's chat completions can say comes back from the neutral model as it was."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation import strict_json
from secure_llm_proxy.gateway import Reply, ReplyFacts
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat
from secure_llm_proxy.upstream.server_sent_events import ServerSentEventParser
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion, StreamEvent, Usage
from secure_llm_proxy.vocabulary.conversation import Answer, Conversation, texts
from secure_llm_proxy.vocabulary.providers import provider_kinds
from secure_llm_proxy.web.openai.chat_request import read_conversation
from secure_llm_proxy.web.openai.door import ChatFormat
from tests.support.chat_conversations import ANSWERS, answer_of_steps, conversations, steps_of

OPENAI = provider_kinds()["openai"]
USED = Usage(5, 3, 8, 2, None, 1)


def _reply(completion: Completion) -> Reply:
    facts = ReplyFacts("exc_1", None, None, "tested", "our-model", None, 0.0)
    payload: strict_json.JsonObject = {"stream_options": {"include_usage": True}}
    return Reply(facts, completion, ChatRequest("our-model", stream=True, payload=payload))


@given(conversations())
def test_a_conversation_written_for_openai_is_read_as_the_same(conversation: Conversation) -> None:
    written = OpenAiChat().write(conversation, "m", OPENAI, ask_usage=True)

    again = read_conversation(strict_json.loads_object(strict_json.dumps(written.payload)))

    assert again == conversation
    assert list(texts(again)) == list(texts(conversation))
    assert written.dropped == ()
    assert OpenAiChat().write(again, "m", OPENAI, ask_usage=True) == written


@given(ANSWERS)
def test_an_answer_told_to_a_client_of_openai_is_read_as_the_same(answer: Answer) -> None:
    completion = Completion({}, "", USED, "m", answer=answer)

    told = json.dumps(ChatFormat().whole(completion, _reply(completion))).encode()

    again = OpenAiChat().read(told, model="m", translated=True)
    assert again.answer == answer
    assert again.usage == USED


@given(ANSWERS, st.integers(1, 5), st.integers(1, 4))
def test_a_stream_told_to_a_client_of_openai_is_read_as_the_same(answer: Answer, piece: int, together: int) -> None:
    completion = Completion({}, "", USED, "m", answer=answer)
    writer = ChatFormat().stream(_reply(completion), translated=True)
    steps = steps_of(answer, piece)
    sent = b"".join(
        writer.event(StreamEvent(b"{}", {}, "", None, deltas=tuple(steps[start : start + together])))
        for start in range(0, len(steps), together)
    )
    sent += writer.event(StreamEvent(b"{}", {}, "", USED)) + writer.end()

    reader = OpenAiChat().stream(translated=True, shows_usage=True)
    read = [reader.read(event) for event in ServerSentEventParser(event_bytes_max=1 << 20).feed(sent)]

    events = [event for event in read if event is not None]
    assert answer_of_steps([delta for event in events for delta in event.deltas]) == answer
    assert [event.usage for event in events if event.usage is not None] == [USED]
    assert reader.done
