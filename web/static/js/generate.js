// @ts-check
// The generate form, made live. Without this file it works all the same.

const form = /** @type {HTMLFormElement} */ (document.getElementById("generate"));
const prompt = /** @type {HTMLTextAreaElement} */ (document.getElementById("prompt"));
const samples = /** @type {HTMLInputElement} */ (document.getElementById("samples"));
const submit = /** @type {HTMLButtonElement} */ (document.getElementById("submit"));
const counter = /** @type {HTMLElement} */ (document.getElementById("token-count"));
const DRAFT = `textmill.draft${location.search}`; // one for each address that fills the form

/** @param {() => void} action */
const quietly = (action) => {
  try {
    action();
  } catch {
    // Storage is refused or full: nothing depends on it.
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
  const each = Math.max(1, Math.trunc(Number(samples.value)) || 1);
  let total = 0;
  for (const { value: name } of ticked("strategy")) {
    const once =
      name === "greedy" ||
      name === "beam" ||
      numberOf(`${name}.temperature`) === 0 ||
      numberOf(`${name}.top_k`) === 1;
    total += once ? 1 : each;
  }
  total *= ticked("model").length;
  const label = document.getElementById("submit-label");
  if (label) label.textContent = total ? `Generate ${total}` : "Generate";
};

// Sliders and their numbers.
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

// Tokens, by the model's own tokenizer; of several models, for the one that has least room left.
/**
 * @param {HTMLInputElement} model
 * @param {AbortSignal} signal
 */
const tokensOf = async (model, signal) => {
  const answer = await fetch("/api/v1/tokenize", {
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

// A prompt that was typed and not sent survives a reload.
// A link that brings a prompt of its own wins over an old draft; a reload of its page does not.
const visit = /** @type {PerformanceNavigationTiming | undefined} */ (
  performance.getEntriesByType("navigation")[0]
);
if (location.pathname === "/" && (!prompt.value || visit?.type === "reload")) {
  quietly(() => {
    prompt.value = sessionStorage.getItem(DRAFT) ?? prompt.value;
  });
}
prompt.addEventListener("input", () =>
  quietly(() => sessionStorage.setItem(DRAFT, prompt.value)),
);
countSoon();

// Examples fill the form without losing its settings.
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

// Sending, once.
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

// How many wait.
const estimate = document.getElementById("estimate");
const noWorker = document.getElementById("no-worker");
const look = async () => {
  if (document.hidden || !estimate || !noWorker) return;
  try {
    const answer = await fetch("/api/v1/queue");
    if (!answer.ok) return;
    const queue = await answer.json();
    noWorker.hidden = queue.workers.length > 0;
    const { median_seconds: low, p90_seconds: high } = queue.waiting;
    if (!queue.depth) {
      estimate.textContent = queue.workers.length ? "Nobody is waiting" : "";
    } else if (low === null || high === null) {
      estimate.textContent = `${queue.depth} ahead`;
    } else {
      const from = Math.max(1, Math.floor(low));
      const to = Math.max(1, Math.ceil(high));
      estimate.textContent = `${queue.depth} ahead, about ${to > from ? `${from}–${to}` : from} s`;
    }
  } catch {
    // The next look may do better.
  }
};
setInterval(look, 5000);

export {};
