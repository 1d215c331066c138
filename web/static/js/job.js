// @ts-check
// Follows one job by its events. The server sends a complete page; this script keeps it current.

import { LIMITS, PHRASES, STATUS_LABELS } from "./contract.js";
import { EventStream } from "./event_stream.js";
import {
  currentRate,
  finalRate,
  isFinal,
  milliseconds,
  statusSentence,
  tokensLabel,
} from "./phrases.js";

/** @typedef {import("./phrases.js").Job} Job */

/** @param {string} id */
const part = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const root = part("job");
const text = part("text");
const status = part("status");
const progress = /** @type {HTMLProgressElement} */ (part("progress"));
const { events = "", self = "", length = "0" } = root.dataset;
const WRITE_MS = 60;

let hasEnded = isFinal(root.dataset.status ?? "");
let tokens = Number(root.dataset.tokens);
let firstAt = 0;
let firstTokens = 0;
let rate = Number(root.dataset.rate); // the last known one, in tokens per second
let pending = "";
let timer = 0;

/** Shows a status; an assignment without a change would be announced again. @param {string} text */
const setStatus = (text) => {
  if (status.textContent !== text) status.textContent = text;
};

const write = () => {
  timer = 0;
  if (pending) text.append(pending);
  pending = "";
  text.normalize();
  progress.value = tokens;
  const seconds = (performance.now() - firstAt) / 1000;
  if (firstAt && seconds > LIMITS.minRateSeconds) rate = (tokens - firstTokens) / seconds;
  part("progress-text").textContent =
    tokensLabel(tokens, length) + (rate >= 0.05 ? ` · ${currentRate(rate)}` : "");
};
const writeSoon = () => {
  timer ||= setTimeout(write, WRITE_MS);
};

/** @param {Job} job */
const showStatus = (job) => {
  const badge = part("badge");
  badge.className = `badge badge--${job.status}`;
  badge.textContent = STATUS_LABELS[job.status];
  setStatus(statusSentence(job));
  document.title = document.title.replace(/^[^:]*/, STATUS_LABELS[job.status]);
  part("meter").hidden = job.status !== "running";
  part("caret").hidden = job.status !== "running";
  if (job.status !== "queued") part("no-worker").hidden = true;
};

/** @param {Job} job */
const finish = (job) => {
  hasEnded = true;
  stream.close();
  clearTimeout(timer);
  timer = 0;
  pending = "";
  if (text.textContent !== job.text) text.textContent = job.text;
  showStatus(job);
  const error = part("error");
  error.hidden = !job.error;
  if (job.error) error.textContent = job.error.message || job.error.code;
  part("offline").hidden = true;
  part("restarted").hidden = true;
  const live = part("live-actions");
  const hadFocus = live.contains(document.activeElement);
  live.hidden = true;
  part("final-actions").hidden = false;
  if (hadFocus) part("final-actions").querySelector("a")?.focus();
  part("t-queued").textContent = milliseconds(job.timings.queued_ms);
  part("t-first").textContent = milliseconds(job.timings.first_token_ms);
  part("t-total").textContent = milliseconds(job.timings.total_ms);
  const { completion_tokens: made, prompt_tokens: given } = job.usage;
  part("t-tokens").textContent = `${made ?? 0} generated${given === null ? "" : `, ${given} in the prompt`}`;
  const mean = job.timings.tokens_per_second;
  part("t-rate").textContent = mean ? finalRate(mean) : PHRASES.UNKNOWN;
  dispatchEvent(new Event("textmill:done"));
};

const showDeleted = () => {
  hasEnded = true;
  stream.close();
  setStatus(PHRASES.DELETED);
  part("meter").hidden = true;
  part("caret").hidden = true;
  part("live-actions").hidden = true;
  part("offline").hidden = true;
};

/** The server ended the stream: read the job itself, and open the stream again if it goes on. */
const settle = async () => {
  try {
    const answer = await fetch(self);
    if (answer.status === 404) return showDeleted();
    if (!answer.ok) throw new Error(String(answer.status));
    const job = /** @type {Job} */ (await answer.json());
    if (isFinal(job.status)) return finish(job);
  } catch {
    part("offline").hidden = false;
  }
  setTimeout(open, 2000);
};

const stream = new EventStream({
  address: events,
  cursor: root.dataset.cursor ?? "",
  onConnection: (isLost) => {
    if (!hasEnded) part("offline").hidden = !isLost;
  },
  onClosed: settle,
  handlers: {
    // A final status is shown by `done`, which follows, together with the whole text.
    status: (job) => {
      if (!isFinal(job.status)) showStatus(job);
    },
    token: (data) => {
      if (!firstAt) {
        firstAt = performance.now();
        firstTokens = data.tokens;
      }
      pending += data.text;
      tokens = data.tokens;
      writeSoon();
    },
    reset: () => {
      pending = "";
      text.textContent = "";
      tokens = 0;
      firstAt = 0;
      rate = 0;
      part("restarted").hidden = false;
      writeSoon();
    },
    done: finish,
    deleted: showDeleted,
  },
});

function open() {
  if (!hasEnded) stream.open();
}

addEventListener("pagehide", () => stream.close());
addEventListener("pageshow", open);
open();

// Cancels without leaving the page; if that fails, the form is submitted.
part("cancel").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = /** @type {HTMLFormElement} */ (event.target);
  const button = form.querySelector("button");
  button?.setAttribute("aria-disabled", "true");
  try {
    const answer = await fetch(`${self}/cancel`, { method: "POST" });
    if (!answer.ok && answer.status !== 409) throw new Error(String(answer.status));
    setStatus(PHRASES.CANCELING);
  } catch {
    form.submit();
  }
});

part("delete").addEventListener("submit", (event) => {
  if (!confirm("Delete this job? This cannot be undone.")) event.preventDefault();
});

const copy = part("copy");
copy.addEventListener("click", async () => {
  const prose = /** @type {HTMLElement} */ (text.parentElement);
  try {
    await navigator.clipboard.writeText(prose.textContent ?? "");
  } catch {
    // Plain HTTP has no clipboard API: select the text and copy the selection.
    getSelection()?.selectAllChildren(prose);
    document.execCommand("copy");
  }
  copy.textContent = "Copied";
  setTimeout(() => (copy.textContent = "Copy"), 2000);
});
