// @ts-check
// Follows one job by its events. The page as it came is complete; this keeps it current.

/**
 * @typedef {{
 *   status: "queued" | "running" | "succeeded" | "failed" | "canceled",
 *   text: string, attempt: number, cancel_requested: boolean,
 *   finish_reason: string | null, error: {code: string, message: string} | null,
 *   queue: {position: number | null, eta_seconds: number | null} | null,
 *   usage: {prompt_tokens: number | null, completion_tokens: number | null},
 *   timings: {queued_ms: number | null, first_token_ms: number | null,
 *             total_ms: number | null, tokens_per_second: number | null},
 * }} Job
 */

/** @param {string} id */
const part = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

const root = part("job");
const text = part("text");
const status = part("status");
const progress = /** @type {HTMLProgressElement} */ (part("progress"));
const { events = "", self = "", length = "0" } = root.dataset;
const WORDS = {
  queued: "Waiting",
  running: "Writing",
  succeeded: "Finished",
  failed: "Failed",
  canceled: "Canceled",
};
/** @type {Record<string, string>} */
const ENDS = {
  stop: "The text came to its end",
  length: "The length asked for was reached",
  canceled: "It was canceled; the text so far is kept",
  deadline: "Its time was up",
  error: "An error ended it",
};
const WRITE_MS = 60;

let cursor = root.dataset.cursor ?? "";
let isFinal = !["queued", "running"].includes(root.dataset.status ?? "");
let tokens = Number(root.dataset.tokens);
let firstAt = 0;
let firstTokens = 0;
let rate = Number(root.dataset.rate); // the last that is known
let pending = "";
let timer = 0;
/** @type {EventSource | null} */
let source = null;

/** Only a change is announced. @param {string} words */
const say = (words) => {
  if (status.textContent !== words) status.textContent = words;
};

const write = () => {
  timer = 0;
  if (pending) text.append(pending);
  pending = "";
  text.normalize();
  progress.value = tokens;
  const seconds = (performance.now() - firstAt) / 1000;
  if (firstAt && seconds > 0.2) rate = (tokens - firstTokens) / seconds;
  part("progress-text").textContent =
    `${tokens}/${length} tokens` + (rate >= 0.05 ? ` · ${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s` : "");
};
const writeSoon = () => {
  timer ||= setTimeout(write, WRITE_MS);
};

/** @param {string} id @param {number | null} value */
const showMs = (id, value) => {
  part(id).textContent =
    value === null ? "–" : value < 1000 ? `${value} ms` : `${(value / 1000).toFixed(1)} s`;
};

/** @param {Job} job */
const statusSentence = (job) => {
  if (job.status === "running") return job.cancel_requested ? "Canceling" : "The text is being written";
  if (job.status !== "queued") return ENDS[job.finish_reason ?? ""] ?? WORDS[job.status];
  if (!job.queue?.position) return "In the queue";
  const { position, eta_seconds: eta } = job.queue;
  const place = position === 1 ? "Next in the queue" : `Number ${position} in the queue`;
  if (eta === null) return place;
  return `${place}; about ${Math.max(1, Math.round(eta))} s by the recent texts of this model`;
};

/** @param {Job} job */
const showStatus = (job) => {
  const badge = part("badge");
  badge.className = `badge badge--${job.status}`;
  badge.textContent = WORDS[job.status];
  say(statusSentence(job));
  document.title = document.title.replace(/^[^:]*/, WORDS[job.status]);
  part("meter").hidden = job.status !== "running";
  part("caret").hidden = job.status !== "running";
  if (job.status !== "queued") part("no-worker").hidden = true;
};

/** @param {Job} job */
const finish = (job) => {
  isFinal = true;
  close();
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
  showMs("t-queued", job.timings.queued_ms);
  showMs("t-first", job.timings.first_token_ms);
  showMs("t-total", job.timings.total_ms);
  const { completion_tokens: made, prompt_tokens: given } = job.usage;
  part("t-tokens").textContent = `${made ?? 0} written${given === null ? "" : `, ${given} in the prompt`}`;
  const mean = job.timings.tokens_per_second;
  part("t-rate").textContent = mean ? `${mean.toFixed(1)} tokens/s` : "–";
  dispatchEvent(new Event("textmill:done"));
};

const gone = () => {
  isFinal = true;
  close();
  say("This text was deleted");
  part("meter").hidden = true;
  part("caret").hidden = true;
  part("live-actions").hidden = true;
  part("offline").hidden = true;
};

/** The stream told that there is no more of it: ask for the job itself. */
const settle = async () => {
  try {
    const answer = await fetch(self);
    if (answer.status === 404) return gone();
    if (!answer.ok) throw new Error(String(answer.status));
    const job = /** @type {Job} */ (await answer.json());
    if (!["queued", "running"].includes(job.status)) return finish(job);
  } catch {
    part("offline").hidden = false; // the next try may do better
  }
  setTimeout(open, 2000);
};

function close() {
  source?.close();
  source = null;
}

function open() {
  if (isFinal || source) return;
  const stream = (source = new EventSource(`${events}?after=${encodeURIComponent(cursor)}`));
  /** @param {string} name @param {(data: any) => void} action */
  const on = (name, action) =>
    stream.addEventListener(name, (event) => {
      if (stream !== source) return;
      cursor = event.lastEventId || cursor;
      action(JSON.parse(event.data));
    });
  stream.onopen = () => {
    part("offline").hidden = true;
  };
  stream.onerror = () => {
    if (stream !== source || isFinal) return;
    if (stream.readyState === EventSource.CLOSED) {
      close();
      settle();
      return;
    }
    setTimeout(() => {
      if (!isFinal && stream === source && stream.readyState !== EventSource.OPEN) {
        part("offline").hidden = false;
      }
    }, 1500);
  };
  on("status", showStatus);
  on("token", (data) => {
    if (!firstAt) {
      firstAt = performance.now();
      firstTokens = data.tokens;
    }
    pending += data.text;
    tokens = data.tokens;
    writeSoon();
  });
  on("reset", () => {
    pending = "";
    text.textContent = "";
    tokens = 0;
    firstAt = 0;
    rate = 0;
    part("restarted").hidden = false;
    writeSoon();
  });
  on("done", finish);
  on("deleted", gone);
}

addEventListener("pagehide", close);
addEventListener("pageshow", open);
open();

// Cancel without leaving the page; the form itself does where this fails.
part("cancel").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = /** @type {HTMLFormElement} */ (event.target);
  const button = form.querySelector("button");
  button?.setAttribute("aria-disabled", "true");
  try {
    const answer = await fetch(`${self}/cancel`, { method: "POST" });
    if (!answer.ok && answer.status !== 409) throw new Error(String(answer.status));
    say("Canceling");
  } catch {
    form.submit();
  }
});

part("delete").addEventListener("submit", (event) => {
  if (!confirm("Delete this text? This cannot be undone.")) event.preventDefault();
});

const copy = part("copy");
copy.addEventListener("click", async () => {
  const prose = /** @type {HTMLElement} */ (text.parentElement);
  try {
    await navigator.clipboard.writeText(prose.textContent ?? "");
  } catch {
    // No clipboard on plain http: mark the text, and copy what is marked.
    getSelection()?.selectAllChildren(prose);
    document.execCommand("copy");
  }
  copy.textContent = "Copied";
  setTimeout(() => (copy.textContent = "Copy"), 2000);
});

export {};
