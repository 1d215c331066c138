"""A keep-alive HTTP client that itself takes little time.

It uses the standard library, with which a GET of a constant took 0.07 ms; with httpx2 it took
0.24 ms (EPYC, 2 cores). Every latency includes that time. Each object has one connection, which
threads must not share.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from benchmarks.processes import BenchmarkError

TIMEOUT_SECONDS = 60.0  # longer than any answer, so that a hanging benchmark ends

Document = dict[str, Any]


class UnexpectedAnswer(BenchmarkError):
    """The server answered with a status other than the expected one."""


class Connection:
    """One keep-alive connection to the product."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        """Connect to ``url``, which is ``http://HOST:PORT``; send ``headers`` with each request."""
        self._headers = dict(headers or {})
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 80))
        self._http = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_SECONDS)
        self._http.connect()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def get(self, path: str) -> bytes:
        """Send a ``GET``; return the body of a 200.

        Raises:
            UnexpectedAnswer: the status is another one.
        """
        return self._request("GET", path, None, 200)

    def submit(self, body: Mapping[str, Any]) -> Document:
        """Send ``POST /api/v1/jobs``; return the job of a 202.

        Raises:
            UnexpectedAnswer: the status is another one.
        """
        answer = self._request("POST", "/api/v1/jobs", json.dumps(body).encode(), 202)
        document: Document = json.loads(answer)
        return document

    def submit_run(self, body: Mapping[str, Any]) -> Document:
        """Send ``POST /api/v1/runs``; return the run of a 202.

        Raises:
            UnexpectedAnswer: the status is another one.
        """
        answer = self._request("POST", "/api/v1/runs", json.dumps(body).encode(), 202)
        document: Document = json.loads(answer)
        return document

    def finished(self, job_id: str) -> Document:
        """Wait for the end of a job with long polls; return the job."""
        while True:
            job: Document = json.loads(self.get(f"/api/v1/jobs/{job_id}?wait=25"))
            if job["status"] not in {"queued", "running"}:
                return job

    def first_token_at(self, job_id: str) -> float:
        """The instant (``time.perf_counter``) at which a job's first ``token`` event arrives.

        Raises:
            UnexpectedAnswer: the job ended without one.
        """
        http_ = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_SECONDS)
        try:
            http_.request("GET", f"/api/v1/jobs/{job_id}/events")
            response = http_.getresponse()
            for line in response:
                if line.startswith(b"event: token"):
                    return time.perf_counter()
                if line.startswith(b"event: done"):
                    break
            raise UnexpectedAnswer(f"job {job_id} ended without a token event")
        finally:
            http_.close()

    def _request(self, method: str, path: str, body: bytes | None, wanted: int) -> bytes:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        self._http.request(method, path, body=body, headers=headers)
        response = self._http.getresponse()
        answer = response.read()
        if response.status != wanted:
            raise UnexpectedAnswer(f"{method} {path}: {response.status} {answer[:300]!r}")
        return answer


def milliseconds(since: float) -> float:
    """Milliseconds since an instant of ``time.perf_counter``."""
    return (time.perf_counter() - since) * 1000
