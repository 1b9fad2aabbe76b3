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

const respond = (fields) => client.responses.create({ model, input: "hi you", ...fields });

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
  async responses() {
    const answer = await respond({ instructions: "Be brief" });
    assert.equal(answer.output_text, "Hello there!");
    assert.equal(answer.usage.total_tokens, 9);
    const more = await respond({ input: "more", previous_response_id: answer.id });
    assert.equal(more.previous_response_id, answer.id);
    assert.equal((await client.responses.retrieve(answer.id)).output_text, "Hello there!");
    const items = [];
    for await (const item of client.responses.inputItems.list(more.id)) items.push(item.type);
    assert.deepEqual(items, ["message"]);
    await client.responses.delete(answer.id);
    await assert.rejects(client.responses.retrieve(answer.id), OpenAI.NotFoundError);
    await assert.rejects(respond({ previous_response_id: more.id }), OpenAI.BadRequestError);
  },
  async responsesInAStream() {
    const types = [];
    for await (const event of await respond({ stream: true })) types.push(event.type);
    assert.equal(types.length, 11);
    assert.equal(types.at(-1), "response.completed");
    const runner = client.responses.stream({ model, input: "hi you" });
    assert.equal((await runner.finalResponse()).output_text, "Hello there!");
  },
  async responsesThatCall() {
    const called = { tools: [{ type: "function", ...tools[0].function, strict: false }] };
    const answer = await respond({ ...called, tool_choice: "required" });
    const [call] = answer.output;
    assert.deepEqual(JSON.parse(call.arguments), { city: "Kiel" });
    const result = { type: "function_call_output", call_id: call.call_id, output: "rain" };
    assert.ok(await respond({ ...called, input: [result], previous_response_id: answer.id }));
    assert.ok(await respond({ ...called, input: [...hi, call, result], store: false }));
  },
  async responsesOfASchema() {
    const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
    const format = { type: "json_schema", name: "place", schema };
    const answer = await client.responses.parse({ model, input: "hi you", text: { format } });
    assert.deepEqual(answer.output_parsed, { city: "Kiel" });
  },
  async responsesInTheBackground() {
    let answer = await respond({ background: true });
    while (answer.status === "in_progress") answer = await client.responses.retrieve(answer.id);
    assert.equal(answer.output_text, "Hello there!");
    await assert.rejects(client.responses.cancel(answer.id), OpenAI.BadRequestError);
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
