// The official `openai` package of npm with another base URL.
"use strict";

const { OpenAI } = require("openai");
const { zodResponseFormat } = require("openai/helpers/zod");
const { z } = require("zod");
const { BASE_URL, API_KEY, FAILING, HANGING, MODEL, PIXEL, WEATHER_SCHEMA, run } = require("./cases.cjs");

const USER = [{ role: "user", content: "How are things?" }];
const TOOLS = ["weather", "forecast"].map((name) => ({
  type: "function",
  function: { name, description: name, parameters: WEATHER_SCHEMA },
}));
const clientWith = (options) =>
  new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: API_KEY, maxRetries: 0, timeout: 60000, ...options });
const client = clientWith({});
const ask = (further) => client.chat.completions.create({ model: MODEL, messages: USER, ...further });
const WRONG = { apiKey: API_KEY.slice(0, -4) + "0000" };

run({
  plain: () => ask({ temperature: 0.5 }),
  raw_response: async () => {
    const { data, response } = await ask({}).withResponse();
    return { status: response.status, headers: Object.fromEntries(response.headers), text: data.choices[0].message.content };
  },
  stream: async () => {
    let text = "";
    let finish = null;
    for await (const chunk of await ask({ stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
    }
    return { text, finish };
  },
  stream_with_usage: async () => {
    let last = null;
    for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) last = chunk;
    return last.usage;
  },
  tools_in_parallel: async () => (await ask({ tools: TOOLS })).choices[0],
  forced_tool: async () => {
    const tool_choice = { type: "function", function: { name: "forecast" } };
    return (await ask({ tools: TOOLS, tool_choice })).choices[0].message.tool_calls.map((call) => call.function.name);
  },
  streamed_tools: async () => {
    const stream = client.chat.completions.stream({ model: MODEL, messages: USER, tools: TOOLS });
    const message = await stream.finalMessage();
    return message.tool_calls.map((call) => [call.function.name, call.function.arguments]);
  },
  results_of_tools: async () => {
    const { message } = (await ask({ tools: TOOLS })).choices[0];
    const results = message.tool_calls.map((call) => ({
      role: "tool", tool_call_id: call.id, content: `sun for ${call.function.name}`,
    }));
    return (await ask({ tools: TOOLS, messages: [...USER, message, ...results] })).choices[0].message.content;
  },
  structured: async () => {
    const Weather = z.object({ city: z.string(), days: z.number().int() });
    const answer = await client.chat.completions.parse({
      model: MODEL, messages: USER, response_format: zodResponseFormat(Weather, "weather"),
    });
    return answer.choices[0].message.parsed;
  },
  image: async () => {
    const content = [
      { type: "text", text: "What is this?" },
      { type: "image_url", image_url: { url: `data:image/png;base64,${PIXEL}` } },
    ];
    return (await ask({ messages: [{ role: "user", content }] })).choices[0].message.content;
  },
  models: async () => {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return names;
  },
  response: async () => {
    const answer = await client.responses.create({ model: MODEL, input: "How are things?" });
    return { text: answer.output_text, tokens: answer.usage.total_tokens };
  },
  response_streamed: async () => {
    const stream = client.responses.stream({ model: MODEL, input: "How are things?" });
    return (await stream.finalResponse()).output_text;
  },
  left_early: async () => {
    const stream = await ask({ stream: true });
    for await (const chunk of stream) {
      stream.controller.abort();
      return chunk.object;
    }
  },
  wrong_key: () => clientWith(WRONG).chat.completions.create({ model: MODEL, messages: USER }),
  unknown_model: () => ask({ model: "no-such-model" }),
  no_messages: () => ask({ messages: [] }),
  impatient: () =>
    clientWith({ timeout: 1500 }).chat.completions.create({ model: HANGING, messages: USER }),
  unreachable: () => clientWith({ baseURL: "https://127.0.0.1:9/v1" }).chat.completions.create({ model: MODEL, messages: USER }),
  rate_limited: () => ask({ model: `${FAILING}rate-limited` }),
  context_length: () => ask({ model: `${FAILING}context-length` }),
  server: () => ask({ model: `${FAILING}server` }),
  mid_stream: async () => {
    for await (const _ of await ask({ model: `${FAILING}mid-stream`, stream: true }));
  },
});
