import assert from "node:assert/strict";
import { test } from "node:test";
import { isDeterministic, numTexts } from "../js/variants.js";

const drawn = { strategy: "sampling", temperature: 0.7, topK: null };
const greedy = { strategy: "greedy", temperature: null, topK: null };

test("strategies that draw nothing, temperature 0 and top-k 1 are deterministic", () => {
  assert.equal(isDeterministic("greedy", null, null), true);
  assert.equal(isDeterministic("beam", null, null), true);
  assert.equal(isDeterministic("sampling", 0, null), true);
  assert.equal(isDeterministic("top_k", 0.5, 1), true);
  assert.equal(isDeterministic("top_k", 0.5, 10), false);
});

test("samples are counted for each variant and model", () => {
  assert.equal(numTexts([greedy, drawn], 2, "3"), 8);
  assert.equal(numTexts([drawn], 0, "3"), 0);
  assert.equal(numTexts([], 2, "3"), 0);
});

test("a field without a number counts as one sample", () => {
  for (const samples of ["", "x", "-4", "0", "0.5"]) assert.equal(numTexts([drawn], 1, samples), 1);
});
