// @ts-check
// Follows the texts of a run in one stream. The page as it came is complete; this keeps it current.

/**
 * @typedef {{
 *   id: string, status: "queued" | "running" | "succeeded" | "failed" | "canceled", text: string,
 *   error: {code: string, message: string} | null,
 *   queue: {position: number | null} | null,
 *   usage: {completion_tokens: number | null},
 *   timings: {tokens_per_second: number | null},
 * }} Job
 * @typedef {{
 *   root: HTMLElement, self: string, isReference: boolean, isFirstColumn: boolean,
 *   text: string, status: string, tokens: number, length: number, seed: string,
 *   isGone: boolean, isDirty: boolean, figures: string | null,
 * }} Sample
 */

const WORDS = {
  queued: "Waiting",
  running: "Writing",
  succeeded: "Finished",
  failed: "Failed",
  canceled: "Canceled",
};
const WRITE_MS = 60;
const POLL_MS = 1000;
const MAX_MARKED = 24;

const page = /** @type {HTMLElement} */ (document.getElementById("run"));
const { events = "" } = page.dataset;
let cursor = page.dataset.cursor ?? "";
/** @type {EventSource | null} */
let source = null;
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
      isReference: samples.size === 0,
      isFirstColumn: index === 0,
      text: root.querySelector(".run-text")?.textContent ?? "",
      status: root.dataset.status ?? "",
      tokens: progress.value,
      length: Number(root.dataset.length),
      seed: root.dataset.seed ?? "", // as text: a number of JavaScript's would round it
      isGone: false,
      isDirty: false,
      figures: null,
    });
  }
});
const reference = [...samples.values()][0];
const title = columns[0]?.dataset.title ?? "";

/** @param {Sample} sample */
const hasEnded = (sample) => sample.isGone || !["queued", "running"].includes(sample.status);
const isAllFinal = () => [...samples.values()].every(hasEnded);

/** Keeps what somebody has selected: a text that only grows is only appended to.
 * @param {HTMLElement} node @param {string} value */
const setText = (node, value) => {
  const old = node.textContent ?? "";
  if (old === value) return;
  if (old && value.startsWith(old) && node.lastChild instanceof Text) {
    node.lastChild.appendData(value.slice(old.length));
  } else node.textContent = value;
};

/** The UTF-16 place of the first other character, never inside one.
 * @param {string} one @param {string} other */
const commonLength = (one, other) => {
  let index = 0;
  const end = Math.min(one.length, other.length);
  while (index < end && one.charCodeAt(index) === other.charCodeAt(index)) index++;
  const isHigh = index > 0 && /[\ud800-\udbff]/.test(one.charAt(index - 1));
  return isHigh ? index - 1 : index;
};

/** Where the word begins inside which the texts part; in a script without spaces, the character.
 * @param {string} text @param {string} other @param {number} at */
const wordStart = (text, other, at) => {
  if (/^[ \t\r\n]?$/.test(text.charAt(at)) && /^[ \t\r\n]?$/.test(other.charAt(at))) return at;
  const tail = [...text.slice(Math.max(0, at - 2 * MAX_MARKED), at)].slice(-MAX_MARKED);
  const word = /[^ \t\r\n]*$/.exec(tail.join(""))?.[0] ?? "";
  return [...word].length === MAX_MARKED ? at : at - word.length;
};

/** The same rules as backend/pages/template_filters.py. @param {Sample} sample */
const split = (sample) => {
  const { text } = sample;
  const plain = { same: text, mark: "", rest: "", note: "" };
  if (!reference || sample.isFirstColumn || !text) return plain;
  const other = reference.text;
  const at = commonLength(text, other);
  /** @param {number} place */
  const after = (place) => {
    const count = [...text.slice(0, place)].length;
    return count ? `after ${count} character${count === 1 ? "" : "s"}` : "from the first word";
  };
  const isOtherFinal = hasEnded(reference);
  if (at < Math.min(text.length, other.length) || (at < text.length && isOtherFinal)) {
    const start = wordStart(text, other, at);
    const word = /^[ \t\r\n]*[^ \t\r\n]+/u.exec(text.slice(start))?.[0] ?? text.slice(start);
    const size = [...text.slice(start, at)].length + MAX_MARKED;
    const mark = [...word].slice(0, size).join("");
    const rest = text.slice(start + mark.length);
    return { same: text.slice(0, start), mark, rest, note: `differs from ${title} ${after(start)}` };
  }
  if (!hasEnded(sample) || !isOtherFinal) return plain;
  if (at < other.length) return { ...plain, note: `ends ${after(at)}, where ${title} goes on` };
  return { ...plain, note: `the same text as ${title}` };
};

/** @param {Sample} sample */
const writeSample = (sample) => {
  const parts = split(sample);
  setText(part(sample, "same"), parts.same);
  setText(part(sample, "mark"), parts.mark);
  setText(part(sample, "rest"), parts.rest);
  const note = part(sample, "note");
  setText(note, parts.note);
  note.hidden = !parts.note;
  const badge = part(sample, "badge");
  const word = sample.isGone ? "Deleted" : WORDS[/** @type {Job["status"]} */ (sample.status)];
  if (badge.textContent !== word) {
    badge.textContent = word;
    badge.className = `badge badge--${sample.isGone ? "canceled" : sample.status}`;
  }
  part(sample, "meter").hidden = sample.isGone || sample.status !== "running";
  /** @type {HTMLProgressElement} */ (part(sample, "progress")).value = sample.tokens;
  setText(part(sample, "figures"), sample.figures ?? `${sample.tokens}/${sample.length} tokens`);
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
  const words = ended === total ? `All ${total} texts have ended` : `${ended} of ${total} texts have ended`;
  const status = /** @type {HTMLElement} */ (byId("status"));
  if (status.textContent !== words) status.textContent = words;
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
const dirty = (sample) => {
  sample.isDirty = true;
  timer ||= setTimeout(write, WRITE_MS);
};

/** @param {string} id @param {Job} job @param {boolean} isWhole */
const take = (id, job, isWhole) => {
  const sample = samples.get(id);
  if (!sample) return;
  sample.status = job.status;
  sample.figures = null;
  if (job.status === "queued") {
    const place = job.queue?.position;
    sample.figures = place ? `Number ${place} in the queue` : "In the queue";
  } else {
    const noWorker = byId("no-worker");
    if (noWorker) noWorker.hidden = true;
  }
  if (isWhole) {
    sample.text = job.text;
    sample.tokens = job.usage.completion_tokens ?? 0;
    if (hasEnded(sample)) {
      const rate = job.timings.tokens_per_second;
      sample.figures =
        `${sample.tokens}/${sample.length} tokens` +
        (rate ? ` · ${rate.toFixed(1)} tokens/s` : "") +
        (sample.seed ? ` · seed ${sample.seed}` : "");
    }
    const error = part(sample, "error");
    error.hidden = !job.error;
    if (job.error) error.textContent = job.error.message || job.error.code;
  }
  dirty(sample);
};

/** @param {boolean} isOffline */
const showOffline = (isOffline) => {
  const banner = byId("offline");
  if (banner) banner.hidden = !isOffline;
};

const close = () => {
  source?.close();
  source = null;
};

/** @param {string} id */
const drop = (id) => {
  const sample = samples.get(id);
  if (!sample) return;
  sample.isGone = true;
  dirty(sample);
};

let pollTimer = 0;
/** Chosen jobs have no stream of their own, and a broken stream has none either. */
const poll = async () => {
  pollTimer = 0;
  let isOffline = false;
  for (const [id, sample] of samples) {
    if (hasEnded(sample)) continue;
    try {
      const answer = await fetch(sample.self);
      if (answer.status === 404) drop(id);
      else if (answer.ok) take(id, await answer.json(), true);
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

function open() {
  if (source || isAllFinal()) return;
  const stream = (source = new EventSource(`${events}?after=${encodeURIComponent(cursor)}`));
  /** @param {string} name @param {(data: any) => void} action */
  const on = (name, action) =>
    stream.addEventListener(name, (event) => {
      if (stream !== source) return;
      cursor = event.lastEventId || cursor;
      action(event.data ? JSON.parse(event.data) : {});
    });
  stream.onopen = () => showOffline(false);
  stream.onerror = () => {
    if (stream !== source) return;
    if (stream.readyState === EventSource.CLOSED) {
      close();
      if (!isAllFinal()) pollSoon();
      return;
    }
    setTimeout(() => {
      if (stream === source && stream.readyState !== EventSource.OPEN) showOffline(true);
    }, 1500);
  };
  on("status", (data) => take(data.job_id, data.job, false));
  on("token", (data) => {
    const sample = samples.get(data.job_id);
    if (!sample) return;
    sample.text += data.text;
    sample.tokens = data.tokens;
    dirty(sample);
  });
  on("reset", (data) => {
    const sample = samples.get(data.job_id);
    if (!sample) return;
    sample.text = "";
    sample.tokens = 0;
    const restarted = byId("restarted");
    if (restarted) restarted.hidden = false;
    dirty(sample);
  });
  on("done", (data) => take(data.job_id, data.job, true));
  on("deleted", (data) => drop(data.job_id));
  on("end", close);
}

function start() {
  if (isAllFinal()) return;
  if (events) open();
  else pollSoon();
}

addEventListener("pagehide", () => {
  close();
  clearTimeout(pollTimer);
  pollTimer = 0;
});
addEventListener("pageshow", start);
start();

// Tabs where the columns do not fit beside each other.
const tablist = byId("tabs");
const tabs = [...document.querySelectorAll(".run-tab")].map((n) => /** @type {HTMLElement} */ (n));
const narrow = matchMedia("(max-width: 44rem)");
let chosen = 0;

const layOut = () => {
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
    layOut();
  });
  tab.addEventListener("keydown", (event) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    chosen = (chosen + step + tabs.length) % tabs.length;
    layOut();
    tabs[chosen]?.focus();
  });
});
narrow.addEventListener("change", layOut);
layOut();
