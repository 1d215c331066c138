// @ts-check
// Refreshes the queue page every few seconds while it is visible.

import { LIMITS } from "./contract.js";
import { sitePath } from "./paths.js";
import { ago, numSlotMarks, problemSentence, shortDuration, slotsLabel } from "./phrases.js";

/**
 * @typedef {{id: string, models: string[], last_seen: string, slots: number, active: number,
 *   tokens_per_second: number}} Worker
 * @typedef {import("./phrases.js").Problem} Problem
 * @typedef {{depth: number, running: number, workers: Worker[], redis: string, problems: Problem[],
 *   throughput: {jobs_per_minute: number, tokens_per_second: number},
 *   waiting: {median_seconds: number | null, p90_seconds: number | null}}} Queue
 */

const EVERY_MS = 3000;
const MAX_POINTS = 100;
const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
/** @param {HTMLElement} root @param {string} name */
const part = (root, name) =>
  /** @type {HTMLElement} */ (root.querySelector(`[data-part="${name}"]`));
/** @param {Element} node @param {string | number} value */
const setText = (node, value) => {
  if (node.textContent !== String(value)) node.textContent = String(value);
};

/** @param {HTMLElement} card @param {Worker} worker */
const showWorker = (card, worker) => {
  card.dataset.worker = worker.id;
  setText(part(card, "id"), worker.id);
  const seen = part(card, "seen");
  seen.setAttribute("datetime", worker.last_seen);
  setText(seen, ago(worker.last_seen, Date.now()));
  const used = slotsLabel(worker.active, worker.slots);
  setText(part(card, "used"), used);
  setText(part(card, "rate"), worker.tokens_per_second.toFixed(1));
  const marks = numSlotMarks(worker.slots);
  const { slotWidth } = LIMITS;
  const svg = part(card, "slots");
  svg.setAttribute("aria-label", used);
  svg.setAttribute("width", String(marks * slotWidth));
  svg.setAttribute("viewBox", `0 0 ${marks * slotWidth || 1} 14`);
  while (svg.childElementCount > marks) svg.lastElementChild?.remove();
  while (svg.childElementCount < marks) {
    const mark = document.createElementNS(SVG, "rect");
    const box = { x: svg.childElementCount * slotWidth + 1, y: 1, width: 12, height: 12, rx: 3 };
    for (const [name, value] of Object.entries(box)) mark.setAttribute(name, String(value));
    svg.append(mark);
  }
  [...svg.children].forEach((mark, index) =>
    mark.setAttribute("class", index < worker.active ? "slot slot--used" : "slot"),
  );
  const models = part(card, "models");
  if ([...models.children].map((chip) => chip.textContent).join("\n") !== worker.models.join("\n")) {
    models.replaceChildren(
      ...worker.models.map((name) => {
        const chip = document.createElement("span");
        chip.className = "chip";
        chip.textContent = name;
        return chip;
      }),
    );
  }
};

/** @param {Worker[]} workers */
const showWorkers = (workers) => {
  const list = byId("workers");
  const template = /** @type {HTMLTemplateElement} */ (document.getElementById("worker-template"));
  const cards = new Map(
    [...list.children].map((node) => {
      const card = /** @type {HTMLElement} */ (node);
      return [card.dataset.worker ?? "", card];
    }),
  );
  for (const worker of workers) {
    let card = cards.get(worker.id);
    cards.delete(worker.id);
    if (!card) {
      const made = template.content.firstElementChild?.cloneNode(true);
      card = /** @type {HTMLElement} */ (made);
      list.append(card);
    }
    showWorker(card, worker);
  }
  for (const card of cards.values()) card.remove();
  byId("no-worker").hidden = workers.length > 0;
  byId("workers-none").hidden = workers.length > 0;
  const slots = workers.reduce((sum, worker) => sum + worker.slots, 0);
  const active = workers.reduce((sum, worker) => sum + worker.active, 0);
  setText(byId("slots-all"), slots ? slotsLabel(active, slots) : "");
};

/** @type {{depth: number, running: number}[]} */
const points = [];
/** @param {Queue} queue */
const draw = (queue) => {
  points.push({ depth: queue.depth, running: queue.running });
  if (points.length > MAX_POINTS) points.shift();
  if (points.length < 2) return;
  byId("chart").hidden = false;
  const top = Math.max(1, ...points.map((point) => Math.max(point.depth, point.running)));
  const step = 600 / (points.length - 1);
  for (const name of /** @type {const} */ (["depth", "running"])) {
    const line = points.map((p, i) => `${(i * step).toFixed(1)},${(116 - (p[name] / top) * 108).toFixed(1)}`);
    byId(`chart-${name}`).setAttribute("points", line.join(" "));
  }
  setText(byId("chart-max"), `at most ${top}`);
};

/** @param {Problem[]} problems */
const showProblems = (problems) => {
  const list = /** @type {HTMLElement} */ (byId("problems").querySelector("ul"));
  const sentences = problems.map(problemSentence);
  const shown = Array.from(list.children, (item) => item.textContent);
  if (sentences.join("\n") !== shown.join("\n")) {
    list.replaceChildren(
      ...sentences.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
    );
  }
  byId("problems").hidden = problems.length === 0;
};

/** @param {Queue} queue */
const show = (queue) => {
  setText(byId("depth"), queue.depth);
  setText(byId("running"), queue.running);
  setText(byId("jobs-rate"), queue.throughput.jobs_per_minute.toFixed(1));
  setText(byId("tokens-rate"), queue.throughput.tokens_per_second.toFixed(1));
  setText(byId("median"), shortDuration(queue.waiting.median_seconds));
  setText(byId("p90"), shortDuration(queue.waiting.p90_seconds));
  byId("degraded").hidden = queue.redis === "ok";
  showProblems(queue.problems);
  showWorkers(queue.workers);
  draw(queue);
};

let timer = 0;
const refresh = async () => {
  timer = 0;
  try {
    const answer = await fetch(sitePath("/api/v1/queue"));
    if (!answer.ok) throw new Error(String(answer.status));
    show(await answer.json());
    setText(byId("state"), "");
  } catch {
    setText(byId("state"), "No connection. These numbers are out of date.");
  }
  later();
};
const later = () => {
  clearTimeout(timer);
  timer = document.hidden ? 0 : setTimeout(refresh, EVERY_MS);
};
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) refresh();
});
addEventListener("pagehide", () => clearTimeout(timer));
addEventListener("pageshow", (event) => (event.persisted ? refresh() : later()));
