"""`langchain-openai`: ChatOpenAI with another base URL."""

from __future__ import annotations

from cases import API_KEY, BASE_URL, FAILING, MODEL, PIXEL, case, run
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

# It asks for the usage of streams by itself only where the provider is OpenAI, and for some models it would rather speak to
# /v1/responses: the chat format is meant here.
chat = ChatOpenAI(
    model=MODEL,
    base_url=f"{BASE_URL}/v1",
    api_key=API_KEY,
    max_retries=0,
    timeout=60,
    stream_usage=True,
    use_responses_api=False,
)


class Weather(BaseModel):
    """The weather of some days."""

    city: str
    days: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sun in {city}"


@tool
def forecast(city: str, days: int) -> str:
    """The weather of the next days."""
    return f"rain in {city} for {days} days"


@case
def plain() -> object:
    answer = chat.invoke("How are things?")
    return {"text": answer.content, "usage": answer.usage_metadata, "finish": answer.response_metadata["finish_reason"]}


@case
def stream() -> object:
    chunks = list(chat.stream("How are things?"))
    usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    return {"text": "".join(chunk.content for chunk in chunks), "chunks": len(chunks), "usage": usage[-1]}


@case
def tools() -> object:
    return [[call["name"], call["args"]] for call in chat.bind_tools([weather, forecast]).invoke("Weather?").tool_calls]


@case
def streamed_tools() -> object:
    whole = None
    for chunk in chat.bind_tools([weather, forecast]).stream("Weather?"):
        whole = chunk if whole is None else whole + chunk
    return [[call["name"], call["args"]] for call in whole.tool_calls]


@case
def results_of_tools() -> object:
    bound = chat.bind_tools([weather, forecast])
    question = HumanMessage("Weather?")
    answer = bound.invoke([question])
    known = {"weather": weather, "forecast": forecast}
    results = [
        ToolMessage(known[call["name"]].invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls
    ]
    return bound.invoke([question, answer, *results]).content


@case
def structured() -> object:
    return chat.with_structured_output(Weather).invoke("Weather?").model_dump()


@case
def image() -> object:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    return chat.invoke([HumanMessage(parts)]).content


@case
async def asynchronous() -> object:
    return (await chat.ainvoke("How are things?")).content


@case
def responses() -> object:
    other = ChatOpenAI(
        model=MODEL, base_url=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0, use_responses_api=True
    ).bind_tools([weather, forecast])
    called = other.invoke("Weather?")
    return [[call["name"], call["args"]] for call in called.tool_calls]


@case
def wrong_key() -> object:
    other = ChatOpenAI(model=MODEL, base_url=f"{BASE_URL}/v1", api_key=API_KEY[:-4] + "0000", max_retries=0)
    return other.invoke("How are things?").content


@case
def rate_limited() -> object:
    other = ChatOpenAI(model=f"{FAILING}rate-limited", base_url=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0)
    return other.invoke("How are things?").content


if __name__ == "__main__":
    run()
