"""Snippets for the API page: one operation as a shell command and as a Python program.

An operation that needs an id first creates a job or a run of its own, so that every snippet runs
unchanged and none touches other people's jobs.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

QUERIES: dict[tuple[str, str], dict[str, str]] = {
    ("GET", "/jobs"): {"q": "attention", "limit": "5"},
    ("GET", "/jobs/export"): {"format": "csv"},
    ("GET", "/jobs/{job_id}"): {"wait": "10"},
}
PROMPT = "Attention is all"
LONG_TOKENS = 1_000  # a job of this length is still running when the snippet cancels it
EVENT_STREAM = "text/event-stream"
_READ_ID = 'import json, sys; print(json.load(sys.stdin)["id"])'
_PYTHON_START = """\
import json
from urllib.request import Request, urlopen


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {{"Content-Type": "application/json"}}
    return urlopen(Request({base!r} + path, data, headers, method=method))


"""
_PYTHON_SETUP = """\
with call("POST", {path!r}, {body!r}) as response:
    id = json.load(response)["id"]
"""
_PYTHON_WAIT = 'call("GET", f"/jobs/{id}?wait=30").read()\n'
_PYTHON_PRINT = """\
with call({arguments}) as response:
    for line in response:
        print(line.decode(), end="")"""
_PYTHON_PRINT_STATUS = "print(call({arguments}).status)"


@dataclass(frozen=True, slots=True)
class Call:
    """One operation.

    Attributes:
        method: in upper case.
        path: with ``{job_id}`` or ``{run_id}`` where it has one.
        base: the address that all paths are relative to.
        body: an example of the JSON body, or ``None``.
        media: the media type of the response; empty if it has no body.
    """

    method: str
    path: str
    base: str
    body: Any
    media: str

    @property
    def creates(self) -> str:
        """The path at which the snippet creates what it needs; empty if it needs nothing."""
        return "/jobs" if "{job_id}" in self.path else "/runs" if "{run_id}" in self.path else ""

    @property
    def setup_body(self) -> dict[str, Any]:
        """The body with which the snippet creates it."""
        if self.creates == "/runs":
            return {"prompt": PROMPT, "variants": [{"strategy": "greedy"}]}
        body: dict[str, Any] = {"prompt": PROMPT}
        if self.needs_end:
            body["trace"] = True
        if self.path.endswith("/cancel"):
            body["max_new_tokens"] = LONG_TOKENS
        return body

    @property
    def needs_end(self) -> bool:
        """Whether the created job must have ended: a trace is available after that."""
        return self.path.endswith("/trace")

    def target(self, id_text: str) -> str:
        """Return the path with an id filled in, and the example's query."""
        path = self.path.replace("{job_id}", id_text).replace("{run_id}", id_text)
        query = urlencode(QUERIES.get((self.method, self.path), {}))
        return f"{path}?{query}" if query else path


def curl_snippet(call: Call) -> str:
    """Return shell commands that use curl."""
    lines = []
    if call.creates:
        body = shlex.quote(json.dumps(call.setup_body))
        address = shlex.quote(call.base + call.creates)
        lines.append(f"ID=$(curl -s {address} --json {body} \\")
        lines.append(f"  | python3 -c {shlex.quote(_READ_ID)})")
    if call.needs_end:
        lines.append(f'curl -s -o /dev/null "{call.base}/jobs/$ID?wait=30"')
    address = call.base + call.target("$ID")
    quoted = f'"{address}"' if call.creates else shlex.quote(address)
    line = f"curl {_curl_flags(call)} {quoted}"
    if call.body is not None:
        line += f" \\\n  --json {shlex.quote(json.dumps(call.body, ensure_ascii=False))}"
    return "\n".join([*lines, line])


def _curl_flags(call: Call) -> str:
    flags = "-sN" if call.media == EVENT_STREAM else "-s"
    has_own_method = call.method == "GET" or call.body is not None  # --json implies POST
    if not has_own_method:
        flags += f" -X {call.method}"
    if not call.media:
        flags += " -i"  # there is nothing to print but the status
    return flags


def python_snippet(call: Call) -> str:
    """Return a Python program that uses the standard library alone."""
    program = _PYTHON_START.format(base=call.base)
    if call.creates:
        program += _PYTHON_SETUP.format(path=call.creates, body=call.setup_body)
    if call.needs_end:
        program += _PYTHON_WAIT
    target = call.target("{id}")
    arguments = f'"{call.method}", {"f" if call.creates else ""}"{target}"'
    if call.body is not None:
        arguments += f", {call.body!r}"
    ending = _PYTHON_PRINT if call.media else _PYTHON_PRINT_STATUS
    return program + ending.format(arguments=arguments)
