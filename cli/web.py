"""``textmill web``: the web process in the foreground."""

from __future__ import annotations

from cli.exits import CommandFailed
from cli.preflight import check_port, port_sentence
from core.settings import Settings


def serve(settings: Settings) -> None:
    """Serve until a signal.

    Raises:
        SettingsError: the models file or the database's folder cannot be used.
        CommandFailed: the address cannot be listened on.
    """
    from backend.serving import serve as serve_web

    check_port(settings.host, settings.port)
    try:
        serve_web(settings)
    except OSError as error:  # taken in the last instant, or an address that has gone
        raise CommandFailed(port_sentence(settings.host, settings.port, error)) from None
