// OpenAI's own client for Node asks this server everything that docs/compatibility.md promises. BASE_URL, API_KEY.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The package lies in a cache, outside of this repository.
const { default: OpenAI } = await import(pathToFileURL(createRequire(process.env.PACKAGES + "/x.js").resolve("openai")));

const model = "support-bot";
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY });
const hi = [{ role: "user", content: "hi you" }];
const tools = [
  {
    type: "function",
    function: {
      name: "weather",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];
const chat = (fields) => client.chat.completions.create({ model, messages: hi, ...fields });

const cases = {
  async chat() {
    const answer = await chat({});
    assert.equal(answer.choices[0].message.content, "Hello there!");
    assert.equal(answer.usage.total_tokens, 6);
  },
  async stream() {
    let text = "", usage;
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, "Hello there!");
    assert.equal(usage.completion_tokens, 3);
  },
  async streamHelper() {
    const runner = client.chat.completions.stream({ model, messages: hi });
    assert.equal(await runner.finalContent(), "Hello there!");
  },
  async severalAndStop() {
    const answer = await chat({ n: 2, stop: "here", seed: 1 });
    assert.deepEqual(answer.choices.map((choice) => choice.message.content), ["Hello t", "Hello t"]);
  },
  async logprobs() {
    const answer = await chat({ logprobs: true, top_logprobs: 1 });
    assert.equal(answer.choices[0].logprobs.content[0].token, "Hello");
  },
  async schema() {
    const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
    const response_format = { type: "json_schema", json_schema: { name: "place", schema } };
    const answer = await client.chat.completions.parse({ model, messages: hi, response_format });
    assert.deepEqual(JSON.parse(answer.choices[0].message.content), { city: "Kiel" });
  },
  async tools() {
    for (const tool_choice of ["required", { type: "function", function: { name: "weather" } }]) {
      const { message, finish_reason } = (await chat({ tools, tool_choice })).choices[0];
      assert.equal(finish_reason, "tool_calls");
      assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Kiel" });
      const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "rain" };
      assert.ok(await chat({ tools, messages: [...hi, message, result] }));
    }
  },
  async runTools() {
    const asked = [];
    const weather = { ...tools[0].function, function: (place) => (asked.push(place.city), "rain"), parse: JSON.parse };
    const runner = client.chat.completions.runTools({
      model, messages: hi, tools: [{ type: "function", function: weather }], tool_choice: "required",
    }, { maxChatCompletions: 1 });
    await runner.done();
    assert.deepEqual(asked, ["Kiel"]);
  },
  async completions() {
    const answer = await client.completions.create({ model, prompt: "a b", max_tokens: 2, logprobs: 1 });
    assert.equal(answer.choices[0].text, "Hello there");
  },
  async models() {
    const ids = [];
    for await (const found of client.models.list()) ids.push(found.id);
    assert.deepEqual(ids, [model]);
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async errors() {
    const once = { maxRetries: 0 };
    const stranger = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "wrong" });
    await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
    await assert.rejects(chat({ model: "other" }), OpenAI.NotFoundError);
    await assert.rejects(chat({ temperature: 9 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
    const busy = { model, messages: [{ role: "user", content: "always busy" }] };
    await assert.rejects(client.chat.completions.create(busy, once), OpenAI.RateLimitError);
  },
  async retries() {
    const busy = { model, messages: [{ role: "user", content: "once busy" }] };
    assert.equal((await client.chat.completions.create(busy)).choices[0].message.content, "Hello there!");
  },
};

for (const [name, run] of Object.entries(cases)) {
  await run();
  console.log(`ok ${name}`);
}
