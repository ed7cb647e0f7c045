// `ai` with `@ai-sdk/openai` and `@ai-sdk/anthropic` pointed at another base URL: chat, responses, messages.
"use strict";

const { createAnthropic } = require("@ai-sdk/anthropic");
const { createOpenAI } = require("@ai-sdk/openai");
const { generateObject, generateText, stepCountIs, streamText, tool } = require("ai");
const { z } = require("zod");
const { BASE_URL, API_KEY, FAILING, MODEL, PIXEL, run } = require("./cases.cjs");

const provider = createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY });
const chat = (name = MODEL) => provider.chat(name);
// What `provider(name)` alone is: the Responses API.
const responses = (name = MODEL) => provider.responses(name);
// A model of the played Anthropic, and one of another provider, by Anthropic's format.
const anthropic = createAnthropic({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY });
const messages = anthropic("anthropic");
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
  responses: async () => {
    const { text, usage } = await generateText({ model: responses(), prompt, maxRetries: 0 });
    return { text, usage };
  },
  responses_streamed: async () => {
    let text = "";
    for await (const piece of streamText({ model: responses(), prompt, maxRetries: 0 }).textStream) text += piece;
    return text;
  },
  responses_tools: async () => {
    const settings = { prompt, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
    return (await generateText({ model: responses(), ...settings })).text;
  },
  messages: async () => {
    const { text, usage } = await generateText({ model: messages, prompt, maxRetries: 0 });
    return { text, usage };
  },
  messages_streamed: async () => {
    let text = "";
    for await (const piece of streamText({ model: messages, prompt, maxRetries: 0 }).textStream) text += piece;
    return text;
  },
  messages_tools: async () => {
    const settings = { prompt, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
    return (await generateText({ model: messages, ...settings })).text;
  },
  messages_translated: async () => {
    const settings = { prompt, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
    return (await generateText({ model: anthropic("openai"), ...settings })).text;
  },
  messages_translated_streamed: async () => {
    const settings = { prompt, tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
    let text = "";
    for await (const piece of streamText({ model: anthropic("openai"), ...settings }).textStream) text += piece;
    return text;
  },
  wrong_key: async () => {
    const other = createOpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY.slice(0, -4) + "0000" });
    return (await generateText({ model: other.chat(MODEL), prompt, maxRetries: 0 })).text;
  },
  rate_limited: async () => (await generateText({ model: chat(`${FAILING}rate-limited`), prompt, maxRetries: 0 })).text,
});
