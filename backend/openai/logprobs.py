"""Log-probabilities in OpenAI's form, from the trace of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Trace = Sequence[Mapping[str, Any]]


def completion_logprobs(
    trace: Trace, text: str, num_alternatives: int, offset: int
) -> dict[str, Any]:
    """The ``logprobs`` of a completion.

    Args:
        trace: of the new tokens.
        text: the new text; tokens of a stop string behind it are left out.
        num_alternatives: how many of the likeliest tokens to tell; the chosen one is always told.
        offset: of the new text in the choice's text, in characters.
    """
    tokens, logprobs, top, offsets = [], [], [], []
    begin = 0
    for token in trace:
        if begin >= len(text) and begin > 0 and token["text"]:
            break
        tokens.append(token["text"])
        logprobs.append(token["logprob"])
        top.append(_top(token, num_alternatives))
        offsets.append(offset + begin)
        begin += len(token["text"])
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": top if num_alternatives else None,
        "text_offset": offsets,
    }


def _top(token: Mapping[str, Any], num_alternatives: int) -> dict[str, float]:
    """The likeliest tokens and the chosen one by their texts; of two with one text the likelier."""
    found: dict[str, float] = {}
    own = {"id": token["id"], "text": token["text"], "logprob": token["logprob"]}
    likeliest = sorted(token["alternatives"], key=lambda one: -one["logprob"])[:num_alternatives]
    is_told = any(one["id"] == token["id"] for one in likeliest)
    for one in [*likeliest, *([] if is_told else [own])]:
        found[one["text"]] = max(one["logprob"], found.get(one["text"], one["logprob"]))
    return found


def chat_logprobs(trace: Trace, num_alternatives: int) -> dict[str, Any]:
    """The ``logprobs`` of a chat completion's choice."""

    def entry(token: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "token": token["text"],
            "logprob": token["logprob"],
            "bytes": list(str(token["text"]).encode()),
        }

    return {
        "content": [
            entry(token)
            | {
                "top_logprobs": [
                    entry(one)
                    for one in sorted(token["alternatives"], key=lambda one: -one["logprob"])
                ][:num_alternatives]
            }
            for token in trace
        ],
        "refusal": None,
    }


def mean_logprob(trace: Trace) -> float:
    """The mean log-probability of a text's tokens; minus infinity for an empty text."""
    values = [float(token["logprob"]) for token in trace]
    return sum(values) / len(values) if values else float("-inf")
