// `ai` with `@ai-sdk/openai` pointed at another base URL: the chat format.
"use strict";

const { createOpenAI } = require("@ai-sdk/openai");
const { generateObject, generateText, stepCountIs, streamText, tool } = require("ai");
const { z } = require("zod");
const { BASE_URL, API_KEY, FAILING, MODEL, PIXEL, run } = require("./cases.cjs");

const provider = createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY });
const chat = (name = MODEL) => provider.chat(name);
const prompt = "How are things?";
const weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sun in ${city}`,
});

run({
  plain: async () => {
    const { text, usage, finishReason } = await generateText({ model: chat(), prompt, maxRetries: 0 });
    return { text, usage, finishReason };
  },
  stream: async () => {
    const result = streamText({ model: chat(), prompt, maxRetries: 0 });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return { text, usage: await result.usage, finishReason: await result.finishReason };
  },
  tools: async () => {
    const { text, steps } = await generateText({
      model: chat(), prompt, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0,
    });
    return { text, calls: steps[0].toolCalls.map((call) => [call.toolName, call.input]) };
  },
  streamed_tools: async () => {
    const result = streamText({ model: chat(), prompt, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return { text, calls: (await result.steps)[0].toolCalls.map((call) => [call.toolName, call.input]) };
  },
  structured: async () => {
    const schema = z.object({ city: z.string(), days: z.number().int() });
    return (await generateObject({ model: chat(), schema, prompt, maxRetries: 0 })).object;
  },
  image: async () => {
    const content = [{ type: "text", text: "What is this?" }, { type: "image", image: Buffer.from(PIXEL, "base64") }];
    return (await generateText({ model: chat(), messages: [{ role: "user", content }], maxRetries: 0 })).text;
  },
  wrong_key: async () => {
    const other = createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY.slice(0, -4) + "0000" });
    return (await generateText({ model: other.chat(MODEL), prompt, maxRetries: 0 })).text;
  },
  rate_limited: async () => (await generateText({ model: chat(`${FAILING}rate-limited`), prompt, maxRetries: 0 })).text,
});
