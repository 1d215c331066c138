"""Asks the moderator about a finished text, before anybody sees it."""

from __future__ import annotations

import time
from dataclasses import replace

import structlog

from textmill.core.jobs.records import JobRecord
from textmill.core.moderation import ModerationUnavailable, Moderator
from textmill.engine import GenerationResult
from textmill.engine.requests import EngineError
from textmill.engine.sampling.token_records import TokenTrace

NUM_TRIES = 3
PAUSE_SECONDS = 2.0
_WITHOUT_TEXT = frozenset({"lost", "released"})
log = structlog.get_logger(__name__)


class TextRefused(EngineError):
    """The moderation does not allow the text."""

    code = "text_refused"
    is_permanent = True


class TextUnchecked(EngineError):
    """The moderation could not be asked about the text."""

    code = "moderation_unavailable"
    is_permanent = True


def moderated(
    moderator: Moderator | None, job: JobRecord, result: GenerationResult
) -> GenerationResult:
    """The result, if its text may be shown; else a failure without any part of the text.

    Runs on the job's own thread: a service that hangs delays this job alone.
    """
    if moderator is None or not result.text or result.finish_reason in _WITHOUT_TEXT:
        return result
    for left in reversed(range(NUM_TRIES)):
        try:
            verdict = moderator.check(result.text, "text", job.model)
        except ModerationUnavailable:
            if left:
                time.sleep(PAUSE_SECONDS)
            continue
        if verdict.is_allowed:
            return result
        log.warning("text_refused", reason=verdict.reason)
        return _without_text(result, TextRefused("The operator's rules do not allow the text."))
    sentence = "The moderation could not be asked about the text; try again later."
    return _without_text(result, TextUnchecked(sentence))


def _without_text(result: GenerationResult, error: EngineError) -> GenerationResult:
    trace: list[TokenTrace] | None = None if result.trace is None else []
    return replace(result, text="", trace=trace, finish_reason="error", error=error)
