"""The official `openai` package with another base URL: chat completions in every shape, models, errors."""

from __future__ import annotations

import openai
from cases import API_KEY, BASE_URL, FAILING, HANGING, MODEL, PIXEL, WEATHER_SCHEMA, case, run
from pydantic import BaseModel

USER = [{"role": "user", "content": "How are things?"}]
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": WEATHER_SCHEMA}}
    for name in ("weather", "forecast")
]


class Weather(BaseModel):
    city: str
    days: int


client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0, timeout=60)


def ask(**further: object) -> object:
    return client.chat.completions.create(**{"model": MODEL, "messages": USER, **further})


@case
def version() -> object:
    return openai.__version__


@case
def plain() -> object:
    return ask(temperature=0.5, seed=7, user="somebody").model_dump()


@case
def raw_response() -> object:
    answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=USER)
    return {
        "status": answer.status_code,
        "headers": dict(answer.headers),
        "text": answer.parse().choices[0].message.content,
    }


@case
def streaming_response() -> object:
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=USER) as answer:
        return {"type": answer.headers["content-type"], "bytes": len(b"".join(answer.iter_bytes()))}


@case
def stream() -> object:
    chunks = list(ask(stream=True))
    return {
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "finish": [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1],
        "usage": [chunk.usage is not None for chunk in chunks],
    }


@case
def stream_with_usage() -> object:
    *_, last = ask(stream=True, stream_options={"include_usage": True})
    return {"choices": len(last.choices), "usage": last.usage.model_dump()}


@case
def several_choices() -> object:
    return [choice.message.content for choice in ask(n=2).choices]


@case
def log_probabilities() -> object:
    return len(ask(logprobs=True, top_logprobs=1).choices[0].logprobs.content)


@case
def cut_short() -> object:
    answer = ask(max_completion_tokens=3).choices[0]
    return [answer.message.content, answer.finish_reason]


@case
def stopped() -> object:
    answer = ask(stop=[","]).choices[0]
    return [answer.message.content, answer.finish_reason]


@case
def tools_in_parallel() -> object:
    return ask(tools=TOOLS).choices[0].model_dump()


@case
def one_tool_at_a_time() -> object:
    return [call.function.name for call in ask(tools=TOOLS, parallel_tool_calls=False).choices[0].message.tool_calls]


@case
def forced_tool() -> object:
    choice = {"type": "function", "function": {"name": "forecast"}}
    return [call.function.name for call in ask(tools=TOOLS, tool_choice=choice).choices[0].message.tool_calls]


@case
def no_tool() -> object:
    return ask(tools=TOOLS, tool_choice="none").choices[0].message.content


@case
def streamed_tools() -> object:
    with client.chat.completions.stream(model=MODEL, messages=USER, tools=TOOLS) as events:
        kinds = [event.type for event in events]
        message = events.get_final_completion().choices[0].message
    return {
        "deltas": kinds.count("tool_calls.function.arguments.delta"),
        "calls": [[call.function.name, call.function.arguments] for call in message.tool_calls],
    }


@case
def results_of_tools() -> object:
    message = ask(tools=TOOLS).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"sun for {call.function.name}"}
        for call in message.tool_calls
    ]
    return ask(tools=TOOLS, messages=[*USER, message, *results]).choices[0].message.content


@case
def structured() -> object:
    parsed = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Weather)
    return parsed.choices[0].message.parsed.model_dump()


@case
def streamed_structured() -> object:
    with client.chat.completions.stream(model=MODEL, messages=USER, response_format=Weather) as events:
        return events.get_final_completion().choices[0].message.parsed.model_dump()


@case
def json_mode() -> object:
    messages = [{"role": "user", "content": "Answer in JSON."}]
    return ask(messages=messages, response_format={"type": "json_object"}).choices[0].message.content


@case
def image() -> object:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
    ]
    return ask(messages=[{"role": "user", "content": parts}]).choices[0].message.content


@case
def roles() -> object:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Be kind."}, *USER]
    return ask(messages=messages).choices[0].message.content


@case
def models() -> object:
    return [model.id for model in client.models.list()]


@case
def one_model() -> object:
    return client.models.retrieve(MODEL).id


@case
async def asynchronous() -> object:
    async with openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0) as asker:
        answer = await asker.chat.completions.create(model=MODEL, messages=USER)
        pieces = [
            chunk.choices[0].delta.content or ""
            async for chunk in await asker.chat.completions.create(model=MODEL, messages=USER, stream=True)
            if chunk.choices
        ]
    return [answer.choices[0].message.content, "".join(pieces)]


@case
def wrong_key() -> object:
    return client.with_options(api_key=API_KEY[:-4] + "0000").models.list()


@case
def wrong_key_for_chat() -> object:
    other = client.with_options(api_key=API_KEY[:-4] + "0000")
    return other.chat.completions.create(model=MODEL, messages=USER)


@case
def unknown_model() -> object:
    return ask(model="no-such-model")


@case
def unknown_path() -> object:
    return client.get("/no-such-door", cast_to=object)


@case
def no_messages() -> object:
    return ask(messages=[])


@case
def unknown_parameter() -> object:
    return ask(extra_body={"surplus": 1})


@case
def impatient() -> object:
    return client.with_options(timeout=1.5).chat.completions.create(model=HANGING, messages=USER)


@case
def unreachable() -> object:
    nowhere = client.with_options(base_url="https://127.0.0.1:9/v1", timeout=5)
    return nowhere.chat.completions.create(model=MODEL, messages=USER)


def failing(failure: str, *, streamed: bool) -> object:
    def fail() -> object:
        answer = ask(model=f"{FAILING}{failure}", stream=streamed)
        return [chunk.model_dump() for chunk in answer] if streamed else answer.model_dump()

    fail.__name__ = f"fail_{failure}{'_streamed' if streamed else ''}"
    return case(fail)


FAILURES = ("authentication", "permission", "not-found", "rate-limited", "quota", "context-length", "content-policy",
            "too-large", "overloaded", "server", "mid-stream")  # fmt: skip
for one in FAILURES:
    failing(one, streamed=False)
    failing(one, streamed=True)

if __name__ == "__main__":
    run()
