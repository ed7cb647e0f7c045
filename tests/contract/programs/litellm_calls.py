"""`litellm` as a library, with the product as an OpenAI-compatible provider."""

from __future__ import annotations

import litellm
from cases import API_KEY, BASE_URL, FAILING, MODEL, WEATHER_SCHEMA, case, run
from pydantic import BaseModel

USER = [{"role": "user", "content": "How are things?"}]
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": WEATHER_SCHEMA}}
    for name in ("weather", "forecast")
]
litellm.drop_params = False


class Weather(BaseModel):
    city: str
    days: int


def ask(model: str = MODEL, **further: object) -> object:
    options = {"api_base": f"{BASE_URL}/v1", "api_key": API_KEY, "num_retries": 0, "max_retries": 0, "timeout": 60}
    return litellm.completion(model=f"openai/{model}", **{"messages": USER, **options, **further})


@case
def plain() -> object:
    answer = ask()
    return {"text": answer.choices[0].message.content, "usage": answer.usage.model_dump()}


@case
def stream() -> object:
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    usage = [chunk.usage.model_dump() for chunk in chunks if getattr(chunk, "usage", None)]
    return {
        "text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "usage": usage[-1],
    }


@case
def tools() -> object:
    return [[call.function.name, call.function.arguments] for call in ask(tools=TOOLS).choices[0].message.tool_calls]


@case
def streamed_tools() -> object:
    chunks = list(ask(tools=TOOLS, stream=True))
    whole = litellm.stream_chunk_builder(chunks)
    return [[call.function.name, call.function.arguments] for call in whole.choices[0].message.tool_calls]


@case
def structured() -> object:
    return Weather.model_validate_json(ask(response_format=Weather).choices[0].message.content).model_dump()


@case
async def asynchronous() -> object:
    answer = await litellm.acompletion(
        model=f"openai/{MODEL}", messages=USER, api_base=f"{BASE_URL}/v1", api_key=API_KEY, num_retries=0
    )
    return answer.choices[0].message.content


@case
def messages() -> object:
    """A model of the played Anthropic, by Anthropic's own format."""
    options = {"api_base": BASE_URL, "api_key": API_KEY, "num_retries": 0, "max_retries": 0}
    answer = litellm.completion(model="anthropic/anthropic", messages=USER, max_tokens=200, **options)
    return answer.choices[0].message.content


@case
def wrong_key() -> object:
    return ask(api_key=API_KEY[:-4] + "0000")


@case
def rate_limited() -> object:
    return ask(f"{FAILING}rate-limited")


@case
def context_length() -> object:
    return ask(f"{FAILING}context-length")


@case
def unknown_model() -> object:
    return ask("no-such-model")


if __name__ == "__main__":
    run()
