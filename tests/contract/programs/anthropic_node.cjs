// The official `@anthropic-ai/sdk` with another base URL.
"use strict";

const { Anthropic } = require("@anthropic-ai/sdk");
const { BASE_URL, API_KEY, FAILING, HANGING, MODEL, PIXEL, WEATHER_SCHEMA, run } = require("./cases.cjs");

const USER = [{ role: "user", content: "How are things?" }];
const TOOLS = ["weather", "forecast"].map((name) => ({ name, description: name, input_schema: WEATHER_SCHEMA }));
const clientWith = (options) =>
  new Anthropic({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0, timeout: 60000, ...options });
const client = clientWith({});
const ask = (further) => client.messages.create({ model: MODEL, max_tokens: 200, messages: USER, ...further });

run({
  plain: () => ask({ system: "Be brief." }),
  stream: async () => {
    const stream = client.messages.stream({ model: MODEL, max_tokens: 200, messages: USER });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    const whole = await stream.finalMessage();
    return { kinds, text: whole.content[0].text, stop: whole.stop_reason, usage: whole.usage };
  },
  tools_in_parallel: async () => {
    const answer = await ask({ tools: TOOLS });
    return { calls: answer.content.map((block) => [block.name, block.input]), stop: answer.stop_reason };
  },
  streamed_tools: async () => {
    const stream = client.messages.stream({ model: MODEL, max_tokens: 200, messages: USER, tools: TOOLS });
    return (await stream.finalMessage()).content.map((block) => [block.name, block.input]);
  },
  results_of_tools: async () => {
    const called = await ask({ tools: TOOLS });
    const results = called.content.map((block) => ({
      type: "tool_result", tool_use_id: block.id, content: `sun for ${block.name}`,
    }));
    const turns = [...USER, { role: "assistant", content: called.content }, { role: "user", content: results }];
    return (await ask({ tools: TOOLS, messages: turns })).content[0].text;
  },
  image: async () => {
    const source = { type: "base64", media_type: "image/png", data: PIXEL };
    const content = [{ type: "image", source }, { type: "text", text: "What is this?" }];
    return (await ask({ messages: [{ role: "user", content }] })).content[0].text;
  },
  counted: async () => (await client.messages.countTokens({ model: MODEL, messages: USER })).input_tokens,
  models: async () => {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return names;
  },
  wrong_key: () =>
    clientWith({ apiKey: API_KEY.slice(0, -4) + "0000" }).messages.create({ model: MODEL, max_tokens: 9, messages: USER }),
  unknown_model: () => ask({ model: "no-such-model" }),
  no_messages: () => ask({ messages: [] }),
  impatient: () =>
    clientWith({ timeout: 1500 }).messages.create({ model: HANGING, max_tokens: 9, messages: USER }),
  rate_limited: () => ask({ model: `${FAILING}rate-limited` }),
  server: () => ask({ model: `${FAILING}server` }),
  mid_stream: async () => {
    for await (const _ of await ask({ model: `${FAILING}mid-stream`, stream: true }));
  },
});
