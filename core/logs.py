"""Structured logs: a fixed event name and fields, on standard error; no prompts, no secrets.

``core.redaction`` formats all tracebacks, including those of libraries and of dying threads.
Passwords in URLs are removed wherever they appear.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
from types import TracebackType
from typing import TextIO, cast

import structlog

from textmill.core.redaction import mask_credentials, traceback_of
from textmill.core.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_QUOTES_REQUEST = re.compile(
    r"^(Invalid request from ip=[^ :]+|Error handling request).*", re.DOTALL
)


class BestEffortStream:
    """Writes to a stream while that is possible, without the passwords of URLs.

    If the disk is full or the reading end of a pipe is closed, lines are lost; the request or the
    job that logs them goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if possible."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(mask_credentials(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _WithoutRequest(logging.Filter):
    """Removes from gunicorn's messages the parts of requests that they quote."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the message; the record is kept."""
        record.msg, record.args = _QUOTES_REQUEST.sub(r"\1", record.getMessage()), ()
        return True


def configure_logs(settings: Settings) -> None:
    """Set up structlog, and render the log records of libraries in the same way."""
    level = _LEVELS[settings.log_level]
    stream = cast("TextIO", BestEffortStream(sys.stderr))
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _render_exception,
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
    # Libraries log warnings and above: their "info" records would hide the product's events.
    root.setLevel(max(level, logging.WARNING))
    # gunicorn's own handlers would write tracebacks as Python does.
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(max(level, logging.INFO))  # below it gunicorn logs every address
        logger.filters = [_WithoutRequest()]
    sys.excepthook = _on_dead_process
    threading.excepthook = _on_dead_thread


def _render_exception(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Put an exception's redacted traceback into the event."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = traceback_of(error)
    return event


def _on_dead_process(
    kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        structlog.get_logger(__name__).critical("process_died", exc_info=error)


def _on_dead_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        name = arguments.thread.name if arguments.thread else "unknown"
        structlog.get_logger(__name__).critical(
            "thread_died", thread=name, exc_info=arguments.exc_value
        )
