"""Protects the forms against cross-site requests.

There are no accounts and no sessions, so there is no token to compare. Browsers report the origin
of a request in headers that a page cannot forge: ``Sec-Fetch-Site`` (all browsers since 2023) and
``Origin``, which every cross-site POST has. A request with neither does not come from a browser,
and its client could use the API instead.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import abort, request


def refuse_cross_site() -> None:
    """Answer 403 unless the form was sent by our own pages or from the address bar."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or urlsplit(origin).netloc == request.host
    if not is_ours:
        abort(403, "This form was sent from another site.")
