import assert from "node:assert/strict";
import { test } from "node:test";
import {
  ago,
  currentRate,
  endedLabel,
  fill,
  milliseconds,
  numSlotMarks,
  problemSentence,
  queueEstimate,
  shortDuration,
  statusSentence,
} from "../js/phrases.js";
import { cases } from "./cases.js";

const NOW = Date.parse("2026-11-23T12:00:00.000Z");
const formats = cases("formats");

test("numbers are rounded as in Python", () => {
  for (const [value, digits, text] of formats.fixed) assert.equal(value.toFixed(digits), text);
  for (const [value, text] of formats.shortDuration) assert.equal(shortDuration(value), text);
  for (const [value, text] of formats.rate) assert.equal(currentRate(value), text);
});

test("times are relative to now", () => {
  for (const [seconds, text] of formats.ago) {
    assert.equal(ago(new Date(NOW - seconds * 1000).toISOString(), NOW), text);
  }
});

test("milliseconds become seconds at 1000", () => {
  assert.deepEqual([null, 0, 999, 1000, 2450].map(milliseconds), ["–", "0 ms", "999 ms", "1.0 s", "2.5 s"]);
});

test("a job has one status sentence on the server and here", () => {
  for (const { job, sentence } of cases("status")) {
    const full = { cancel_requested: false, finish_reason: null, queue: null, ...job };
    assert.equal(statusSentence(full), sentence);
  }
});

test("the estimated wait is the same on the server and here", () => {
  for (const { depth, workers, low, high, text } of cases("estimates")) {
    const waiting = { median_seconds: low, p90_seconds: high };
    assert.equal(queueEstimate({ depth, workers, waiting }), text);
  }
});

test("a value with braces is not filled in again", () => {
  assert.equal(fill("{a} and {b}", { a: "{b}", b: 2 }), "{b} and 2");
});

test("jobs that have ended are counted", () => {
  assert.equal(endedLabel(1, 3), "1 of 3 jobs have ended");
  assert.equal(endedLabel(3, 3), "All 3 jobs have ended");
});

test("a problem is a sentence by its kind", () => {
  const problem = { name: "tiny", reason: "no weights" };
  assert.equal(problemSentence({ kind: "models_file", ...problem }), "no weights");
  assert.match(problemSentence({ kind: "model", ...problem }), /tiny.*no weights/);
});

test("at most 64 slots are drawn", () => {
  assert.deepEqual([0, 64, 65].map(numSlotMarks), [0, 64, 64]);
});
