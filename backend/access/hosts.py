"""Serves requests for this service's own host names alone.

A page of another site can give its own name the address 127.0.0.1 (DNS rebinding); the browser then
takes our responses for that site's. Its requests carry the site's name in the Host header, which
the page cannot change. Loopback names cannot be given to another site.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from flask import Request

from textmill.core.errors import Misdirected
from textmill.core.setting_values import is_loopback


def check_host(request: Request, allowed: Collection[str]) -> None:
    """Refuse a request for another host.

    Args:
        request: its Host header, or the host of an absolute address.
        allowed: names in lower case, besides the loopback ones.

    Raises:
        Misdirected: the host is not ours, or is not a host name.
    """
    given = request.environ.get("HTTP_HOST", "")
    if not given:  # HTTP/1.0 without a Host header, which no browser sends
        return
    name = host_name(given)
    if not name or not (name in allowed or is_loopback(name)):
        raise Misdirected(
            "This service does not answer to that host name. If it should, add the name to"
            " TEXTMILL_ALLOWED_HOSTS."
        )


def site_address(request: Request) -> str:
    """The address of this site, as the client of a request that ``check_host`` let pass names it.

    Returns:
        Scheme, host and port, such as ``https://demo.example.org``.

    Raises:
        Misdirected: the request names no host.
    """
    given = request.environ.get("HTTP_HOST", "")
    name = host_name(given)
    if not name:
        raise Misdirected("Name the host of this service in the header Host.")
    port = urlsplit(f"//{given}").port
    is_usual = port in (None, 443 if request.scheme == "https" else 80)
    return f"{request.scheme}://{name}" + ("" if is_usual else f":{port}")


def host_name(host: str) -> str:
    """The name in a Host header, in lower case, without port and final dot; empty if malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for one that is not a number
        name = (parts.hostname or "").rstrip(".")
    except ValueError:
        return ""
    if parts.path or parts.query or parts.fragment or "@" in host or "\\" in host:
        return ""
    return bracketed(name)


def bracketed(name: str) -> str:
    """A host name as it is written in a Host header: IPv6 addresses in brackets."""
    return f"[{name}]" if ":" in name and not name.startswith("[") else name
