"""A tokenizer in a child process, which is killed and restarted if it takes too long.

The child runs ``tokenizing.process``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textmill.core.errors import TextmillError, Unavailable
from textmill.tokenizing import process as tokenizer_process
from textmill.tokenizing.line_process import LineProcess

ENCODE_SECONDS = 5.0  # with known patterns 256 KiB take 0.6 s on a core of 2023
LOAD_SECONDS = 30.0
RETRY_SECONDS = 5
MAX_CHARACTERS = 200  # of the library's error message


class TokenizerFault(TextmillError):
    """A tokenizer cannot be loaded, or cannot tokenize a text; the message says which."""

    code = "tokenizer_fault"


class TokenizerBusy(Unavailable):
    """Another text takes so long that this one was not tokenized."""

    code = "tokenizer_busy"


class TokenizerProcess:
    """A tokenizer with unknown patterns; one text at a time, killed when it takes too long."""

    def __init__(self, tokenizer_json: str) -> None:
        self._process = LineProcess(
            tokenizer_process.__file__,
            tokenizer_json,
            start_seconds=LOAD_SECONDS,
            seconds=ENCODE_SECONDS,
        )

    def start(self) -> None:
        """Start the process.

        Raises:
            TokenizerFault: it crashes, or takes too long, while it loads the tokenizer.
        """
        if self._process.start() is None:
            raise TokenizerFault("The tokenizer cannot be loaded: the library fails on it.")

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and return its reply.

        Raises:
            TokenizerFault: the tokenizer fails on it, or takes too long.
            TokenizerBusy: another text takes too long.
        """
        try:
            reply = self._process.ask(request)
        except TimeoutError:
            raise TokenizerBusy(
                "The model's tokenizer is busy with another text; try again.",
                retry_after_seconds=RETRY_SECONDS,
            ) from None
        if reply is None:
            raise TokenizerFault(
                "The model's tokenizer cannot read this text: it took longer than"
                f" {ENCODE_SECONDS:g} s, or crashed. Shorten the text, or change it."
            )
        if "error" in reply:
            raise TokenizerFault(
                "The model's tokenizer cannot read this text:"
                f" {str(reply['error'])[:MAX_CHARACTERS]}."
            )
        return reply

    def stop(self) -> None:
        """Kill the process; the next text starts it again."""
        self._process.stop()
