// @ts-check
// Shows a trace: each token is a button, shaded and underlined by its probability.

import { sitePath } from "./paths.js";
import { isFinal } from "./phrases.js";

/**
 * @typedef {{id: number, text: string, logprob: number, probability: number}} Alternative
 * @typedef {{id: number, text: string, logprob: number, rank: number, probability: number,
 *            entropy: number, alternatives: Alternative[]}} Token
 */

const section = /** @type {HTMLElement} */ (document.getElementById("trace"));
const list = /** @type {HTMLElement} */ (document.getElementById("trace-tokens"));
const panel = /** @type {HTMLElement} */ (document.getElementById("trace-panel"));
/** Lower bounds of the shades, as probabilities by the model; below the last one is the fifth. */
const LEVELS = [0.8, 0.5, 0.2, 0.05];

/** @param {string} tag @param {string} [text] @param {string} [className] */
const make = (tag, text = "", className = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
};

/** @param {number} share */
const percent = (share) =>
  share === 0 ? "0" : share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`;

/** Makes spaces and line breaks visible. @param {string} text */
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "␣") || "∅";

/** @type {Record<string, number>} */
const defaults = {};

/**
 * Which tokens each strategy, with its defaults, would have kept.
 * @param {Token} token
 */
const wouldKeep = (token) => {
  const shares = token.alternatives.map((one) => Math.exp(one.logprob));
  const found = [`Greedy would take “${visible(token.alternatives[0]?.text ?? "")}”.`];
  const { top_k: k, top_p: p, min_p: floor } = defaults;
  if (k) {
    const inside = token.rank <= k;
    found.push(`Top-k (k ${k}) ${inside ? "keeps" : "drops"} the chosen token (rank ${token.rank}).`);
  }
  if (p) {
    let mass = 0;
    let size = 0;
    while (size < shares.length && mass < p) mass += shares[size++] ?? 0;
    found.push(
      mass < p
        ? `Nucleus (p ${p}) would keep more than ${shares.length} tokens.`
        : `Nucleus (p ${p}) would keep ${size} ${size === 1 ? "token" : "tokens"}.`,
    );
  }
  if (floor) {
    const size = shares.filter((share) => share >= floor * (shares[0] ?? 1)).length;
    const more = size === shares.length ? "at least " : "";
    found.push(`Min-p (${floor}) would keep ${more}${size} ${size === 1 ? "token" : "tokens"}.`);
  }
  return found;
};

/** @param {Token} token */
const show = (token) => {
  const heading = make("h3");
  // A special token or a part of a character has no text of its own, and is shown by its name.
  const name = token.alternatives.find((one) => one.id === token.id)?.text;
  heading.append(make("code", visible(token.text || name || "")));
  const facts = make(
    "p",
    `Rank ${token.rank}, ${percent(Math.exp(token.logprob))} by the model, ` +
      `${percent(token.probability)} after the cut; entropy ${token.entropy.toFixed(2)} nats.`,
    "small muted",
  );
  const kept = make("ul", "", "small trace__kept");
  kept.append(...wouldKeep(token).map((sentence) => make("li", sentence)));
  const table = make("table", "", "table");
  const head = make("tr");
  for (const [label, kind] of [["Token", ""], ["Model", "number"], ["After the cut", "number"]]) {
    const cell = make("th", label, kind);
    cell.setAttribute("scope", "col");
    head.append(cell);
  }
  const thead = make("thead");
  thead.append(head);
  const body = make("tbody");
  for (const one of token.alternatives) {
    const row = make("tr");
    if (one.id === token.id) row.className = "trace__chosen";
    const name = make("th");
    name.setAttribute("scope", "row");
    name.append(make("code", visible(one.text)));
    if (one.id === token.id) name.append(" ✓", make("span", " chosen", "visually-hidden"));
    row.append(
      name,
      make("td", percent(Math.exp(one.logprob)), "number"),
      make("td", percent(one.probability), "number"),
    );
    body.append(row);
  }
  table.append(thead, body);
  const wrap = make("div", "", "table-wrap");
  wrap.tabIndex = 0;
  wrap.setAttribute("role", "region");
  wrap.setAttribute("aria-label", "The most likely tokens");
  wrap.append(table);
  panel.replaceChildren(heading, facts, kept, wrap);
};

/** @param {Token[]} tokens */
const draw = (tokens) => {
  const buttons = tokens.map((token, index) => {
    const share = Math.exp(token.logprob);
    const level = LEVELS.findIndex((end) => share >= end);
    const button = /** @type {HTMLButtonElement} */ (
      make("button", token.text.replace(/\n/g, "↵") || "·", `token token--${level < 0 ? LEVELS.length : level}`)
    );
    button.type = "button";
    button.tabIndex = index === 0 ? 0 : -1;
    button.title = `${percent(share)}, rank ${token.rank}`;
    button.setAttribute("aria-pressed", "false");
    return button;
  });
  /** @param {number} index @param {boolean} focus */
  const select = (index, focus) => {
    const token = tokens[index];
    if (!token) return;
    buttons.forEach((button, other) => {
      button.setAttribute("aria-pressed", String(other === index));
      button.tabIndex = other === index ? 0 : -1;
    });
    if (focus) buttons[index]?.focus();
    show(token);
  };
  list.replaceChildren(
    ...buttons.flatMap((button, index) =>
      tokens[index]?.text.includes("\n") ? [button, "\n"] : [button],
    ),
  );
  list.addEventListener("click", (event) => {
    const index = buttons.findIndex((button) => button === event.target);
    if (index >= 0) select(index, false);
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const index = buttons.findIndex((button) => button === event.target);
    if (step === undefined || index < 0) return;
    event.preventDefault();
    select(Math.min(buttons.length - 1, Math.max(0, index + step)), true);
  });
  section.hidden = false;
  select(0, false);
};

const load = async () => {
  try {
    const [trace, strategies] = await Promise.all([
      fetch(section.dataset.trace ?? ""),
      fetch(sitePath("/api/v1/strategies")),
    ]);
    if (!trace.ok) return;
    if (strategies.ok) {
      const answer = await strategies.json();
      for (const strategy of answer) {
        for (const parameter of strategy.parameters) {
          if (parameter.name === strategy.name) defaults[parameter.name] = parameter.default;
        }
      }
    }
    const { tokens } = await trace.json();
    if (tokens.length) draw(tokens);
  } catch {
    // The page is complete without it, and links to the trace as JSON.
  }
};

const job = document.getElementById("job");
if (isFinal(job?.dataset.status ?? "")) load();
else addEventListener("textmill:done", load, { once: true });
