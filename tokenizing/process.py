"""A tokenizer in a separate process, which may hang, run out of memory or crash.

Run as a program, it reads a tokenizer.json and then requests from standard input, one JSON value a
line, and answers each with a line. It imports nothing of the product, so that it starts quickly.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

import tokenizers

MEMORY_BYTES = 2 << 30


def main() -> None:
    """Answer requests until standard input ends; an alarm ends the process even in the library."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(int(sys.argv[2]))
    tokenizer = tokenizers.Tokenizer.from_str(json.loads(sys.stdin.readline()))
    _say({})
    for line in iter(sys.stdin.readline, ""):
        signal.alarm(seconds)
        _say(_answer(tokenizer, json.loads(line)))
        signal.alarm(0)


def _answer(tokenizer: tokenizers.Tokenizer, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["spans"]:
            encoding = tokenizer.encode(request["text"])
            added = encoding.special_tokens_mask
            return {"ids": encoding.ids, "offsets": encoding.offsets, "added": added}
        ends = request["ends"]
        (encoding,) = tokenizer.encode_batch_fast([request["text"]], add_special_tokens=ends)
        return {"ids": encoding.ids}
    except BaseException as error:  # a panic is not an Exception
        return {"error": str(error)}


def _say(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
