"""The fields of OpenAI's requests that say how a text is decoded, and what they mean here.

``null`` is an omitted field everywhere. Unknown fields are ignored, and named in the response
header ``Textmill-Ignored``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from textmill.backend.field_errors import field_errors
from textmill.core.errors import BadRequest, FieldError, ValidationFailed

MAX_CHOICES = 64  # jobs of one run
IGNORED_HEADER = "Textmill-Ignored"
# Fields without an effect on the text, which need not be named: clients send them by default.
SILENT = frozenset({"user", "metadata", "store", "service_tier", "parallel_tool_calls"})


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_off(value: object) -> object:
    return 0 if value == -1 else value


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: bool = False


class DecodingFields(BaseModel):
    """The fields that completions, chat completions and responses share."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, BeforeValidator(_as_off), Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    top_n_sigma: Annotated[float, BeforeValidator(_as_off)] = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_range: Annotated[int, BeforeValidator(_as_off)] = 0
    dry_sequence_breakers: list[str] | None = None
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_as_list)] = []
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def job_fields(self) -> dict[str, Any]:
        """The decoding as fields of a job request, by the plainest strategy that says it."""
        common: dict[str, Any] = {"stop": self.stop} if self.stop else {}
        common |= {} if self.seed is None else {"seed": _non_negative(self.seed)}
        common |= {} if self.model is None else {"model": self.model}
        penalty: dict[str, Any] = {"repetition_penalty": self.repetition_penalty}
        combined: dict[str, Any] = {
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
            "top_n_sigma": self.top_n_sigma,
        }
        combined = {name: value for name, value in combined.items() if value}
        if self.xtc_probability:
            combined |= self._of("xtc_probability", "xtc_threshold")
        if self.dry_multiplier:
            combined |= self._of("dry_multiplier", "dry_base", "dry_allowed_length", "dry_range")
            breakers = self.dry_sequence_breakers
            combined |= {} if breakers is None else {"dry_sequence_breakers": breakers}
        temperature = 0.0 if self.top_p == 0 or self.top_k == 1 else self.temperature
        filters = {
            "top_k": self.top_k if self.top_k > 0 else None,
            "top_p": self.top_p if 0 < self.top_p < 1 else None,
            "min_p": self.min_p if self.min_p > 0 else None,
            "typical_p": self.typical_p if self.typical_p < 1 else None,
        }
        used = {name: value for name, value in filters.items() if value is not None}
        if temperature == 0 and not combined:
            return {"strategy": "greedy"} | penalty | common
        if len(used) > 1 or combined:
            every = used | combined | {"temperature": temperature}
            return {"strategy": "custom"} | every | penalty | common
        name = next(iter(used), "sampling")
        strategy = "typical" if name == "typical_p" else name
        return {"strategy": strategy, "temperature": temperature} | used | penalty | common

    def _of(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


def _non_negative(seed: int) -> int:
    """OpenAI's seeds are signed; another number of 63 bits stands for a negative one."""
    return seed & (2**63 - 1)


Model = TypeVar("Model", bound=BaseModel)


def parse_fields(
    payload: object, model: type[Model], refused: Mapping[str, str], silent: frozenset[str] = SILENT
) -> tuple[Model, list[str]]:
    """Validate a request.

    Args:
        payload: the parsed body.
        model: its known fields.
        refused: fields that are refused unless they are empty, each with the reason.
        silent: fields that are ignored without a word.

    Returns:
        The request, and the names of the fields that were ignored.

    Raises:
        BadRequest, ValidationFailed: it names every invalid field.
    """
    if not isinstance(payload, Mapping):
        raise BadRequest("The body must be a JSON object.")
    given = {name: value for name, value in payload.items() if value is not None}
    errors = [
        FieldError(name, reason)
        for name, reason in refused.items()
        if given.pop(name, None) not in (None, "", [], {}, False)
    ]
    try:
        request = model.model_validate(given)
    except ValidationError as error:
        raise ValidationFailed([*errors, *field_errors(error)]) from None
    if errors:
        raise ValidationFailed(errors)
    known = set(model.model_fields) | silent
    return request, sorted(name for name in given if name not in known)
