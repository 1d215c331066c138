"""The exit statuses of ``textmill``, and the error that carries one."""

from __future__ import annotations

from textmill.core.errors import TextmillError

EXIT_FAILED = 1
EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a regular end; start the process again
EXIT_CONFIGURATION = 78  # EX_CONFIG of sysexits.h: a restart does not help
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells report


class CommandFailed(TextmillError):
    """A command failed; the message says what to do."""

    code = "command_failed"

    def __init__(self, message: str, exit_status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_status = exit_status
