"""Whether a form came from our own pages: the pages' guard against cross-site requests.

There are no accounts and no sessions, so there is no token to compare. Browsers say themselves
where a request comes from, in headers that no page can forge: ``Sec-Fetch-Site`` (all browsers
since 2023), else ``Origin``, which goes with every cross-site POST. A request with neither comes
from no browser, and could do the same through the API.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import abort, request


def refuse_cross_site() -> None:
    """Let forms act only when our own pages, or the visitor's own address bar, sent them."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or urlsplit(origin).netloc == request.host
    if not is_ours:
        abort(403, "This form was sent from another site.")
