// @ts-check
// Follows the jobs of a run in one stream. The server sends a complete page; this script keeps it
// current.

import { PHRASES, STATUS_LABELS } from "./contract.js";
import { divergence } from "./divergence.js";
import { EventStream } from "./event_stream.js";
import { endedLabel, fill, finalRate, isFinal, queueLabel, tokensLabel } from "./phrases.js";

/**
 * @typedef {import("./phrases.js").Job} Job
 * @typedef {import("./phrases.js").Status} Status
 * @typedef {{
 *   root: HTMLElement, self: string, isFirstColumn: boolean,
 *   text: string, status: Status, tokens: number, length: number, seed: string,
 *   isDeleted: boolean, isDirty: boolean, figures: string | null,
 * }} Sample
 */

const WRITE_MS = 60;
const POLL_MS = 1000;

const page = /** @type {HTMLElement} */ (document.getElementById("run"));
const { events = "" } = page.dataset;
let timer = 0;

/** @param {string} id */
const byId = (id) => document.getElementById(id);

/** @param {Sample} sample @param {string} name */
const part = (sample, name) =>
  /** @type {HTMLElement} */ (sample.root.querySelector(`[data-part="${name}"]`));

/** @type {Map<string, Sample>} */
const samples = new Map();
const columns = [...document.querySelectorAll(".run-column")].map(
  (node) => /** @type {HTMLElement} */ (node),
);
columns.forEach((column, index) => {
  for (const node of column.querySelectorAll("[data-job]")) {
    const root = /** @type {HTMLElement} */ (node);
    const progress = /** @type {HTMLProgressElement} */ (root.querySelector("progress"));
    samples.set(root.dataset.job ?? "", {
      root,
      self: root.dataset.self ?? "",
      isFirstColumn: index === 0,
      text: root.querySelector(".run-text")?.textContent ?? "",
      status: /** @type {Status} */ (root.dataset.status),
      tokens: progress.value,
      length: Number(root.dataset.length),
      seed: root.dataset.seed ?? "", // as text: a JavaScript number would round it
      isDeleted: false,
      isDirty: false,
      figures: null,
    });
  }
});
const reference = [...samples.values()][0];
const title = columns[0]?.dataset.title ?? "";

/** @param {Sample} sample */
const hasEnded = (sample) => sample.isDeleted || isFinal(sample.status);
const isAllFinal = () => [...samples.values()].every(hasEnded);

/**
 * Sets a text. A text that grows is appended to, which keeps the reader's selection.
 * @param {HTMLElement} node @param {string} value */
const setText = (node, value) => {
  const old = node.textContent ?? "";
  if (old === value) return;
  if (old && value.startsWith(old) && node.lastChild instanceof Text) {
    node.lastChild.appendData(value.slice(old.length));
  } else node.textContent = value;
};

/** @param {Sample} sample */
const writeSample = (sample) => {
  const other = reference && !sample.isFirstColumn ? reference : null;
  const parts = divergence(
    { text: sample.text, hasEnded: hasEnded(sample) },
    other && { text: other.text, hasEnded: hasEnded(other) },
    title,
  );
  setText(part(sample, "same"), parts.same);
  setText(part(sample, "mark"), parts.mark);
  setText(part(sample, "rest"), parts.rest);
  const note = part(sample, "note");
  setText(note, parts.note);
  note.hidden = !parts.note;
  const badge = part(sample, "badge");
  const label = sample.isDeleted ? PHRASES.DELETED_LABEL : STATUS_LABELS[sample.status];
  if (badge.textContent !== label) {
    badge.textContent = label;
    badge.className = `badge badge--${sample.isDeleted ? "canceled" : sample.status}`;
  }
  part(sample, "meter").hidden = sample.isDeleted || sample.status !== "running";
  /** @type {HTMLProgressElement} */ (part(sample, "progress")).value = sample.tokens;
  setText(part(sample, "figures"), sample.figures ?? tokensLabel(sample.tokens, sample.length));
};

const write = () => {
  timer = 0;
  const isReferenceDirty = reference?.isDirty;
  for (const sample of samples.values()) {
    if (sample.isDirty || isReferenceDirty) writeSample(sample);
    sample.isDirty = false;
  }
  const total = samples.size;
  const ended = [...samples.values()].filter(hasEnded).length;
  const status = /** @type {HTMLElement} */ (byId("status"));
  const label = endedLabel(ended, total);
  if (status.textContent !== label) status.textContent = label;
  const restarted = byId("restarted");
  if (restarted && ended === total) restarted.hidden = true;
  const live = byId("live-actions");
  if (live && ended === total && !live.hidden) {
    const hadFocus = live.contains(document.activeElement);
    live.hidden = true;
    const again = document.querySelector('form[action$="/again"] button');
    if (hadFocus && again instanceof HTMLElement) again.focus();
  }
};

/** @param {Sample} sample */
const markDirty = (sample) => {
  sample.isDirty = true;
  timer ||= setTimeout(write, WRITE_MS);
};

/** @param {string} id @param {Job} job @param {boolean} isWhole */
const update = (id, job, isWhole) => {
  const sample = samples.get(id);
  if (!sample) return;
  sample.status = job.status;
  sample.figures = null;
  if (job.status === "queued") {
    sample.figures = queueLabel(job);
  } else {
    const noWorker = byId("no-worker");
    if (noWorker) noWorker.hidden = true;
  }
  if (isWhole) {
    sample.text = job.text;
    sample.tokens = job.usage.completion_tokens ?? 0;
    if (hasEnded(sample)) {
      const rate = job.timings.tokens_per_second;
      sample.figures = [
        tokensLabel(sample.tokens, sample.length),
        rate ? finalRate(rate) : "",
        sample.seed ? fill(PHRASES.SEED, { seed: sample.seed }) : "",
      ]
        .filter(Boolean)
        .join(" · ");
    }
    const error = part(sample, "error");
    error.hidden = !job.error;
    if (job.error) error.textContent = job.error.message || job.error.code;
  }
  markDirty(sample);
};

/** @param {boolean} isOffline */
const showOffline = (isOffline) => {
  const banner = byId("offline");
  if (banner) banner.hidden = !isOffline;
};

/** @param {string} id */
const markDeleted = (id) => {
  const sample = samples.get(id);
  if (!sample) return;
  sample.isDeleted = true;
  markDirty(sample);
};

let pollTimer = 0;
/** Reads each job: compared jobs have no common stream, and a stream may have been ended. */
const poll = async () => {
  pollTimer = 0;
  let isOffline = false;
  for (const [id, sample] of samples) {
    if (hasEnded(sample)) continue;
    try {
      const answer = await fetch(sample.self);
      if (answer.status === 404) markDeleted(id);
      else if (answer.ok) update(id, await answer.json(), true);
      else isOffline = true;
    } catch {
      isOffline = true;
    }
  }
  showOffline(isOffline);
  if (!isAllFinal()) pollSoon();
};
const pollSoon = () => {
  if (!document.hidden) pollTimer ||= setTimeout(poll, POLL_MS);
};
document.addEventListener("visibilitychange", () => {
  if (!events || pollTimer) start();
});

const stream = new EventStream({
  address: events,
  cursor: page.dataset.cursor ?? "",
  onConnection: (isLost) => showOffline(isLost),
  onClosed: () => {
    if (!isAllFinal()) pollSoon();
  },
  handlers: {
    // A final status is shown by `done`, which follows, together with the whole text.
    status: (data) => {
      if (!isFinal(data.job.status)) update(data.job_id, data.job, false);
    },
    token: (data) => {
      const sample = samples.get(data.job_id);
      if (!sample) return;
      sample.text += data.text;
      sample.tokens = data.tokens;
      markDirty(sample);
    },
    reset: (data) => {
      const sample = samples.get(data.job_id);
      if (!sample) return;
      sample.text = "";
      sample.tokens = 0;
      const restarted = byId("restarted");
      if (restarted) restarted.hidden = false;
      markDirty(sample);
    },
    done: (data) => update(data.job_id, data.job, true),
    deleted: (data) => markDeleted(data.job_id),
    end: () => stream.close(),
  },
});

function start() {
  if (isAllFinal()) return;
  if (events) stream.open();
  else pollSoon();
}

addEventListener("pagehide", () => {
  stream.close();
  clearTimeout(pollTimer);
  pollTimer = 0;
});
addEventListener("pageshow", start);
start();

// On narrow screens the columns are tabs.
const tablist = byId("tabs");
const tabs = [...document.querySelectorAll(".run-tab")].map((n) => /** @type {HTMLElement} */ (n));
const narrow = matchMedia("(max-width: 44rem)");
let chosen = 0;

const layout = () => {
  const isTabbed = narrow.matches && tabs.length > 1;
  if (tablist) tablist.hidden = !isTabbed;
  columns.forEach((column, index) => {
    column.hidden = isTabbed && index !== chosen;
    if (isTabbed) column.setAttribute("role", "tabpanel");
    else column.removeAttribute("role");
  });
  tabs.forEach((tab, index) => {
    tab.setAttribute("aria-selected", String(index === chosen));
    tab.tabIndex = index === chosen ? 0 : -1;
  });
};
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => {
    chosen = index;
    layout();
  });
  tab.addEventListener("keydown", (event) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    chosen = (chosen + step + tabs.length) % tabs.length;
    layout();
    tabs[chosen]?.focus();
  });
});
narrow.addEventListener("change", layout);
layout();
