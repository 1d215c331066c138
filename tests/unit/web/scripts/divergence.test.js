import assert from "node:assert/strict";
import { test } from "node:test";
import { commonLength, divergence } from "../js/divergence.js";
import { cases } from "./cases.js";

for (const { text, other, status, parts, note } of cases("divergence")) {
  test(`divergence of ${JSON.stringify(text)} from ${JSON.stringify(other)}, ${status}`, () => {
    const reference = { text: other, hasEnded: status === "succeeded" };
    const found = divergence({ text, hasEnded: true }, reference, "Greedy");
    assert.deepEqual([found.same, found.mark, found.rest], parts);
    assert.equal(found.note, note);
    assert.equal(found.same + found.mark + found.rest, text);
  });
}

test("a text without a reference is not divided", () => {
  const found = divergence({ text: "a", hasEnded: true }, null, "Greedy");
  assert.deepEqual(found, { same: "a", mark: "", rest: "", note: "" });
});

test("a common start never ends inside a character", () => {
  assert.equal(commonLength("🙂", "🙃"), 0); // both start with the same surrogate
  assert.equal(commonLength("a🙂b", "a🙂c"), 3);
});
