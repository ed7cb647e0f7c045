"""`pydantic-ai-slim`: agents over the product, by OpenAI's chat format, and by responses and messages too."""

from __future__ import annotations

from cases import API_KEY, BASE_URL, FAILING, MODEL, case, run
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.output import NativeOutput
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Weather(BaseModel):
    city: str
    days: int


def model(name: str = MODEL, key: str = API_KEY) -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key=key))


@case
async def plain() -> object:
    result = await Agent(model()).run("How are things?")
    usage = result.usage() if callable(result.usage) else result.usage
    return {"text": result.output, "input": usage.input_tokens, "output": usage.output_tokens}


@case
async def stream() -> object:
    async with Agent(model()).run_stream("How are things?") as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    return {"text": "".join(pieces), "pieces": len(pieces)}


@case
async def tools() -> object:
    agent = Agent(model())
    called: list[str] = []

    @agent.tool_plain
    def weather(city: str) -> str:
        called.append(city)
        return f"sun in {city}"

    result = await agent.run("Weather?")
    return {"called": called, "text": result.output}


@case
async def structured_by_tool() -> object:
    return (await Agent(model(), output_type=Weather).run("Weather?")).output.model_dump()


@case
async def structured() -> object:
    return (await Agent(model(), output_type=NativeOutput(Weather)).run("Weather?")).output.model_dump()


@case
async def image() -> object:
    picture = BinaryContent(data=b"not really a picture", media_type="image/png")
    return (await Agent(model()).run(["What is this?", picture])).output


@case
async def responses() -> object:
    provider = OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key=API_KEY)
    return (await Agent(OpenAIResponsesModel(MODEL, provider=provider)).run("How are things?")).output


@case
async def messages() -> object:
    """A model of the played Anthropic."""
    provider = AnthropicProvider(base_url=BASE_URL, api_key=API_KEY)
    return (await Agent(AnthropicModel("anthropic", provider=provider)).run("How are things?")).output


@case
async def wrong_key() -> object:
    return (await Agent(model(key=API_KEY[:-4] + "0000")).run("How are things?")).output


@case
async def rate_limited() -> object:
    return (await Agent(model(f"{FAILING}rate-limited")).run("How are things?")).output


if __name__ == "__main__":
    run()
