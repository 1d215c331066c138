"""A tokenizer in a child process, which is killed and restarted if it takes too long.

The child runs ``tokenizing.process``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

from textmill.core.errors import TextmillError, Unavailable
from textmill.tokenizing import process as tokenizer_process

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
        self._json = tokenizer_json
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process.

        Raises:
            TokenizerFault: it crashes, or takes too long, while it loads the tokenizer.
        """
        with self._lock:
            self._running()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and return its reply.

        Raises:
            TokenizerFault: the tokenizer fails on it, or takes too long.
            TokenizerBusy: another text takes too long.
        """
        if not self._lock.acquire(timeout=ENCODE_SECONDS):
            raise TokenizerBusy(
                "The model's tokenizer is busy with another text; try again.",
                retry_after_seconds=RETRY_SECONDS,
            )
        try:
            reply = self._exchange(self._running(), json.dumps(request), ENCODE_SECONDS)
        finally:
            self._lock.release()
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
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end()
        seconds = (str(int(ENCODE_SECONDS) + 1), str(int(LOAD_SECONDS) + 1))
        self._child = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", tokenizer_process.__file__, *seconds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
            cwd=Path(tokenizer_process.__file__).parent.parent,
        )
        if self._exchange(self._child, json.dumps(self._json), LOAD_SECONDS) is None:
            raise TokenizerFault("The tokenizer cannot be loaded: the library fails on it.")
        return self._child

    def _exchange(
        self, child: subprocess.Popen[str], line: str, seconds: float
    ) -> dict[str, Any] | None:
        """Write a line and read one; ``None`` if the process crashed or was killed."""
        timer = threading.Timer(seconds, child.kill)
        timer.daemon = True
        timer.start()
        try:
            ask, answer = cast("IO[str]", child.stdin), cast("IO[str]", child.stdout)
            ask.write(line + "\n")
            ask.flush()
            reply = answer.readline()
        except OSError:
            reply = ""
        finally:
            timer.cancel()
        if reply.endswith("\n"):
            return cast("dict[str, Any]", json.loads(reply))
        self._end()
        return None

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            child.wait()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._end()
