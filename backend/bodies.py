"""Reads JSON bodies: strict JSON with bounded size, depth and numbers.

An object that contains a name twice is rejected, at any depth.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from flask import Request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from textmill.backend.server.wsgi import TOO_LARGE_KEY
from textmill.core.errors import BadRequest, ClientError

MAX_BODY_BYTES = 256 * 1024


class EncodedBody(ClientError):
    """The body has a content encoding."""

    code = "unsupported_encoding"
    http_status = 415


def refuse_body(request: Request) -> None:
    """Reject a body that is too large, which the server has discarded, or encoded.

    Raises:
        RequestEntityTooLarge: the body is larger than ``MAX_BODY_BYTES``.
        EncodedBody: the body has a content encoding.
    """
    if request.environ.get(TOO_LARGE_KEY):
        raise RequestEntityTooLarge
    codings = request.headers.get("Content-Encoding", "") if request.content_length else ""
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings.split(",")):
        raise EncodedBody("Send the body without Content-Encoding.")


def read_json(request: Request, *, cache: bool = False) -> Any:
    """Return the parsed body; ``cache`` keeps it to be read once more.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        BadRequest: the body is not JSON.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    data = request.get_data(cache=cache)
    if not data.strip():
        raise BadRequest("The body is empty; send a JSON object.")
    try:
        # Some editors and shells write a byte-order mark, which parsers may ignore (RFC 8259).
        return json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None
    except ValueError as error:
        raise BadRequest(f"The body is not JSON: {_safe(str(error))}.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a name that occurs twice is rejected, because its value is ambiguous."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {json.dumps(twice[:100])} occurs twice in an object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _safe(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")[:200].rstrip(".")
