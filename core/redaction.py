"""Redacts errors for the log: no prompt, no generated text, no cookie, no password.

The message of a library's error may quote the invalid value: PostgreSQL quotes the row that
violates a constraint, pydantic the input, ``int`` the digits. Messages of the product's own errors
and of the operating system are kept; from all others, quoted parts are removed.
"""

from __future__ import annotations

import re
import traceback

from pydantic import ValidationError

from textmill.core.errors import TextmillError

MAX_REASON_CHARACTERS = 300
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@'\"]*:[^\s/'\"]*@")
# From the first to the last quotation mark of a kind: a quoted value may contain that mark too.
_QUOTED = re.compile(r"'.*'|\".*\"|`.*`|\(.*\)", re.DOTALL)
# The beginning of a path (not of a URL or an HTML tag), folders of up to four words, the last part.
_WORD = r"[^\s/'\":;,()~]"
_PATH = re.compile(rf"(?<![\w/.…~:<-])(?:~[\w.-]*)?/+(?:{_WORD}+(?: {_WORD}+){{0,3}}/+)*({_WORD}*)")
_STATES_WITH_VALUES = ("21", "22", "23")  # SQLSTATE classes whose messages quote values


def without_paths(text: str) -> str:
    """The text with absolute paths shortened to their last part, for visitors.

    A folder's name may contain up to three spaces, so a few words between two slashes may be
    removed with a path.
    """
    return _PATH.sub(lambda match: match[0] if match[0] == "/" else f"…/{match[1]}", text)


def mask_credentials(text: str) -> str:
    """The text with user names and passwords of URLs replaced by ``***``."""
    return _CREDENTIALS.sub("***@", text)


def reason_of(error: BaseException) -> str:
    """One line about an error, without values that a client sent."""
    original = getattr(error, "orig", None)
    if isinstance(original, BaseException):
        return reason_of(original)
    if isinstance(error, TextmillError | OSError):
        text = str(error)
    elif isinstance(error, ValidationError):
        kinds = sorted({item["type"] for item in error.errors(include_input=False)})
        text = f"{error.error_count()} bad fields: {', '.join(kinds)}"
    elif (name := getattr(error, "sqlite_errorname", None)) is not None:
        text = f"{name}: {_without_quotes(str(error))}"
    elif (state := getattr(error, "sqlstate", None)) is not None:
        text = f"SQLSTATE {state}{_primary_message(error, state)}"
    else:
        text = _without_quotes(str(error))
    return mask_credentials(" ".join(text.split()))[:MAX_REASON_CHARACTERS]


def traceback_of(error: BaseException) -> str:
    """The traceback of an error and its causes, with redacted messages."""
    lines: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = "".join(traceback.format_tb(cause.__traceback__))
        kind = f"{type(cause).__module__}.{type(cause).__qualname__}".removeprefix("builtins.")
        lines.append(f"{frames}{kind}: {reason_of(cause)}")
        shown = None if cause.__suppress_context__ else cause.__context__
        cause = cause.__cause__ or shown
    # In Python's order: the error raised last comes last.
    return "\nwhich led to:\n".join(reversed(lines))


def _primary_message(error: BaseException, state: str) -> str:
    if state.startswith(_STATES_WITH_VALUES):
        return ""
    message = getattr(getattr(error, "diag", None), "message_primary", None)
    return f": {message}" if message else ""


def _without_quotes(text: str) -> str:
    return _QUOTED.sub("…", text)
