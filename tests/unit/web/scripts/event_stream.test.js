import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { EventStream } from "../js/event_stream.js";

/** Stands in for EventSource. */
class FakeSource extends EventTarget {
  static OPEN = 1;
  static CLOSED = 2;
  static made = [];
  readyState = FakeSource.OPEN;

  constructor(address) {
    super();
    this.address = address;
    FakeSource.made.push(this);
  }

  send(name, data, lastEventId) {
    const event = new Event(name);
    this.dispatchEvent(Object.assign(event, { data: data && JSON.stringify(data), lastEventId }));
  }

  close() {
    this.readyState = FakeSource.CLOSED;
  }
}

const opened = (options = {}) => {
  FakeSource.made = [];
  const log = [];
  const stream = new EventStream({
    address: "/events",
    cursor: "1-0",
    handlers: { token: (data) => log.push(data.text), end: () => log.push("end") },
    onConnection: (isLost) => log.push(isLost ? "lost" : "connected"),
    onClosed: () => log.push("closed"),
    Source: FakeSource,
    ...options,
  });
  stream.open();
  return { stream, log };
};
const last = () => FakeSource.made.at(-1);

test("the cursor is the id of the last event, and a new stream starts there", () => {
  const { stream, log } = opened();
  assert.equal(last().address, "/events?after=1-0");
  last().send("token", { text: "a" }, "1-1");
  last().send("token", { text: "b" }, "1-2");
  stream.close();
  stream.open();
  assert.deepEqual(log, ["a", "b"]);
  assert.equal(last().address, "/events?after=1-2");
});

test("an event without an id leaves the cursor alone", () => {
  const { stream } = opened();
  last().send("token", { text: "a" }, "");
  assert.equal(stream.cursor, "1-0");
});

test("the cursor of a run is escaped in the address", () => {
  opened({ cursor: "1:1-0,2:1-0-done" });
  assert.equal(last().address, "/events?after=1%3A1-0%2C2%3A1-0-done");
});

test("an event without data has an empty object", () => {
  const { log } = opened();
  last().send("end", undefined, "");
  assert.deepEqual(log, ["end"]);
});

test("a stream that is open is not opened again", () => {
  const { stream } = opened();
  stream.open();
  assert.equal(FakeSource.made.length, 1);
});

test("events of a closed stream are ignored", () => {
  const { stream, log } = opened();
  stream.close();
  last().send("token", { text: "late" }, "9-9");
  assert.deepEqual(log, []);
  assert.equal(stream.cursor, "1-0");
});

test("a stream that the server ended is closed and reported once", () => {
  const { stream, log } = opened();
  last().readyState = FakeSource.CLOSED;
  last().onerror();
  last().onerror();
  assert.deepEqual(log, ["closed"]);
  assert.equal(stream.isOpen, false);
});

test("a connection is reported as lost only if it stays so", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { log } = opened();
  last().readyState = 0; // connecting
  last().onerror();
  last().readyState = FakeSource.OPEN;
  mock.timers.tick(2000);
  assert.deepEqual(log, []);
  last().readyState = 0;
  last().onerror();
  mock.timers.tick(2000);
  last().onopen();
  assert.deepEqual(log, ["lost", "connected"]);
  mock.timers.reset();
});
