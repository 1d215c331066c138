"""The documents of completions: whole ones, and the chunks of a stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from textmill.core.jobs.records import JobRecord

# A canceled job has the text that was written until then.
_REASONS = {"stop": "stop", "length": "length", "canceled": "stop"}
DONE = "data: [DONE]\n\n"


def finish_reason(job: JobRecord) -> str:
    """Why a text ended, in OpenAI's words."""
    return _REASONS.get(job.finish_reason or "", "stop")


def usage(jobs: Sequence[JobRecord]) -> dict[str, int]:
    """The tokens of some jobs; the prompt of several samples counts once."""
    prompts = {job.variant_index: job.num_prompt_tokens or 0 for job in jobs}
    num_prompt = sum(prompts.values())
    num_new = sum(job.num_completion_tokens for job in jobs)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
    }


def head(kind: str, identifier: str, jobs: Sequence[JobRecord]) -> dict[str, Any]:
    """The fields that a document and all chunks of a stream begin with."""
    revision = next((job.model_revision for job in jobs if job.model_revision), None)
    return {
        "id": identifier,
        "object": kind,
        "created": jobs[0].created_at // 1000,
        "model": jobs[0].model,
        "system_fingerprint": None if revision is None else f"fp_{revision}",
    }


def event(document: Mapping[str, Any]) -> str:
    """An unnamed event of a stream, in ASCII, which contains no Unicode line break."""
    return f"data: {json.dumps(document)}\n\n"
