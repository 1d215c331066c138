"""Error handlers: problem documents of RFC 9457, and HTML pages for the addresses of pages.

The handler of ``Exception`` is the HTTP edge: it logs the error and answers 500 without details.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from textmill.backend.access.edge_limits import EXTENSION as EDGE
from textmill.backend.access.edge_limits import retry_seconds
from textmill.backend.api_paths import is_api, is_openai
from textmill.backend.bodies import EncodedBody
from textmill.backend.openai.errors import openai_error
from textmill.backend.problem_documents import CONTENT_TYPE, problem_text, title_of
from textmill.core.access.budgets import rate_limit_headers
from textmill.core.database.errors import Complaints, understand
from textmill.core.errors import ClientError, FieldError, RateLimited, Unavailable, ValidationFailed

_PLAIN_PATHS = {"/healthz", "/readyz", "/metrics"}
_DETAILS = {
    404: "There is nothing at this address.",
    405: "This address does not support this method.",
    413: "The body is larger than 256 KiB.",
    429: "Too many requests came from your address; wait a moment, and send fewer.",
    415: "Send the body as application/json.",
}
PageRenderer = Callable[[int, str, str, Sequence[FieldError]], Response]
log = structlog.get_logger(__name__)


def problem(
    status: int,
    code: str,
    detail: str,
    errors: Sequence[FieldError] | None = None,
) -> Response:
    """Return a problem document as a response."""
    text = problem_text(status, code, detail, errors)
    return Response(text, status, content_type=CONTENT_TYPE)


def register_errors(app: Flask, render_page: PageRenderer | None = None) -> None:
    """Register the error handlers; ``render_page`` renders the errors of pages."""

    def answer(
        status: int, code: str, detail: str, errors: Sequence[FieldError] | None = None
    ) -> Response:
        if is_openai(request.path):
            return openai_error(status, code, detail, errors)
        is_page = not is_api(request.path) and request.path not in _PLAIN_PATHS
        if render_page is not None and is_page:
            return render_page(status, title_of(status), detail, errors or [])
        return problem(status, code, detail, errors)

    @app.errorhandler(ClientError)
    def on_client_error(error: ClientError) -> Response:
        fields = error.errors if isinstance(error, ValidationFailed) else None
        response = answer(error.http_status, error.code, str(error), fields)
        if isinstance(error, Unavailable):
            response.headers["Retry-After"] = str(error.retry_after_seconds)
        if isinstance(error, RateLimited):
            response.headers.update(rate_limit_headers(error.quotas))
        if isinstance(error, EncodedBody):
            response.headers["Accept-Encoding"] = "identity"
        return response

    @app.errorhandler(HTTPException)
    def on_http_error(error: HTTPException) -> Response:
        status = error.code or 500
        if 300 <= status < 400:  # a redirect to the same address with or without a slash
            return error.get_response()  # type: ignore[return-value]
        code = error.name.lower().replace(" ", "_")
        response = answer(status, code, _DETAILS.get(status) or error.description or error.name)
        if status == 429:
            seconds = retry_seconds(current_app.extensions[EDGE])
            response.headers["Retry-After"] = str(seconds)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    complaints = Complaints()

    @app.errorhandler(Exception)
    def on_unexpected(error: Exception) -> Response:
        problem = understand(error)
        if problem is not None and isinstance(problem.error, ClientError):
            complaints.complain(problem.kind, error)
            return on_client_error(problem.error)
        log.error("request_failed", path=request.path, method=request.method, exc_info=error)
        return answer(500, "internal", "Internal error. It was logged; try again later.")
