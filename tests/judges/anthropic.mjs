// Anthropic's own client for Node asks this server what docs/compatibility.md promises. BASE_URL, API_KEY.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The package lies in a cache, outside of this repository.
const packages = createRequire(process.env.PACKAGES + "/x.js");
const { default: Anthropic } = await import(pathToFileURL(packages.resolve("@anthropic-ai/sdk")));

const model = "support-bot";
const client = new Anthropic({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY });
const hi = [{ role: "user", content: "hi you" }];
const tools = [
  {
    name: "weather",
    input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];
const message = (fields) => ({ model, max_tokens: 20, messages: hi, ...fields });
const create = (fields, options) => client.messages.create(message(fields), options);

const cases = {
  async whole() {
    const { data, request_id } = await create({ system: "Be brief" }).withResponse();
    assert.equal(data.content[0].text, "Hello there!");
    assert.deepEqual([data.stop_reason, data.usage.output_tokens], ["end_turn", 3]);
    assert.ok(request_id);
  },
  async stops() {
    const answer = await create({ stop_sequences: ["there"] });
    assert.deepEqual([answer.stop_reason, answer.stop_sequence], ["stop_sequence", "there"]);
  },
  async stream() {
    const types = [];
    for await (const event of await create({ stream: true })) types.push(event.type);
    assert.deepEqual(types.slice(0, 2), ["message_start", "content_block_start"]);
    assert.deepEqual(types.slice(-3), ["content_block_stop", "message_delta", "message_stop"]);
  },
  async streamHelper() {
    const stream = client.messages.stream(message({}));
    assert.equal(await stream.finalText(), "Hello there!");
    assert.equal((await stream.finalMessage()).stop_reason, "end_turn");
  },
  async tools() {
    for (const tool_choice of [{ type: "any" }, { type: "tool", name: "weather" }]) {
      const whole = await create({ tools, tool_choice });
      const streamed = await client.messages.stream(message({ tools, tool_choice })).finalMessage();
      for (const answer of [whole, streamed]) {
        assert.equal(answer.stop_reason, "tool_use");
        assert.deepEqual(answer.content[0].input, { city: "Kiel" });
        const result = { type: "tool_result", tool_use_id: answer.content[0].id, content: "rain" };
        const said = { role: "assistant", content: answer.content };
        const messages = [...hi, said, { role: "user", content: [result] }];
        assert.equal((await create({ tools, messages })).stop_reason, "end_turn");
      }
    }
  },
  async counts() {
    assert.equal((await client.messages.countTokens({ model, messages: hi, tools })).input_tokens, 3);
  },
  async errors() {
    const once = { maxRetries: 0 };
    const stranger = new Anthropic({ baseURL: process.env.BASE_URL, apiKey: "wrong" });
    await assert.rejects(stranger.messages.create(message({})), Anthropic.AuthenticationError);
    await assert.rejects(create({ model: "other" }), Anthropic.NotFoundError);
    await assert.rejects(create({ temperature: 9 }), Anthropic.BadRequestError);
    const messages = [{ role: "user", content: "always busy" }];
    await assert.rejects(create({ messages }, once), Anthropic.RateLimitError);
  },
  async retries() {
    const answer = await create({ messages: [{ role: "user", content: "once busy" }] });
    assert.equal(answer.content[0].text, "Hello there!");
  },
};

for (const [name, run] of Object.entries(cases)) {
  await run();
  console.log(`ok ${name}`);
}
