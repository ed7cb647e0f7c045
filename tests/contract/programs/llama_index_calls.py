"""`llama-index-llms-openai`: its OpenAI-like use with another base URL. It must know the model's name."""

from __future__ import annotations

from cases import API_KEY, BASE_URL, case, run
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI

llm = OpenAI(model="gpt-4o-mini", api_base=f"{BASE_URL}/v1", api_key=API_KEY, max_retries=0, timeout=60)
USER = [ChatMessage(role="user", content="How are things?")]


@case
def plain() -> object:
    return llm.chat(USER).message.content


@case
def stream() -> object:
    *_, last = llm.stream_chat(USER)
    return last.message.content


@case
def wrong_key() -> object:
    other = OpenAI(model="gpt-4o-mini", api_base=f"{BASE_URL}/v1", api_key=API_KEY[:-4] + "0000", max_retries=0)
    return other.chat(USER).message.content


if __name__ == "__main__":
    run()
