"""`instructor` around the official SDK: structured answers in each of its ways."""

from __future__ import annotations

import instructor
import openai
from cases import API_KEY, BASE_URL, MODEL, case, run
from pydantic import BaseModel

USER = [{"role": "user", "content": "Weather? Answer in JSON."}]


class Weather(BaseModel):
    city: str
    days: int


def ask(mode: instructor.Mode) -> object:
    sdk = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0)
    client = instructor.from_openai(sdk, mode=mode)
    return client.chat.completions.create(
        model=MODEL, messages=USER, response_model=Weather, max_retries=0
    ).model_dump()


@case
def by_tools() -> object:
    return ask(instructor.Mode.TOOLS)


@case
def by_schema() -> object:
    return ask(instructor.Mode.JSON_SCHEMA)


if __name__ == "__main__":
    run()
