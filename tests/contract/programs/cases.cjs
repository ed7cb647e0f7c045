// What the Node programs share: named cases, each run once, and one JSON object of what they gave.
"use strict";

const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const WEATHER_SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
  additionalProperties: false,
};

// Classes of the error, from its own up: what `instanceof` would say.
function classesOf(error) {
  const names = [];
  for (let kind = Object.getPrototypeOf(error); kind && kind !== Object.prototype; kind = Object.getPrototypeOf(kind)) {
    names.push(kind.constructor.name);
  }
  return names;
}

function toldOf(error) {
  return {
    raised: error.constructor.name,
    classes: classesOf(error),
    status: error.status ?? error.statusCode ?? null,
    code: error.code ?? null,
    message: String(error.message),
    trace: String(error.stack).slice(0, 2000),
  };
}

async function run(cases) {
  const gave = {};
  for (const [name, function_] of Object.entries(cases)) {
    try {
      gave[name] = (await function_()) ?? null;
    } catch (error) {
      gave[name] = toldOf(error);
    }
  }
  process.stdout.write(JSON.stringify(gave));
}

module.exports = {
  BASE_URL: process.env.BASE_URL,
  API_KEY: process.env.API_KEY,
  MODEL: process.env.MODEL,
  FAILING: process.env.FAILING,
  HANGING: process.env.HANGING,
  PIXEL,
  WEATHER_SCHEMA,
  run,
};
