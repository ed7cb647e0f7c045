"""The official `anthropic` package with another base URL: messages in every shape, counting, models, errors."""

from __future__ import annotations

import anthropic
from cases import API_KEY, BASE_URL, FAILING, HANGING, MODEL, PIXEL, WEATHER_SCHEMA, case, run
from pydantic import BaseModel

USER = [{"role": "user", "content": "How are things?"}]
TOOLS = [{"name": name, "description": name, "input_schema": WEATHER_SCHEMA} for name in ("weather", "forecast")]


class Weather(BaseModel):
    city: str
    days: int


client = anthropic.Anthropic(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=60)


def ask(**further: object) -> object:
    return client.messages.create(**{"model": MODEL, "max_tokens": 200, "messages": USER, **further})


def calls_in(answer: object) -> list[object]:
    """Its calls of tools; sealed thoughts of another provider may stand before them."""
    return [block for block in answer.content if block.type == "tool_use"]


@case
def version() -> object:
    return anthropic.__version__


@case
def plain() -> object:
    return ask(system="Be brief.").model_dump()


@case
def raw_response() -> object:
    answer = client.messages.with_raw_response.create(model=MODEL, max_tokens=200, messages=USER)
    return {"status": answer.status_code, "headers": dict(answer.headers), "text": answer.parse().content[0].text}


@case
def older_version() -> object:
    """As clients of API version 2023-06-01 speak: key in `x-api-key`, a temperature."""
    headers = {"anthropic-version": "2023-06-01", "x-api-key": API_KEY, "Authorization": anthropic.Omit()}
    return ask(extra_headers=headers, extra_body={"temperature": 0.5}).content[0].text


@case
def stream() -> object:
    with client.messages.stream(model=MODEL, max_tokens=200, messages=USER) as events:
        kinds = [event.type for event in events]
        whole = events.get_final_message()
    return {"kinds": kinds, "text": whole.content[0].text, "stop": whole.stop_reason, "usage": whole.usage.model_dump()}


@case
def raw_stream() -> object:
    return [event.type for event in ask(stream=True)]


@case
def cut_short() -> object:
    answer = ask(max_tokens=3)
    return [answer.content[0].text, answer.stop_reason]


@case
def stopped() -> object:
    answer = ask(stop_sequences=[","])
    return [answer.content[0].text, answer.stop_reason]


@case
def tools_in_parallel() -> object:
    answer = ask(tools=TOOLS)
    return {"calls": [[block.name, block.input] for block in calls_in(answer)], "stop": answer.stop_reason}


@case
def forced_tool() -> object:
    return [block.name for block in calls_in(ask(tools=TOOLS, tool_choice={"type": "tool", "name": "forecast"}))]


@case
def one_tool_at_a_time() -> object:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    return [block.name for block in calls_in(ask(tools=TOOLS, tool_choice=choice))]


@case
def streamed_tools() -> object:
    with client.messages.stream(model=MODEL, max_tokens=200, messages=USER, tools=TOOLS) as events:
        pieces = sum(1 for event in events if event.type == "input_json")
        whole = events.get_final_message()
    return {"pieces": pieces, "calls": [[block.name, block.input] for block in calls_in(whole)]}


@case
def results_of_tools() -> object:
    called = ask(tools=TOOLS)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": f"sun for {block.name}"}
        for block in calls_in(called)
    ]
    turns = [*USER, {"role": "assistant", "content": called.content}, {"role": "user", "content": results}]
    return ask(tools=TOOLS, messages=turns).content[0].text


@case
def structured() -> object:
    parsed = client.messages.parse(model=MODEL, max_tokens=200, messages=USER, output_format=Weather)
    return parsed.parsed_output.model_dump()


@case
def image() -> object:
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    return ask(messages=[{"role": "user", "content": blocks}]).content[0].text


@case
def counted() -> object:
    return client.messages.count_tokens(model=MODEL, messages=USER).input_tokens


@case
def models() -> object:
    return [model.id for model in client.models.list()]


@case
async def asynchronous() -> object:
    async with anthropic.AsyncAnthropic(base_url=BASE_URL, api_key=API_KEY, max_retries=0) as asker:
        answer = await asker.messages.create(model=MODEL, max_tokens=200, messages=USER)
    return answer.content[0].text


@case
def wrong_key() -> object:
    other = client.with_options(api_key=API_KEY[:-4] + "0000")
    return other.messages.create(model=MODEL, max_tokens=200, messages=USER)


@case
def unknown_model() -> object:
    return ask(model="no-such-model")


@case
def no_messages() -> object:
    return ask(messages=[])


@case
def impatient() -> object:
    other = client.with_options(timeout=1.5)
    return other.messages.create(model=HANGING, max_tokens=200, messages=USER)


def failing(failure: str, *, streamed: bool) -> object:
    def fail() -> object:
        answer = ask(model=f"{FAILING}{failure}", stream=streamed)
        return [event.type for event in answer] if streamed else answer.model_dump()

    fail.__name__ = f"fail_{failure}{'_streamed' if streamed else ''}"
    return case(fail)


for one in ("authentication", "not-found", "rate-limited", "context-length", "overloaded", "server", "mid-stream"):
    failing(one, streamed=False)
    failing(one, streamed=True)

if __name__ == "__main__":
    run()
