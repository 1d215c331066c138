"""How a request to a Textmill server fails; an import of this module is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textmill.core.errors import TextmillError


class Unreachable(TextmillError):
    """The server does not answer, or the connection broke."""

    code = "unreachable"


class Refused(TextmillError):
    """The server answered with a problem document (RFC 9457).

    Args:
        status: the HTTP status.
        problem: the document.
        retry_after_seconds: the pause that the server asked for; 0 if it asked for none.
    """

    code = "refused"

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after_seconds: float = 0.0
    ) -> None:
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        lines = [str(problem.get("detail") or problem.get("title") or "The request was refused.")]
        for error in problem.get("errors") or ():
            lines.append(f"  {error.get('field') or 'body'}: {error.get('message')}")
        super().__init__("\n".join(lines) + f" (HTTP {status})" * (len(lines) == 1))
