// @ts-check
// Makes the generate form live. The form also works without this script.

import { sitePath } from "./paths.js";
import { queueEstimate } from "./phrases.js";
import { numTexts } from "./variants.js";

const form = /** @type {HTMLFormElement} */ (document.getElementById("generate"));
const prompt = /** @type {HTMLTextAreaElement} */ (document.getElementById("prompt"));
const samples = /** @type {HTMLInputElement} */ (document.getElementById("samples"));
const submit = /** @type {HTMLButtonElement} */ (document.getElementById("submit"));
const counter = /** @type {HTMLElement} */ (document.getElementById("token-count"));
const DRAFT = `textmill.draft${location.search}`; // a link with another prompt has another draft

/** @param {() => void} action */
const quietly = (action) => {
  try {
    action();
  } catch {
    // Storage is blocked or full; nothing depends on it.
  }
};

/** @param {string} name */
const numberOf = (name) => {
  const field = document.getElementById(name);
  return field instanceof HTMLInputElement && field.value !== "" ? Number(field.value) : null;
};

/** @param {"strategy" | "model"} name */
const ticked = (name) =>
  /** @type {HTMLInputElement[]} */ ([...form.querySelectorAll(`input[name="${name}"]:checked`)]);

const showCount = () => {
  const variants = ticked("strategy").map(({ value: strategy }) => ({
    strategy,
    temperature: numberOf(`${strategy}.temperature`),
    topK: numberOf(`${strategy}.top_k`),
  }));
  const total = numTexts(variants, ticked("model").length, samples.value);
  const label = document.getElementById("submit-label");
  if (label) label.textContent = total ? `Generate ${total}` : "Generate";
};

// Each slider and its number box.
for (const slider of form.querySelectorAll("input[type=range][data-for]")) {
  const range = /** @type {HTMLInputElement} */ (slider);
  const box = document.getElementById(range.dataset.for ?? "");
  if (!(box instanceof HTMLInputElement)) continue;
  range.value = box.value;
  range.addEventListener("input", () => {
    box.value = range.value;
    showCount();
  });
  box.addEventListener("input", () => {
    if (box.value !== "") range.value = box.value;
  });
}
form.addEventListener("input", showCount);
showCount();

// The token count, by the model's tokenizer. With several models: of the one with the least room.
/**
 * @param {HTMLInputElement} model
 * @param {AbortSignal} signal
 */
const tokensOf = async (model, signal) => {
  const answer = await fetch(sitePath("/api/v1/tokenize"), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model: model.value, text: prompt.value }),
    signal,
  });
  if (!answer.ok) throw new Error(String(answer.status));
  const context = Number(model.dataset.context) || Infinity;
  return { name: model.value, tokens: Number((await answer.json()).count), context };
};
/** @type {AbortController | null} */
let counting = null;
let countTimer = 0;
const count = async () => {
  counting?.abort();
  const request = (counting = new AbortController());
  const models = ticked("model");
  if (!prompt.value || !models.length) {
    counter.textContent = "";
    return;
  }
  try {
    const counts = await Promise.all(models.map((model) => tokensOf(model, request.signal)));
    const [{ name, tokens, context }] = counts.sort(
      (one, other) => other.tokens / other.context - one.tokens / one.context,
    );
    const isTooLong = tokens >= context;
    counter.textContent =
      (context < Infinity ? `${tokens} / ${context} tokens` : `${tokens} tokens`) +
      (isTooLong ? `: too long for ${models.length > 1 ? name : "this model"}` : "");
    counter.classList.toggle("field__error", isTooLong);
  } catch {
    if (!request.signal.aborted) counter.textContent = "";
  }
};
const countSoon = () => {
  clearTimeout(countTimer);
  countTimer = setTimeout(count, 300);
};
prompt.addEventListener("input", countSoon);
form.addEventListener("change", (event) => {
  if (event.target instanceof HTMLInputElement && event.target.name === "model") countSoon();
});

// A typed prompt that was not submitted survives a reload.
// The prompt of a link replaces an old draft, but not when its page is reloaded.
const visit = /** @type {PerformanceNavigationTiming | undefined} */ (
  performance.getEntriesByType("navigation")[0]
);
if (location.pathname === sitePath("/") && (!prompt.value || visit?.type === "reload")) {
  quietly(() => {
    prompt.value = sessionStorage.getItem(DRAFT) ?? prompt.value;
  });
}
prompt.addEventListener("input", () =>
  quietly(() => sessionStorage.setItem(DRAFT, prompt.value)),
);
countSoon();

// An example replaces the prompt and keeps the settings.
for (const link of document.querySelectorAll("a[data-prompt]")) {
  link.addEventListener("click", (event) => {
    const click = /** @type {MouseEvent} */ (event);
    if (click.ctrlKey || click.metaKey || click.shiftKey) return;
    event.preventDefault();
    prompt.value = /** @type {HTMLElement} */ (link).dataset.prompt ?? "";
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
    prompt.focus();
  });
}

// The form is submitted once.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !submit.disabled) {
    event.preventDefault();
    form.requestSubmit(submit);
  }
});
form.addEventListener("submit", () => {
  quietly(() => sessionStorage.removeItem(DRAFT));
  setTimeout(() => (submit.disabled = true), 0);
});
addEventListener("pageshow", () => (submit.disabled = false));

(document.getElementById("summary") ?? document.getElementById("busy"))?.focus();

// The estimated wait.
const estimate = document.getElementById("estimate");
const noWorker = document.getElementById("no-worker");
const refresh = async () => {
  if (document.hidden || !estimate || !noWorker) return;
  try {
    const answer = await fetch(sitePath("/api/v1/queue"));
    if (!answer.ok) return;
    const queue = await answer.json();
    noWorker.hidden = queue.workers.length > 0;
    estimate.textContent = queueEstimate(queue);
  } catch {
    // The next refresh may succeed.
  }
};
setInterval(refresh, 5000);
