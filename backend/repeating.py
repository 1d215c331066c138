"""The request that repeats a job."""

from __future__ import annotations

from typing import Any

from textmill.backend.response_models import JobView


def job_request(job: JobView) -> dict[str, Any]:
    """Return the body of ``POST /jobs`` that repeats a job, with its seed."""
    body: dict[str, Any] = {
        "prompt": job["prompt"],
        "model": job["model"],
        "strategy": job["strategy"],
    }
    body |= job["parameters"]
    ids = job.get("prompt_ids")
    body |= {} if ids is None else {"prompt_ids": ids}
    return body | ({"trace": True} if job.get("trace") else {})
