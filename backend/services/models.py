"""Models: what the models file lists, what workers have loaded, and their tokenizers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine

from textmill.backend.field_errors import field_errors
from textmill.backend.model_views import base_names, model_view
from textmill.backend.request_context import ModelLimits, RequestContext
from textmill.backend.request_models import MAX_TOKENIZE_CHARACTERS, TokenizeRequest
from textmill.backend.response_models import ModelView, Tokens
from textmill.backend.services.tokenizing import TokenizerCache
from textmill.core.catalog.live import LiveCatalog
from textmill.core.catalog.models_file import Catalog
from textmill.core.catalog.served_models import (
    ServedModel,
    card_markdown,
    cards,
    curve_svg,
    tokenizer_json,
)
from textmill.core.database.connections import acquire_in_time
from textmill.core.database.errors import TEMPORARY_RETRY_SECONDS
from textmill.core.errors import FieldError, NotFound, StorageUnavailable, ValidationFailed
from textmill.core.workers import seen_workers
from textmill.tokenizing.safe_tokenizer import TokenizerFault

SERVED_MODELS_SECONDS = 2.0  # maximum age of the rows that validation uses


class ModelService:
    """Answers questions about models. Any thread may call it."""

    def __init__(self, engine: Engine, catalog: LiveCatalog) -> None:
        self._engine = engine
        self._live_catalog = catalog
        self._tokenizers = TokenizerCache()
        self._served: dict[str, ServedModel] = {}  # guarded by _lock
        self._served_until = 0.0  # by time.monotonic; guarded by _lock
        self._lock = threading.Lock()
        # The names, and by time.monotonic until when they are used; replaced as a whole.
        self._recently_served: tuple[frozenset[str], float] = (frozenset(), 0.0)

    def all(self) -> list[ModelView]:
        """List the models of the models file."""
        served = self._served_models()
        workers = seen_workers(self._engine)
        catalog = self._catalog
        default = catalog.default.name
        bases = base_names(catalog, served)
        return [
            model_view(
                spec,
                served.get(spec.name),
                sum(spec.name in worker.models for worker in workers),
                is_default=spec.name == default,
                base_model=bases.get(spec.name),
            )
            for spec in catalog
        ]

    def unserved(self, names: set[str]) -> set[str]:
        """Those of some models that no worker serves.

        A model that was served two seconds ago counts as served, which saves most submissions a
        query.
        """
        known, until = self._recently_served
        if time.monotonic() >= until or not names <= known:
            workers = seen_workers(self._engine)
            known = frozenset(name for worker in workers for name in worker.models)
            self._recently_served = known, time.monotonic() + SERVED_MODELS_SECONDS
        return names - known

    def default_name(self) -> str:
        """Return the name of the default model; this reads the models file alone."""
        return self._catalog.default.name

    def curve(self, name: str) -> str:
        """Return the loss curve of a fine-tuned model as untrusted SVG.

        Raises:
            NotFound: no such model is served, or it has no loss curve.
        """
        return self._text(name, curve_svg, "loss curve")

    def card(self, name: str) -> str:
        """Return the model card as untrusted Markdown.

        Raises:
            NotFound: no such model is served, or it has no card.
        """
        return self._text(name, card_markdown, "card")

    def _text(self, name: str, read: Callable[[Engine, str], str | None], kind: str) -> str:
        text = read(self._engine, name) if name in self._catalog.names else None
        if text is None:
            raise NotFound(f"There is no model of that name, or it has no {kind}.")
        return text

    def request_context(self) -> RequestContext:
        """Return the limits of all models, for the validation of a request."""
        served = self._served_models()
        catalog = self._catalog
        limits = {}
        for name in catalog.names:
            model = served.get(name)
            has_tokenizer = self._load_tokenizer(name)
            limits[name] = ModelLimits(
                context_length=model.context_length if model else None,
                vocabulary_size=model.vocabulary_size if model else None,
                count_tokens=self._tokenizers.counter(name) if has_tokenizer else None,
                decode=partial(self._tokenizers.decode, name) if has_tokenizer else None,
            )
        return RequestContext(catalog.default.name, limits)

    def tokenize(self, payload: object) -> Tokens:
        """Split a text into the tokens of a model.

        Args:
            payload: the parsed body of ``POST /tokenize``.

        Raises:
            ValidationFailed: the model is unknown or not loaded yet, or the text is invalid.
        """
        request = _tokenize_request(payload)
        name = self._with_tokenizer(request.model)
        try:
            tokens = self._tokenizers.tokens(name, request.text)
        except TokenizerFault as fault:
            raise ValidationFailed([FieldError("text", str(fault))]) from None
        return {"tokens": tokens, "count": len(tokens)}

    def token_ids(
        self, name: str | None, text: str, *, adds_ends: bool, field: str = "prompt"
    ) -> list[int]:
        """Return the token ids of a text, with or without the tokens that a prompt begins with.

        Args:
            name: of the model; the default model for ``None``.
            text: the text.
            adds_ends: whether to add those tokens.
            field: what the errors are about.

        Raises:
            ValidationFailed: the model is unknown or not loaded yet, or the text is invalid.
        """
        if len(text) > MAX_TOKENIZE_CHARACTERS:
            message = f"must have at most {MAX_TOKENIZE_CHARACTERS:,} characters"
            raise ValidationFailed([FieldError(field, message)])
        known = self._with_tokenizer(name)
        try:
            return self._tokenizers.encode(known, text, adds_ends=adds_ends)
        except TokenizerFault as fault:
            raise ValidationFailed([FieldError(field, str(fault))]) from None

    def text_of(self, name: str | None, ids: list[int]) -> str:
        """Return the text of token ids, special tokens included.

        Raises:
            ValidationFailed: the model is unknown or not loaded yet, or has no such token.
        """
        known = self._with_tokenizer(name)
        size = self._served_models()[known].vocabulary_size
        if max(ids, default=0) >= size:
            message = f"{max(ids)} is not a token of the model, which has {size}"
            raise ValidationFailed([FieldError("tokens", message)])
        try:
            return self._tokenizers.decode(known, ids)
        except TokenizerFault as fault:
            raise ValidationFailed([FieldError("tokens", str(fault))]) from None

    def tokenizer_config(self, name: str | None) -> Mapping[str, Any]:
        """Return the chat template and the special tokens of a model; empty if it has none.

        Raises:
            ValidationFailed: the model is unknown or not loaded yet.
        """
        return self._served_models()[self._with_tokenizer(name)].tokenizer_config or {}

    def _with_tokenizer(self, name: str | None) -> str:
        """Return the name of a model whose tokenizer is loaded; of the default model for none.

        Raises:
            ValidationFailed: the model is unknown or not loaded yet.
        """
        catalog = self._catalog
        name = name or catalog.default.name
        if name not in catalog.names:
            known = ", ".join(catalog.names)
            message = f"there is no model of that name; the models are: {known}"
            raise ValidationFailed([FieldError("model", message)])
        if not self._load_tokenizer(name):
            message = "no worker has loaded this model yet; try again when one has"
            raise ValidationFailed([FieldError("model", message)])
        return name

    @property
    def _catalog(self) -> Catalog:
        """The current catalogue. It may be another one at the next access."""
        return self._live_catalog.current

    def _served_models(self) -> Mapping[str, ServedModel]:
        """Return what workers have reported of the models they loaded, by name.

        Raises:
            StorageUnavailable: another thread has been reading it for too long.
        """
        if not acquire_in_time(self._lock):
            raise StorageUnavailable(
                "The database did not answer in time; try again in a moment.",
                retry_after_seconds=TEMPORARY_RETRY_SECONDS,
            )
        try:
            if time.monotonic() >= self._served_until:
                self._served = cards(self._engine)
                self._served_until = time.monotonic() + SERVED_MODELS_SECONDS
            return self._served
        finally:
            self._lock.release()

    def _load_tokenizer(self, name: str) -> bool:
        """Load the tokenizer of the model's current revision; return whether it is usable."""
        model = self._served_models().get(name)
        if model is None:
            return False
        if not self._tokenizers.has(name, model.revision):
            text = tokenizer_json(self._engine, name)
            if text is None:
                return False
            self._tokenizers.put(name, model.revision, text)
        return self._tokenizers.is_usable(name)


def _tokenize_request(payload: object) -> TokenizeRequest:
    if not isinstance(payload, Mapping):
        raise ValidationFailed([FieldError("", "the body must be a JSON object")])
    try:
        return TokenizeRequest.model_validate(dict(payload))
    except ValidationError as error:
        raise ValidationFailed(field_errors(error)) from None
