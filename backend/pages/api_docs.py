"""The API page's contents: the OpenAPI document in groups, with curl and Python snippets.

A call that needs an id first makes a job of its own, so every snippet runs as it stands and none
touches somebody else's text.
"""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import quote, urlencode

Document = dict[str, Any]
_GROUPS = (
    ("jobs", "Jobs", "Submit a prompt, follow the text, find it again."),
    ("runs", "Runs", "One prompt, several strategies, side by side."),
    ("models", "Models and strategies", "What can be asked for."),
    ("queue", "Queue", "How busy it is."),
    ("tokenize", "Tokens", "What a text is to a model."),
    ("openapi.json", "This description", "For generators of clients."),
)
_JOINED = {"strategies": "models"}
_QUERIES: dict[tuple[str, str], dict[str, str]] = {
    ("get", "/jobs"): {"q": "attention", "limit": "5"},
    ("get", "/jobs/export"): {"format": "csv"},
    ("get", "/jobs/{job_id}"): {"wait": "10"},
}
_PROMPT = "Attention is all"
_LONG = 1_000  # tokens: the job still runs when the snippet comes to cancel it


def groups(document: Document, host: str) -> list[Document]:
    """The operations in the order that a reader needs them."""
    base = host + document["servers"][0]["url"]
    found: dict[str, list[Document]] = {name: [] for name, _, _ in _GROUPS}
    for path, methods in document["paths"].items():
        head = path.strip("/").split("/")[0]
        for method, operation in methods.items():
            entry = _operation(method, path, operation, base)
            found.setdefault(_JOINED.get(head, head), []).append(entry)
    words = {name: (title, text) for name, title, text in _GROUPS}
    return [
        {
            "name": name.replace(".", "-"),
            "title": words.get(name, (name.capitalize(), ""))[0],
            "text": words.get(name, ("", ""))[1],
            "operations": operations,
        }
        for name, operations in found.items()
        if operations
    ]


def _operation(method: str, path: str, operation: Document, base: str) -> Document:
    body = None
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        body = next(iter(content.get("examples", {"": {"value": {}}}).values()))["value"]
    media = _media(operation)
    call = _Call(method, path, base, body, media)
    return {
        "id": operation["operationId"].replace("_", "-"),
        "method": method,
        "path": path,
        "summary": operation["summary"],
        "parameters": [_parameter(parameter) for parameter in operation.get("parameters", ())],
        "body": None if body is None else json.dumps(body, indent=2, ensure_ascii=False),
        "responses": [_response(code, told) for code, told in operation["responses"].items()],
        "curl": call.curl(),
        "python": call.python(),
    }


def _media(operation: Document) -> str:
    for code, response in operation["responses"].items():
        if code.startswith("2"):
            return next(iter(response.get("content", {})), "")
    return ""


def _parameter(parameter: Document) -> Document:
    schema = parameter.get("schema", {})
    allowed = ", ".join(str(value) for value in schema.get("enum", ()))
    if not allowed and "minimum" in schema and "maximum" in schema:
        allowed = f"{schema['minimum']} to {schema['maximum']}"
    return {
        "name": parameter["name"],
        "place": parameter["in"],
        "required": parameter.get("required", False),
        "type": schema.get("type", ""),
        "text": parameter.get("description", ""),
        "allowed": allowed,
        "default": schema.get("default"),
    }


def _response(code: str, response: Document) -> Document:
    contents: Document = response.get("content", {})
    media = next(iter(contents), "")
    schema: Document = contents[media].get("schema", {}) if media else {}
    is_list = schema.get("type") == "array"
    name = (schema.get("items", {}) if is_list else schema).get("$ref", "").rpartition("/")[2]
    return {
        "code": code,
        "text": response["description"],
        "media": media,
        "schema": f"list of {name}" if is_list and name else name,
        "headers": ", ".join(response.get("headers", ())),
    }


class _Call:
    """One operation as a line for the shell and as a Python program."""

    def __init__(self, method: str, path: str, base: str, body: Any, media: str) -> None:
        self._method = method.upper()
        self._path = path
        self._base = base
        self._body = body
        self._media = media
        self._query = urlencode(_QUERIES.get((method, path), {}))

    @property
    def _needs(self) -> str:
        """What is made first: nothing, a job, a run."""
        return "job" if "{job_id}" in self._path else "run" if "{run_id}" in self._path else ""

    def _setup(self) -> Document:
        if self._needs == "run":
            return {"prompt": _PROMPT, "variants": [{"strategy": "greedy"}]}
        setup: Document = {"prompt": _PROMPT}
        if self._path.endswith("/trace"):
            setup["trace"] = True
        if self._path.endswith("/cancel"):
            setup["max_new_tokens"] = _LONG
        return setup

    def _address(self, made: str) -> str:
        path = self._path.replace("{job_id}", made).replace("{run_id}", made)
        return self._base + path + (f"?{self._query}" if self._query else "")

    def curl(self) -> str:
        """For a shell."""
        lines = []
        if self._needs:
            setup = shlex.quote(json.dumps(self._setup()))
            read = shlex.quote('import json, sys; print(json.load(sys.stdin)["id"])')
            lines.append(
                f"ID=$(curl -s {shlex.quote(f'{self._base}/{self._needs}s')} --json {setup} \\\n"
                f"  | python3 -c {read})"
            )
        if self._path.endswith("/trace"):
            waiting = f"{self._base}/jobs/$ID?wait=30"
            lines.append(f'curl -s -o /dev/null "{waiting}"')
        flags = "-sN" if self._media == "text/event-stream" else "-s"
        if self._method not in ("GET", "POST") or (self._method == "POST" and self._body is None):
            flags += f" -X {self._method}"
        if not self._media:
            flags += " -i"
        address = f'"{self._address("$ID")}"' if self._needs else shlex.quote(self._address(""))
        line = f"curl {flags} {address}"
        if self._body is not None:
            line += f" \\\n  --json {shlex.quote(json.dumps(self._body, ensure_ascii=False))}"
        return "\n".join([*lines, line])

    def python(self) -> str:
        """For Python, with what it brings along."""
        lines = ["import json", "from urllib.request import Request, urlopen", ""]
        lines.append(f"base = {self._base!r}")
        if self._needs:
            lines += [
                *_sent(self._setup(), f'base + "/{self._needs}s"'),
                "with urlopen(request) as answer:",
                f'    {self._needs} = json.load(answer)["id"]',
            ]
        if self._path.endswith("/trace"):
            lines.append('urlopen(f"{base}/jobs/{job}?wait=30").read()')
        address = self._address("{" + self._needs + "}")[len(self._base) :]
        quoted = f'f"{{base}}{address}"' if self._needs else f'base + "{quote(address, "/?=&.")}"'
        if self._body is not None:
            lines += _sent(self._body, quoted)
        else:
            lines.append(f'request = Request({quoted}, method="{self._method}")')
        lines.append("with urlopen(request) as answer:")
        if self._media == "text/event-stream":
            lines += ["    for line in answer:", '        print(line.decode(), end="")']
        elif self._media == "application/json":
            lines.append("    print(json.dumps(json.load(answer), indent=2))")
        elif self._media:
            lines.append("    print(answer.read().decode())")
        else:
            lines.append("    print(answer.status)")
        return "\n".join(lines)


def _sent(body: Any, address: str) -> list[str]:
    return [
        f"body = {body!r}",
        "request = Request(",
        f"    {address},",
        "    data=json.dumps(body).encode(),",
        '    headers={"Content-Type": "application/json"},',
        ")",
    ]
