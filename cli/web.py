"""``textmill web``: the web process in the foreground."""

from __future__ import annotations

from textmill.cli.exits import CommandFailed
from textmill.cli.preflight import check_port, port_sentence
from textmill.core.settings import Settings


def serve(settings: Settings) -> None:
    """Serve until a signal.

    Raises:
        SettingsError: the models file or the database's folder cannot be used.
        CommandFailed: the address cannot be listened on.
    """
    check_port(settings.host, settings.port)

    from textmill.backend.serving import CannotListen
    from textmill.backend.serving import serve as serve_web

    try:
        serve_web(settings)
    except CannotListen as error:  # another program took it since the check
        cause = error.__cause__
        system_error = cause if isinstance(cause, OSError) else OSError(str(cause))
        raise CommandFailed(port_sentence(settings.host, settings.port, system_error)) from None
