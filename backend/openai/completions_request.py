"""Parses the body of ``POST /v1/completions`` and plans its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from textmill.backend.openai.fields import MAX_CHOICES, DecodingFields, parse_fields
from textmill.backend.request_context import RequestContext
from textmill.backend.request_models import parse_job_request
from textmill.backend.run_requests import PlannedJob
from textmill.core.errors import FieldError, ValidationFailed
from textmill.core.strategies import DRAWN_SEEDS, MAX_SEED

MAX_LOGPROBS = 20
_REFUSED = {"suffix": "is not supported: the models continue a text, and do not fill one in"}
# The names of fields in a job request, where they differ.
_NAMES = {"max_new_tokens": "max_tokens", "prompt_ids": "prompt"}
_EMPTY = "must not be empty; send the text to continue"
Prompt = str | list[int]


class CompletionsBody(DecodingFields):
    """The fields of a completion."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A validated request.

    Attributes:
        body: its fields.
        prompts: one or more; each a text or token ids.
        num_samples: jobs of each prompt.
        ignored: names of fields that have no effect.
    """

    body: CompletionsBody
    prompts: list[Prompt]
    num_samples: int
    ignored: list[str]


def parse_completion(payload: object) -> CompletionRequest:
    """Validate a request.

    Raises:
        BadRequest, ValidationFailed: it names every invalid field.
    """
    body, ignored = parse_fields(payload, CompletionsBody, _REFUSED)
    prompts = _prompts(body.prompt)
    num_samples = max(body.n, body.best_of or 1)
    errors = []
    if body.best_of is not None and body.best_of < body.n:
        errors.append(FieldError("best_of", "must be at least n"))
    if body.stream and num_samples > body.n:
        errors.append(FieldError("best_of", "must equal n in a stream: the best is known last"))
    if len(prompts) * num_samples > MAX_CHOICES:
        errors.append(
            FieldError("prompt", f"a request has at most {MAX_CHOICES} prompts times choices")
        )
    if body.max_tokens == 0 and not body.echo:
        errors.append(FieldError("max_tokens", "must be at least 1, or 0 with echo to score"))
    if errors:
        raise ValidationFailed(errors)
    return CompletionRequest(body, prompts, num_samples, ignored)


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise ValidationFailed([FieldError("prompt", _EMPTY)])
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def plan_completion(asked: CompletionRequest, context: RequestContext) -> list[PlannedJob]:
    """The jobs of a request, by prompt, then by sample.

    Raises:
        ValidationFailed: it names every invalid field, as the client calls it.
    """
    body = asked.body
    common = body.job_fields() | {"max_new_tokens": body.max_tokens}
    common |= {"trace": True} if needs_trace(asked) else {}
    plans = []
    for number, prompt in enumerate(asked.prompts):
        given = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": prompt}
        try:
            request = parse_job_request(common | given, context)
        except ValidationFailed as failed:
            raise ValidationFailed(
                [FieldError(_NAMES.get(e.field, e.field), e.message) for e in failed.errors]
            ) from None
        plans += [
            PlannedJob(
                request, request.resolved_parameters(sample_seed(body.seed, sample)), number, sample
            )
            for sample in range(asked.num_samples)
        ]
    return plans


def needs_trace(asked: CompletionRequest) -> bool:
    """Whether the probabilities of the new tokens are needed."""
    return asked.body.logprobs is not None or asked.num_samples > asked.body.n


def sample_seed(seed: int | None, sample: int) -> int | None:
    """The seed of sample *i*: the seed + *i*, as in a run; ``None``: a random one."""
    if seed is None:
        return None
    first = seed & MAX_SEED
    return (first + sample) % (DRAWN_SEEDS if first < DRAWN_SEEDS else MAX_SEED + 1)


def choice_of(asked: CompletionRequest, job: Any) -> int:
    """The index of the choice that a job is, if none is left out."""
    return int(job.variant_index) * asked.num_samples + int(job.sample_index)
