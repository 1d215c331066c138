"""Structured logs: a fixed event name and fields, on standard error; no prompts, no secrets."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TextIO, cast

import structlog

from core.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class BestEffortStream:
    """Writes to a stream while that is possible.

    Where the disk is full or whoever read the lines has gone, they are lost; the request or the
    job that wanted to tell something goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        """Keep the stream."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure_logs(settings: Settings) -> None:
    """Set up structlog, and send what libraries log through the same renderer."""
    level = _LEVELS[settings.log_level]
    stream = cast("TextIO", BestEffortStream(sys.stderr))
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=24)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # Libraries speak from warnings on: their chatter at "info" would drown our events.
    root.setLevel(max(level, logging.WARNING))
