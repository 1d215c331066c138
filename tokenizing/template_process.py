"""Renders conversations with a model's chat template, in a process of its own.

A template is a program that a stranger wrote: it may loop, build huge texts, or look for a way out.
It runs in Jinja's immutable sandbox, as transformers does it, with bounded memory and time. Run as
a program, it reads the template and the special tokens and then conversations from standard input,
one JSON value a line, and answers each with a line. It imports nothing of the product.

Source: what transformers' templates may use: ``raise_exception``, ``strftime_now``, ``tojson``
without escapes, loop controls, and blocks without surrounding line ends.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 512 << 20
MAX_CHARACTERS = 1 << 20  # of a rendered conversation


def main() -> None:
    """Answer until standard input ends; an alarm ends the process even in the library."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(int(sys.argv[2]))
    first = json.loads(sys.stdin.readline())
    try:
        template = environment().from_string(first["template"])
    except TemplateError as error:
        _say({"error": f"the model's chat template is not valid: {error}"})
        return
    _say({})
    for line in iter(sys.stdin.readline, ""):
        signal.alarm(seconds)
        _say(_answer(template, first["tokens"] | json.loads(line)))
        signal.alarm(0)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment of chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = _now
    return made


def _answer(template: jinja2.Template, variables: dict[str, Any]) -> dict[str, Any]:
    try:
        pieces, length = [], 0
        for piece in template.generate(**variables):
            length += len(piece)
            if length > MAX_CHARACTERS:
                return {"error": f"the conversation has more than {MAX_CHARACTERS:,} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": "the model's chat template needs too much memory"}
    except Exception as error:  # whatever the template does with the conversation
        return {"error": str(error) or type(error).__name__}


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)  # noqa: DTZ005 - the local date, as transformers


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _say(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
