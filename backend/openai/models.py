"""``/v1/models``, and the helpers at the root that lm-evaluation-harness asks."""

from __future__ import annotations

from typing import Annotated, Any

from flask import Blueprint, Response, request
from pydantic import BaseModel, ConfigDict, Field

from textmill.backend.api.json_response import json_response
from textmill.backend.bodies import read_json
from textmill.backend.current import services
from textmill.backend.openai.fields import parse_fields
from textmill.backend.response_models import ModelView
from textmill.core.errors import FieldError, NotFound, ValidationFailed

MAX_TOKENS = 65_536
OWNER = "textmill"
blueprint = Blueprint("models", __name__)
helpers = Blueprint("openai_helpers", __name__)


@blueprint.get("/models")
def index() -> Response:
    """List the models."""
    data = [_model(model) for model in services().models.all()]
    return json_response({"object": "list", "data": data})


@blueprint.get("/models/<path:name>")
def read(name: str) -> Response:
    """Describe one model."""
    for model in services().models.all():
        if model["name"] == name:
            return json_response(_model(model))
    raise NotFound(f"The model {name[:100]!r} does not exist; GET /v1/models lists the models.")


def _model(model: ModelView) -> dict[str, Any]:
    return {
        "id": model["name"],
        "object": "model",
        "created": 0,
        "owned_by": OWNER,
        "max_model_len": model["context_length"],
    }


class TokenizeBody(BaseModel):
    """The body of ``POST /tokenize``."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


class DetokenizeBody(BaseModel):
    """The body of ``POST /detokenize``."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKENS)]


@helpers.get("/tokenizer_info")
def tokenizer_info() -> Response:
    """Describe the tokenizer of the default model, or of ``?model=``."""
    config = services().models.tokenizer_config(request.args.get("model") or None)
    roles = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
    return json_response({"tokenizer_class": "textmill"} | {r: config.get(r) for r in roles})


@helpers.post("/tokenize")
def tokenize() -> Response:
    """Return the token ids of a text."""
    asked, _ = parse_fields(read_json(request), TokenizeBody, {})
    ids = services().models.token_ids(asked.model, asked.prompt, adds_ends=asked.add_special_tokens)
    return json_response({"tokens": ids, "count": len(ids)})


@helpers.post("/detokenize")
def detokenize() -> Response:
    """Return the text of token ids."""
    asked, _ = parse_fields(read_json(request), DetokenizeBody, {})
    if not asked.tokens:
        raise ValidationFailed([FieldError("tokens", "must not be empty")])
    return json_response({"prompt": services().models.text_of(asked.model, asked.tokens)})
