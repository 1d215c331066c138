"""Validates run requests: one prompt with several variants, each of which is a job request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from textmill.backend.field_errors import field_errors
from textmill.backend.request_context import RequestContext
from textmill.backend.request_models import (
    JobRequestBase,
    integral,
    parse_job_request,
    without_nulls,
)
from textmill.core.errors import FieldError, ValidationFailed
from textmill.core.strategies import DRAWN_SEEDS, MAX_SEED, is_deterministic

MAX_VARIANTS = 16
MAX_SAMPLES = 16
MAX_JOBS_PER_RUN = 64


class RunRequestBase(BaseModel):
    """The body of ``POST /runs``: one prompt, several variants.

    A variant has the fields of a job request, and inherits those that it omits from the run.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, Field(min_length=1)]
    prompt_ids: Any = None
    model: str | None = None
    variants: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_VARIANTS)]
    samples: Annotated[int, BeforeValidator(integral), Field(ge=1, le=MAX_SAMPLES)] = 1
    max_new_tokens: Any = None
    seed: Any = None
    stop: Any = None
    trace: Any = None
    deadline_seconds: Any = None
    priority: Any = None


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job of a run before it is stored."""

    request: JobRequestBase
    parameters: dict[str, Any]
    variant_index: int
    sample_index: int


_COMMON = (
    "prompt", "prompt_ids", "model", "max_new_tokens", "seed", "stop", "trace", "deadline_seconds",
    "priority",
)  # fmt: skip


def parse_run_request(payload: object, context: RequestContext | None = None) -> list[PlannedJob]:
    """Validate the body of ``POST /runs``; returns its jobs, by variant, then by sample.

    Raises:
        ValidationFailed: it names every invalid field, a variant's as ``variants.INDEX.FIELD``.
    """
    if not isinstance(payload, Mapping):
        raise ValidationFailed([FieldError("", "the body must be a JSON object")])
    payload = without_nulls(payload, "samples")
    if "prompt_ids" in payload:
        payload = payload | {"prompt": "-"}  # each job replaces it by the text of its tokens
    errors: list[FieldError] = []
    try:
        run = RunRequestBase.model_validate(dict(payload))
    except ValidationError as error:
        errors = field_errors(error)
        variants = payload.get("variants")
        if not isinstance(variants, list) or not 1 <= len(variants) <= MAX_VARIANTS:
            raise ValidationFailed(errors) from None
        run = None
    common = {name: payload[name] for name in _COMMON if name in payload}
    planned: list[PlannedJob] = []
    for index, variant in enumerate(payload["variants"]):
        planned += _plan_variant(index, variant, common, run, context, errors)
    if len(planned) > MAX_JOBS_PER_RUN:
        errors.append(FieldError("samples", f"a run has at most {MAX_JOBS_PER_RUN} jobs"))
    if errors:
        raise ValidationFailed(list(dict.fromkeys(errors)))
    return planned


def _plan_variant(
    index: int,
    variant: object,
    common: Mapping[str, Any],
    run: RunRequestBase | None,
    context: RequestContext | None,
    errors: list[FieldError],
) -> list[PlannedJob]:
    prefix = f"variants.{index}"
    if not isinstance(variant, Mapping):
        if run is not None:
            errors.append(FieldError(prefix, "a variant must be a JSON object"))
        return []
    own = without_nulls(variant, "samples", "prompt", "prompt_ids")
    num_samples = _num_samples(own.pop("samples", run.samples if run else 1))
    if num_samples is None:
        message = f"must be a whole number from 1 to {MAX_SAMPLES}"
        errors.append(FieldError(f"{prefix}.samples", message))
        num_samples = 1
    try:
        for name in own.keys() & {"prompt", "prompt_ids"}:
            own.pop(name)
            errors.append(FieldError(f"{prefix}.{name}", "a run has one prompt; omit it here"))
        request = parse_job_request({**common, **own}, context)
    except ValidationFailed as failed:
        errors += [
            item
            if item.field.split(".")[0] in common.keys() - own.keys() or item.field == "prompt"
            else FieldError(f"{prefix}.{item.field}", item.message)
            for item in failed.errors
        ]
        return []
    if _is_deterministic(request):
        num_samples = 1
    return [
        PlannedJob(
            request, request.resolved_parameters(_sample_seed(request, sample)), index, sample
        )
        for sample in range(num_samples)
    ]


def _num_samples(value: object) -> int | None:
    """Return a number of samples, or ``None`` if the value is invalid."""
    number = integral(value)
    if isinstance(number, bool) or not isinstance(number, int):
        return None
    return number if 1 <= number <= MAX_SAMPLES else None


def _is_deterministic(request: JobRequestBase) -> bool:
    """Return whether all samples of a variant have the same text."""
    temperature, top_k = getattr(request, "temperature", None), getattr(request, "top_k", None)
    return is_deterministic(request.strategy, temperature, top_k)


def _sample_seed(request: JobRequestBase, sample: int) -> int | None:
    """Return seed + *i* for sample *i*; a seed that is exact in JavaScript stays so."""
    if request.seed is None:
        return None
    return (request.seed + sample) % (DRAWN_SEEDS if request.seed < DRAWN_SEEDS else MAX_SEED + 1)
