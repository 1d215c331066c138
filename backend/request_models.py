"""Validates job and tokenize requests, with one request model for each strategy.

The request models are built from ``core.strategies``, which defines every range. Limits that depend
on a model (its vocabulary, its context) are in a ``RequestContext``, which the caller passes as the
validation context.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError

from textmill.backend.field_errors import field_errors
from textmill.backend.request_context import ModelLimits, RequestContext
from textmill.core.custom_strategy import MAX_BIAS, MAX_BREAKER_CHARACTERS
from textmill.core.errors import FieldError, ValidationFailed
from textmill.core.strategies import (
    DEFAULT_STRATEGY,
    DRAWN_SEEDS,
    MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    STRATEGIES,
    STRATEGIES_BY_NAME,
)
from textmill.core.strategy_specs import CollectionSpec, ParameterSpec, StrategySpec
from textmill.tokenizing.safe_tokenizer import TokenizerFault

MAX_TOKENIZE_CHARACTERS = 65_536
MAX_DEADLINE_SECONDS = 31_536_000


def _rejection(message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message})


def _check_storable(text: str) -> str:
    """Reject text that PostgreSQL, JSON or UTF-8 cannot represent."""
    if "\0" in text:
        raise _rejection("must not contain the NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _rejection("must be valid Unicode text without lone surrogates")
    return text


def integral(value: object) -> object:
    """Convert a float like 64.0 to an integer: JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_check_storable)]
StopString = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Breaker = Annotated[Text, Field(min_length=1, max_length=MAX_BREAKER_CHARACTERS)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]


class JobRequestBase(BaseModel):
    """The fields that every strategy has."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
    )

    # ``model`` precedes the fields whose limits depend on it, so validators find it in info.data.
    model: Annotated[
        str | None,
        Field(
            validate_default=True, description="Name of the model; the default model if omitted."
        ),
    ] = None
    prompt_ids: Annotated[
        list[Annotated[int, BeforeValidator(integral), Field(ge=0)]] | None,
        Field(
            min_length=1,
            description="The prompt as token ids of the model; prompt is then their text.",
        ),
    ] = None
    prompt: Annotated[
        Text, Field(min_length=1, description="The text to continue; omit it with prompt_ids.")
    ]
    strategy: str
    max_new_tokens: Annotated[
        int,
        BeforeValidator(integral),
        Field(ge=1, description=MAX_NEW_TOKENS.description),
    ] = int(MAX_NEW_TOKENS.default)
    seed: Annotated[
        Annotated[int, BeforeValidator(integral), Field(ge=0, le=MAX_SEED)] | None,
        Field(description="If omitted, a random seed is stored."),
    ] = None
    stop: Annotated[
        list[StopString],
        Field(
            max_length=MAX_STOP_STRINGS, description="The text ends before any of these strings."
        ),
    ] = []
    trace: Annotated[bool, Field(description="Store why each token was chosen.")] = False
    deadline_seconds: Annotated[
        Annotated[float, Field(ge=1, le=MAX_DEADLINE_SECONDS)] | None,
        Field(
            description="The job fails if no worker has begun it by then; the server may allow"
            " less."
        ),
    ] = None
    priority: Annotated[
        int,
        BeforeValidator(integral),
        Field(
            ge=-1,
            le=1,
            description="Jobs of a higher priority are begun first. 1 needs a key with the scope"
            " priority; -1 is for work that nobody waits for.",
        ),
    ] = 0

    @field_validator("model", mode="after")
    @classmethod
    def _is_known(cls, name: str | None, info: ValidationInfo) -> str | None:
        context: RequestContext | None = info.context
        if context is None:
            return name
        name = context.default_model if name is None else name
        if name not in context.limits:
            known = ", ".join(context.limits)
            raise _rejection(f"there is no model of that name; the models are: {known}")
        return name

    @field_validator("prompt_ids", mode="after")
    @classmethod
    def _are_tokens(cls, ids: list[int] | None, info: ValidationInfo) -> list[int] | None:
        limits = _limits(info)
        if ids is None or limits is None:
            return ids
        if limits.vocabulary_size is not None and max(ids) >= limits.vocabulary_size:
            raise _rejection(
                f"{max(ids)} is not a token of the model, whose vocabulary has"
                f" {limits.vocabulary_size} tokens"
            )
        if limits.context_length is not None and len(ids) >= limits.context_length:
            raise _rejection(_too_long(str(len(ids)), limits.context_length))
        return ids

    @field_validator("prompt", mode="after")
    @classmethod
    def _fits(cls, prompt: str, info: ValidationInfo) -> str:
        if info.data.get("prompt_ids") is not None:
            return prompt
        if not prompt.strip():
            raise _rejection("must not be blank; enter a text for the model to continue")
        limits = _limits(info)
        if limits is None or limits.count_tokens is None or limits.context_length is None:
            return prompt
        least = limits.count_tokens.least(prompt)
        count = f"at least {least}"
        if least < limits.context_length:
            try:
                least = limits.count_tokens(prompt)
            except TokenizerFault as fault:
                raise _rejection(str(fault)) from None
            count = str(least)
        if least >= limits.context_length:
            raise _rejection(_too_long(count, limits.context_length))
        return prompt

    @field_validator("max_new_tokens", mode="after")
    @classmethod
    def _within_context(cls, number: int, info: ValidationInfo) -> int:
        limits = _limits(info)
        if limits and limits.context_length is not None and number > limits.context_length:
            raise _rejection(f"must be at most {limits.context_length}, the model's context length")
        return number

    @field_validator("top_k", mode="after", check_fields=False)
    @classmethod
    def _within_vocabulary(cls, number: int, info: ValidationInfo) -> int:
        limits = _limits(info)
        if limits and limits.vocabulary_size is not None and number > limits.vocabulary_size:
            raise _rejection(
                f"must be at most {limits.vocabulary_size}, the model's vocabulary size"
            )
        return number

    @field_validator("logit_bias", mode="after", check_fields=False)
    @classmethod
    def _have_tokens(cls, biases: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        for name in biases:
            if not (name.isascii() and name.isdecimal() and str(int(name[:20])) == name):
                raise _rejection(f"the names must be token ids, such as 464; {name[:40]!r} is none")
        limits = _limits(info)
        if limits and limits.vocabulary_size is not None:
            largest = max(map(int, biases), default=0)
            if largest >= limits.vocabulary_size:
                raise _rejection(
                    f"there is no token {largest}; the model's ids are 0 to"
                    f" {limits.vocabulary_size - 1}"
                )
        return biases

    def resolved_parameters(self, seed: int | None = None) -> dict[str, Any]:
        """Return all parameters of the job, with defaults and the seed filled in."""
        names = STRATEGIES_BY_NAME[self.strategy].defaults()
        resolved = {name: getattr(self, name) for name in names}
        seed = self.seed if seed is None else seed
        resolved |= {
            "max_new_tokens": self.max_new_tokens,
            "seed": secrets.randbelow(DRAWN_SEEDS) if seed is None else seed,
            "stop": list(self.stop),
        }
        return resolved


def _too_long(count: str, context_length: int) -> str:
    return (
        f"the prompt has {count} tokens, and the model's context of {context_length} must also hold"
        " the new tokens; shorten the prompt"
    )


def _limits(info: ValidationInfo) -> ModelLimits | None:
    context: RequestContext | None = info.context
    name = info.data.get("model") if context is not None else None
    return context.limits.get(name) if context is not None and name else None


def _field_of(parameter: ParameterSpec) -> tuple[Any, Any]:
    bounds: dict[str, Any] = {
        "gt" if parameter.exclusive_minimum else "ge": parameter.minimum,
        "description": parameter.description,
    }
    if parameter.maximum is not None:
        bounds["le"] = parameter.maximum
    if parameter.type == "integer":
        kind: Any = Annotated[int, BeforeValidator(integral), Field(**bounds)]
    else:
        kind = Annotated[float, Field(**bounds)]
    return (kind, parameter.default)


def _collection_field_of(collection: CollectionSpec) -> tuple[Any, Any]:
    content: Any = list[Breaker] if collection.type == "array" else dict[str, Bias]
    about = Field(max_length=collection.max_items, description=collection.description)
    return (Annotated[content, about], collection.default_json())


def _request_model(spec: StrategySpec) -> type[JobRequestBase]:
    title = "".join(part.capitalize() for part in spec.name.split("_")) + "Request"
    strategy: Any = Literal[spec.name]
    strategy_default: Any = spec.name if spec.name == DEFAULT_STRATEGY else ...
    fields: dict[str, Any] = {"strategy": (strategy, strategy_default)}
    fields |= {parameter.name: _field_of(parameter) for parameter in spec.parameters}
    fields |= {own.name: _collection_field_of(own) for own in spec.collections}
    return create_model(title, __base__=JobRequestBase, __doc__=spec.description, **fields)


JOB_REQUESTS: dict[str, type[JobRequestBase]] = {
    spec.name: _request_model(spec) for spec in STRATEGIES
}


_OPTIONAL = {
    *JobRequestBase.model_fields,
    *(name for spec in STRATEGIES for name in spec.parameter_names),
} - {"prompt"}


def without_nulls(payload: Mapping[str, Any], *own: str) -> dict[str, Any]:
    """Remove the optional fields that are null, because null means "omitted".

    An unknown field that is null is kept, so that validation rejects it by name.

    Args:
        payload: the request.
        own: optional fields in addition to those of a job.
    """
    optional = _OPTIONAL.union(own)
    return {
        name: value for name, value in payload.items() if value is not None or name not in optional
    }


def parse_job_request(payload: object, context: RequestContext | None = None) -> JobRequestBase:
    """Validate the body of ``POST /jobs``.

    Raises:
        ValidationFailed: it names every invalid field.
    """
    if not isinstance(payload, Mapping):
        raise ValidationFailed([FieldError("", "the body must be a JSON object")])
    payload = _with_prompt_text(without_nulls(payload), context)
    strategy = payload.get("strategy", DEFAULT_STRATEGY)
    model = JOB_REQUESTS.get(strategy) if isinstance(strategy, str) else None
    extra: list[FieldError] = []
    if model is None:
        names = ", ".join(spec.name for spec in STRATEGIES)
        extra = [FieldError("strategy", f"there is no such strategy; the strategies are: {names}")]
    if model is None:
        model, payload = _lenient(payload)
    try:
        request = model.model_validate(dict(payload), context=context)
    except ValidationError as error:
        raise ValidationFailed(extra + field_errors(error, str(strategy))) from None
    if extra:
        raise ValidationFailed(extra)
    return _with_lowered_defaults(request, context)


def _with_prompt_text(payload: dict[str, Any], context: RequestContext | None) -> dict[str, Any]:
    """Replace the prompt by the text of its token ids, if it is given as those.

    Raises:
        ValidationFailed: the model's tokenizer is not known yet, or fails on them.
    """
    ids = payload.get("prompt_ids")
    if ids is None or context is None:
        return payload
    name = payload.get("model", context.default_model)
    limits = context.limits.get(name) if isinstance(name, str) else None
    are_ids = isinstance(ids, list) and all(type(token) is int and token >= 0 for token in ids)
    size = limits.vocabulary_size if limits else None
    if limits is None or not are_ids or not ids or (size is not None and max(ids) >= size):
        return payload | {"prompt": "-"}  # validation names what is wrong
    if limits.decode is None:
        message = "no worker has loaded this model's tokenizer yet; send the prompt as text"
        raise ValidationFailed([FieldError("prompt_ids", message)])
    try:
        text = limits.decode(ids).replace("\0", "\ufffd")
    except TokenizerFault as fault:
        raise ValidationFailed([FieldError("prompt_ids", str(fault))]) from None
    return payload | {"prompt": text or " "}


def _with_lowered_defaults(
    request: JobRequestBase, context: RequestContext | None
) -> JobRequestBase:
    """Lower defaults to the limits of a very small model.

    A value that the client gave is within the limits already.
    """
    limits = context.limits.get(request.model or "") if context else None
    if limits is None:
        return request
    bounds = {"max_new_tokens": limits.context_length, "top_k": limits.vocabulary_size}
    lowered = {
        name: bound
        for name, bound in bounds.items()
        if bound is not None and getattr(request, name, 0) > bound
    }
    return request.model_copy(update=lowered) if lowered else request


def _lenient(payload: Mapping[str, Any]) -> tuple[type[JobRequestBase], dict[str, Any]]:
    """Return what to validate if the strategy is unknown: the fields that every strategy has."""
    known = {name for spec in STRATEGIES for name in spec.parameter_names} | {"strategy"}
    return JOB_REQUESTS[DEFAULT_STRATEGY], {k: v for k, v in payload.items() if k not in known}


class TokenizeRequest(BaseModel):
    """The body of ``POST /tokenize``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    text: Annotated[
        Text,
        Field(
            max_length=MAX_TOKENIZE_CHARACTERS,
            description=(
                f"At most {MAX_TOKENIZE_CHARACTERS:,} characters. The texts of the tokens"
                " join to this text. The text of a character that spans several tokens belongs to"
                " the last of them. The other ones, and tokens that the model adds around a text,"
                " have an empty text."
            ),
        ),
    ]
