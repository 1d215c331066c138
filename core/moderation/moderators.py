"""The kinds of moderators, and what happens when one cannot be asked."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog

from textmill.core.errors import SettingsError, Unavailable
from textmill.core.moderation.words import WordList
from textmill.core.outbound import OutboundError, check_url, post_json
from textmill.core.settings import Settings

SERVICE_SECONDS = 2.0
RETRY_SECONDS = 10
MAX_REASON_CHARACTERS = 200
MAX_LIST_BYTES = 4 << 20
Kind = Literal["prompt", "text"]
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a moderator says; the reason is for the audit log."""

    is_allowed: bool
    reason: str = ""


ALLOWED = Verdict(is_allowed=True)


class ModerationUnavailable(Unavailable):
    """The moderator could not be asked, and the settings say that nothing passes then."""

    code = "moderation_unavailable"


class Moderator(Protocol):
    """Says whether a text may be stored or shown. Threads may share it."""

    def check(self, text: str, kind: Kind, model: str) -> Verdict:
        """Judge a text.

        Raises:
            ModerationUnavailable: it could not be asked.
        """


def make_moderator(settings: Settings) -> Moderator | None:
    """The moderator that the settings name, if they name one.

    Raises:
        SettingsError: it cannot be used; the message says why.
    """
    given = settings.moderation
    if given is None:
        return None
    kind, _, rest = given.partition(":")
    if kind == "words":
        return WordModerator(_word_list(Path(rest).expanduser()))
    ask: Callable[[str, Kind, str], Verdict]
    if kind in ("http", "https"):
        try:
            check_url(given)
        except OutboundError as error:
            raise SettingsError(f"TEXTMILL_MODERATION: {error}.") from None
        ask = ServiceModerator(given, allows_private=settings.moderation_private == "on").ask
    elif kind == "python":
        ask = FunctionModerator(_function(rest)).ask
    else:
        raise SettingsError(
            f"TEXTMILL_MODERATION is {given!r}; it must begin with words:, http://, https:// or"
            " python:."
        )
    return _Careful(ask, fails_open=settings.moderation_fails == "open")


class WordModerator:
    """Refuses texts that contain a word or phrase of a list."""

    def __init__(self, words: WordList) -> None:
        self._words = words

    def check(self, text: str, kind: Kind, model: str) -> Verdict:
        """Judge a text."""
        found = self._words.first_in(text)
        return ALLOWED if found is None else Verdict(False, f"line {found} of the word list")


class ServiceModerator:
    """Asks a service: ``{"text", "kind", "model"}`` → ``{"allowed", "reason"}``."""

    def __init__(self, url: str, *, allows_private: bool) -> None:
        self._url = url
        self._allows_private = allows_private

    def ask(self, text: str, kind: Kind, model: str) -> Verdict:
        """Judge a text; every failure is an exception."""
        document = {"text": text, "kind": kind, "model": model}
        response = post_json(
            self._url, document, seconds=SERVICE_SECONDS, allows_private=self._allows_private
        )
        if response.status != 200:
            raise OutboundError(f"it answered {response.status}")
        return _verdict(json.loads(response.body))


class FunctionModerator:
    """Calls a function of the operator's own: ``check(text, kind, model)``."""

    def __init__(self, function: Callable[[str, str, str], object]) -> None:
        self._function = function

    def ask(self, text: str, kind: Kind, model: str) -> Verdict:
        """Judge a text; every failure is an exception."""
        found = self._function(text, kind, model)
        return Verdict(found) if isinstance(found, bool) else _verdict(found)


class _Careful:
    """Turns failures into what the settings want."""

    def __init__(self, ask: Callable[[str, Kind, str], Verdict], *, fails_open: bool) -> None:
        self._ask = ask
        self._fails_open = fails_open

    def check(self, text: str, kind: Kind, model: str) -> Verdict:
        try:
            return self._ask(text, kind, model)
        except Exception as error:  # an edge: it is somebody else's service or code
            reason = str(error) if isinstance(error, OutboundError) else type(error).__name__
            log.warning("moderation_failed", reason=reason, passes=self._fails_open)
            if self._fails_open:
                return ALLOWED
            raise ModerationUnavailable(
                "The moderation could not be asked; try again in a moment.",
                retry_after_seconds=RETRY_SECONDS,
            ) from None


def _verdict(found: Any) -> Verdict:
    """The verdict in an answer.

    Raises:
        ValueError: it is not one.
    """
    if not isinstance(found, dict) or not isinstance(found.get("allowed"), bool):
        raise ValueError("no verdict")
    reason = found.get("reason")
    return Verdict(found["allowed"], str(reason or "")[:MAX_REASON_CHARACTERS])


def _word_list(path: Path) -> WordList:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise SettingsError(
                f"TEXTMILL_MODERATION: {path} has more than {MAX_LIST_BYTES >> 20} MiB."
            )
        words = WordList(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"TEXTMILL_MODERATION: {path} cannot be read as UTF-8 ({type(error).__name__})."
        ) from None
    if not len(words):
        raise SettingsError(f"TEXTMILL_MODERATION: {path} has no words, one a line.")
    return words


def _function(rest: str) -> Callable[[str, str, str], object]:
    module, _, name = rest.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the operator's module may raise anything
        raise SettingsError(
            f"TEXTMILL_MODERATION: {rest} cannot be imported ({type(error).__name__}); use"
            " python:MODULE:FUNCTION."
        ) from None
    if not callable(found):
        raise SettingsError(f"TEXTMILL_MODERATION: {rest} is not a function.")
    return found  # type: ignore[no-any-return]
