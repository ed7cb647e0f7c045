"""The official `openai` package at the doors beside chat: completions, embeddings, responses."""

from __future__ import annotations

import openai
from cases import API_KEY, BASE_URL, FAILING, MODEL, PIXEL, WEATHER_SCHEMA, case, run
from pydantic import BaseModel

TOOLS = [
    {"type": "function", "name": name, "description": name, "parameters": WEATHER_SCHEMA, "strict": True}
    for name in ("weather", "forecast")
]
QUESTION = {"role": "user", "content": "How are things?"}


class Weather(BaseModel):
    city: str
    days: int


client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0, timeout=60)


@case
def completion() -> object:
    answer = client.completions.create(model=MODEL, prompt="Say how things are.", max_tokens=40)
    return {"text": answer.choices[0].text, "usage": answer.usage.model_dump(), "object": answer.object}


@case
def completion_stream() -> object:
    chunks = list(client.completions.create(model=MODEL, prompt="Say how things are.", stream=True))
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


@case
def completion_of_unknown_model() -> object:
    return client.completions.create(model="no-such-model", prompt="x").model_dump()


@case
def embeddings() -> object:
    answer = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    return {"vectors": [one.embedding for one in answer.data], "usage": answer.usage.model_dump()}


@case
def embeddings_as_floats() -> object:
    answer = client.embeddings.create(model="text-embedding-3-small", input="a", encoding_format="float", dimensions=4)
    return answer.data[0].embedding


@case
def embeddings_rate_limited() -> object:
    return client.embeddings.create(model=f"{FAILING}rate-limited", input="a").model_dump()


@case
def response() -> object:
    answer = client.responses.create(model=MODEL, input="How are things?", instructions="Be brief.")
    return {"text": answer.output_text, "usage": answer.usage.model_dump(), "status": answer.status}


@case
def raw_response() -> object:
    answer = client.responses.with_raw_response.create(model=MODEL, input="How are things?")
    return {"status": answer.status_code, "headers": dict(answer.headers), "text": answer.parse().output_text}


@case
def response_stream() -> object:
    with client.responses.stream(model=MODEL, input="How are things?") as events:
        kinds = [event.type for event in events]
        whole = events.get_final_response()
    return {"kinds": kinds, "text": whole.output_text, "tokens": whole.usage.total_tokens}


@case
def response_tools() -> object:
    answer = client.responses.create(model=MODEL, input=[QUESTION], tools=TOOLS)
    return [[item.name, item.arguments] for item in answer.output if item.type == "function_call"]


@case
def response_tools_streamed() -> object:
    with client.responses.stream(model=MODEL, input=[QUESTION], tools=TOOLS) as events:
        for _ in events:
            pass
        whole = events.get_final_response()
    return [[item.name, item.arguments] for item in whole.output if item.type == "function_call"]


@case
def response_results_of_tools() -> object:
    first = client.responses.create(model=MODEL, input=[QUESTION], tools=TOOLS)
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"sun for {item.name}"}
        for item in first.output
        if item.type == "function_call"
    ]
    answer = client.responses.create(model=MODEL, input=[QUESTION, *first.output, *results], tools=TOOLS)
    return answer.output_text


@case
def response_structured() -> object:
    return client.responses.parse(model=MODEL, input="Weather?", text_format=Weather).output_parsed.model_dump()


@case
def response_image() -> object:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "low"},
    ]
    return client.responses.create(model=MODEL, input=[{"role": "user", "content": parts}]).output_text


@case
def response_wrong_key() -> object:
    return client.with_options(api_key=API_KEY[:-4] + "0000").responses.create(model=MODEL, input="x").model_dump()


@case
def response_rate_limited() -> object:
    return client.responses.create(model=f"{FAILING}rate-limited", input="x").model_dump()


@case
def response_of_unknown_model() -> object:
    return client.responses.create(model="no-such-model", input="x").model_dump()


@case
def response_breaks_off() -> object:
    with client.responses.stream(model=f"{FAILING}mid-stream", input="x") as events:
        return [event.type for event in events]


if __name__ == "__main__":
    run()
