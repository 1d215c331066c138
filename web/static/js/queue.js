// @ts-check
// Refreshes the queue every few seconds while somebody looks.

/**
 * @typedef {{id: string, models: string[], last_seen: string, slots: number, active: number,
 *   tokens_per_second: number}} Worker
 * @typedef {{kind: string, name: string, reason: string}} Problem
 * @typedef {{depth: number, running: number, workers: Worker[], redis: string, problems: Problem[],
 *   throughput: {jobs_per_minute: number, tokens_per_second: number},
 *   waiting: {median_seconds: number | null, p90_seconds: number | null}}} Queue
 */

const EVERY_MS = 3000;
const MAX_POINTS = 100;
const MAX_MARKS = 64;
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

/** @param {number | null} value */
const seconds = (value) => {
  if (value === null) return "–";
  if (value < 0.9995) return `${(value * 1000).toFixed(0)} ms`;
  return value < 99.95 ? `${value.toFixed(1)} s` : `${(value / 60).toFixed(0)} min`;
};

/** @param {string} moment */
const ago = (moment) => {
  const passed = (Date.now() - Date.parse(moment)) / 1000;
  /** @type {[number, string][]} */
  const units = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
  for (const [size, word] of units) {
    const count = Math.floor(passed / size);
    if (passed >= 2 && count) return `${count} ${word}${count === 1 ? "" : "s"} ago`;
  }
  return "just now";
};

/** @param {HTMLElement} card @param {Worker} worker */
const showWorker = (card, worker) => {
  card.dataset.worker = worker.id;
  setText(part(card, "id"), worker.id);
  const seen = part(card, "seen");
  seen.setAttribute("datetime", worker.last_seen);
  setText(seen, ago(worker.last_seen));
  const words = `${worker.active} of ${worker.slots} slots used`;
  setText(part(card, "used"), words);
  setText(part(card, "rate"), worker.tokens_per_second.toFixed(1));
  const marks = Math.min(worker.slots, MAX_MARKS);
  const svg = part(card, "slots");
  svg.setAttribute("aria-label", words);
  svg.setAttribute("width", String(marks * 14));
  svg.setAttribute("viewBox", `0 0 ${marks * 14 || 1} 14`);
  while (svg.childElementCount > marks) svg.lastElementChild?.remove();
  while (svg.childElementCount < marks) {
    const mark = document.createElementNS(SVG, "rect");
    const place = { x: svg.childElementCount * 14 + 1, y: 1, width: 12, height: 12, rx: 3 };
    for (const [name, value] of Object.entries(place)) mark.setAttribute(name, String(value));
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
  setText(byId("slots-all"), slots ? `${active} of ${slots} slots used` : "");
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

/** @param {Problem} problem */
const inWords = ({ kind, name, reason }) => {
  if (kind === "model") return `The model ${name} is left out: ${reason}`;
  return kind === "models_file" ? reason : `The process ${name} ${reason}`;
};

/** @param {Problem[]} problems */
const showProblems = (problems) => {
  const list = /** @type {HTMLElement} */ (byId("problems").querySelector("ul"));
  const words = problems.map(inWords);
  const shown = Array.from(list.children, (item) => item.textContent);
  if (words.join("\n") !== shown.join("\n")) {
    list.replaceChildren(
      ...words.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
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
  setText(byId("median"), seconds(queue.waiting.median_seconds));
  setText(byId("p90"), seconds(queue.waiting.p90_seconds));
  byId("degraded").hidden = queue.redis === "ok";
  showProblems(queue.problems);
  showWorkers(queue.workers);
  draw(queue);
};

let timer = 0;
const refresh = async () => {
  timer = 0;
  try {
    const answer = await fetch("/api/v1/queue");
    if (!answer.ok) throw new Error(String(answer.status));
    show(await answer.json());
    setText(byId("state"), "");
  } catch {
    setText(byId("state"), "No connection; these numbers are old.");
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
