"""The form of the generate page: converts between its fields and API requests.

Knows nothing of Flask. Fields are named ``prompt``, ``top_k.temperature``, ``samples`` and so on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textmill.backend.response_models import JobView, ParameterView, StrategyView
from textmill.backend.run_requests import MAX_VARIANTS
from textmill.core.errors import FieldError
from textmill.core.strategies import MAX_NEW_TOKENS, STRATEGIES, is_deterministic

Document = dict[str, Any]
PRESET = ("greedy", "sampling", "top_k")  # as in the original demo
COMMON_FIELDS = ("max_new_tokens", "seed", "stop", "trace", "model", "prompt", "samples")
SLIDER_MAXIMA = {"top_k": 100, "max_new_tokens": 256}  # where the maximum depends on the model
_COLLECTIONS = {
    f"{spec.name}.{own.name}": own.default_json() for spec in STRATEGIES for own in spec.collections
}
_ESCAPE = re.compile(r"\\([nt\\])")
_ESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}


@dataclass
class GenerateForm:
    """The values of the fields, as text, and the error messages by field.

    ``kept`` has lists and objects: the form cannot change them, only pass them on.
    """

    prompt: str = ""
    models: list[str] = field(default_factory=list)
    ticked: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)  # JSON, of a job that the form starts from
    samples: str = "1"
    max_new_tokens: str = str(MAX_NEW_TOKENS.default)
    seed: str = ""
    stop: str = ""
    trace: bool = False
    errors: dict[str, str] = field(default_factory=dict)

    def add_errors(self, errors: Iterable[FieldError]) -> None:
        """Assign the error messages of the API to fields of the form."""
        for error in errors:
            self.errors.setdefault(self.form_field(error.field), error.message)

    def form_field(self, name: str) -> str:
        """Return the form field of an API field: ``top_k.top_k`` for ``variants.1.top_k``."""
        parts = name.split(".")
        strategy = self.ticked[0] if len(self.ticked) == 1 else ""
        if parts[0] == "variants" and len(parts) > 2 and parts[1].isdecimal():
            index = int(parts[1])
            pairs = self._pairs()
            strategy = pairs[index][0] if index < len(pairs) else ""
            parts = parts[2:]
        if parts[0] in COMMON_FIELDS:
            return parts[0]
        own = f"{strategy}.{parts[0]}"
        return own if own in self.values or own in self.kept else "strategy"

    def num_texts(self) -> int:
        """Return the number of texts that the form asks for."""
        samples = int(self.samples) if re.fullmatch(r"[0-9]{1,2}", self.samples) else 1
        return sum(1 if self._is_deterministic(name) else samples for name, _ in self._pairs())

    def _pairs(self) -> list[tuple[str, str]]:
        """Return the variants: each strategy with each model, grouped by strategy."""
        return [(name, model) for name in self.ticked for model in self.models or [""]]

    def _is_deterministic(self, strategy: str) -> bool:
        temperature, top_k = (
            _number(self.values.get(f"{strategy}.{name}", "")) for name in ("temperature", "top_k")
        )
        return is_deterministic(strategy, temperature, top_k)

    @property
    def is_single(self) -> bool:
        """Whether the form asks for a single job instead of a run."""
        return len(self._pairs()) == 1 and self.samples.strip() in ("", "1")

    def payload(self) -> Document:
        """Return the body of ``POST /jobs`` or, for several texts, of ``POST /runs``."""
        common: Document = {"prompt": self.prompt}
        if len(self.models) == 1:
            common["model"] = self.models[0]
        for name, text in (("max_new_tokens", self.max_new_tokens), ("seed", self.seed)):
            if text.strip():
                common[name] = _number(text)
        stop = [_unescape(line) for line in self.stop.split("\n") if line]
        if stop:
            common["stop"] = stop
        if self.trace:
            common["trace"] = True
        variants = [self._variant(name, model) for name, model in self._pairs()]
        if self.is_single:
            return common | variants[0]
        samples = _number(self.samples) if self.samples.strip() else 1
        return common | {"variants": variants, "samples": samples}

    def check(self) -> bool:
        """Record the errors that the API would not see: empty selections and bad numbers."""
        if not self.prompt.strip():
            self.errors["prompt"] = "enter a text for the model to continue"
        if not self.ticked:
            self.errors["strategy"] = "select at least one strategy"
        if not self.models:
            self.errors["model"] = "select at least one model"
        num_variants = len(self._pairs())
        if num_variants > MAX_VARIANTS:
            self.errors["strategy"] = (
                f"{len(self.ticked)} strategies on {len(self.models)} models are {num_variants}"
                f" columns, and a page shows at most {MAX_VARIANTS}; select fewer"
            )
        numbers = {"samples": self.samples, "max_new_tokens": self.max_new_tokens}
        numbers["seed"] = self.seed
        for name in self.ticked:
            numbers |= {k: v for k, v in self.values.items() if k.startswith(f"{name}.")}
        for name, text in numbers.items():
            if text.strip() and isinstance(_number(text), str):
                self.errors[name] = "must be a number"
        return not self.errors

    def _variant(self, strategy: str, model: str) -> Document:
        prefix = f"{strategy}."
        own: Document = {
            name.removeprefix(prefix): _number(text)
            for name, text in self.values.items()
            if name.startswith(prefix) and text.strip()
        }
        own |= {
            name.removeprefix(prefix): _json_value(text)
            for name, text in self.kept.items()
            if name.startswith(prefix)
        }
        own_model = {"model": model} if len(self.models) > 1 else {}
        return {"strategy": strategy} | own_model | own


def blank_form(
    strategies: Sequence[StrategyView], models: Sequence[Mapping[str, Any]]
) -> GenerateForm:
    """Return the form with its defaults."""
    values = {
        f"{strategy['name']}.{parameter['name']}": as_text(parameter["default"])
        for strategy in strategies
        for parameter in own_parameters(strategy)
    }
    default = [model["name"] for model in models if model["default"]]
    return GenerateForm(models=default, ticked=list(PRESET), values=values)


def form_from_job(blank: GenerateForm, job: JobView, *, is_continued: bool) -> GenerateForm:
    """Return the form that repeats a job, or continues its text."""
    parameters = job["parameters"]
    blank.prompt = job["prompt"] + (job["text"] if is_continued else "")
    blank.models = [job["model"]]
    blank.ticked = [job["strategy"]]
    blank.max_new_tokens = as_text(parameters.get("max_new_tokens", blank.max_new_tokens))
    blank.seed = "" if is_continued else as_text(parameters.get("seed", ""))
    blank.stop = "\n".join(_escape(text) for text in parameters.get("stop", []))
    blank.trace = bool(job.get("trace"))
    for name, value in parameters.items():
        key = f"{job['strategy']}.{name}"
        if key in blank.values:
            blank.values[key] = as_text(value)
        elif key in _COLLECTIONS and value != _COLLECTIONS[key]:
            blank.kept[key] = json.dumps(value, ensure_ascii=False)
    return blank


def form_from_browser(
    blank: GenerateForm, sent: Mapping[str, str], ticked: Sequence[str], models: Sequence[str]
) -> GenerateForm:
    """Return the form as it was sent; unknown fields are ignored.

    A browser sends nothing for an unchecked box, so the page also sends an empty model: a form
    without any field ``model`` means the default model.
    """

    def lines(name: str, default: str = "") -> str:
        return sent.get(name, default).replace("\r\n", "\n").replace("\r", "\n")

    known = {name.split(".")[0] for name in blank.values}
    blank.prompt = lines("prompt")
    if models:
        blank.models = [name for name in dict.fromkeys(models) if name]
    blank.ticked = [name for name in dict.fromkeys(ticked) if name in known]
    blank.samples = sent.get("samples", blank.samples)
    blank.max_new_tokens = sent.get("max_new_tokens", blank.max_new_tokens)
    blank.seed = sent.get("seed", "")
    blank.stop = lines("stop")
    blank.trace = "trace" in sent
    blank.values |= {name: sent[name] for name in blank.values if name in sent}
    blank.kept = {name: sent[name] for name in _COLLECTIONS if sent.get(name)}
    return blank


def own_parameters(strategy: StrategyView) -> list[ParameterView]:
    """Return the numbers that a strategy has and not all others do; the form has no lists."""
    return [
        p
        for p in strategy["parameters"]
        if p["name"] not in COMMON_FIELDS and p["type"] in ("number", "integer")
    ]


def as_text(value: Any) -> str:
    """Format a number for a field: 1, 0.05."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def slider(parameter: ParameterView) -> dict[str, str]:
    """Return minimum, maximum and step of a slider; its number box also allows other values."""
    name = parameter["name"]
    minimum, maximum = parameter["minimum"] or 0, parameter["maximum"]
    if maximum is None:
        maximum = SLIDER_MAXIMA.get(name, 100)
    is_whole = parameter["type"] == "integer"
    step = 1.0 if is_whole else 0.05 if maximum - minimum > 1 else 0.01
    if parameter["exclusive_minimum"]:
        minimum += step
    return {"min": as_text(minimum), "max": as_text(maximum), "step": as_text(step)}


def _number(text: str) -> int | float | str:
    """Return the number that was entered, or the text, which validation then rejects."""
    text = text.strip()
    if len(text) > 40 or "_" in text:  # Python reads 1_0 as 10
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def _json_value(text: str) -> Any:
    """Return the value that was written as JSON, or the text, which validation then rejects."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _unescape(line: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED[match[1]], line)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
