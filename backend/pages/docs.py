"""The API page: the OpenAPI document in groups, with snippets for each operation."""

from __future__ import annotations

import json
from typing import Any

from flask import Blueprint, Response, make_response, render_template, request

from textmill.backend.openapi import openapi_document
from textmill.backend.pages.snippets import Call, curl_snippet, python_snippet

Document = dict[str, Any]
GROUPS = (
    ("jobs", "Jobs", "Submit a prompt, follow the text, find it again."),
    ("runs", "Runs", "One prompt, several strategies, side by side."),
    ("models", "Models and strategies", "The models that are served, and how they can decode."),
    ("queue", "Queue", "How many jobs wait and run, and the workers."),
    ("tokenize", "Tokens", "How a model splits a text."),
    ("openapi.json", "This description", "For generators of clients."),
)
_JOINED = {"strategies": "models"}
blueprint = Blueprint("docs", __name__)


@blueprint.get("/docs")
def docs_page() -> Response:
    """Show the API."""
    document = openapi_document()
    host = request.host_url.rstrip("/")
    page = render_template(
        "docs.html",
        info=document["info"],
        groups=groups(document, host),
        base=host + document["servers"][0]["url"],
    )
    return make_response(page)


def groups(document: Document, host: str) -> list[Document]:
    """Return the operations of an OpenAPI document, in groups, in reading order.

    Args:
        document: the document.
        host: scheme and host of the server, for the snippets.
    """
    base = host + document["servers"][0]["url"]
    found: dict[str, list[Document]] = {name: [] for name, _, _ in GROUPS}
    for path, methods in document["paths"].items():
        head = path.strip("/").split("/")[0]
        for method, operation in methods.items():
            entry = _operation(method, path, operation, base)
            found.setdefault(_JOINED.get(head, head), []).append(entry)
    about = {name: (title, text) for name, title, text in GROUPS}
    return [
        {
            "name": name.replace(".", "-"),
            "title": about.get(name, (name.capitalize(), ""))[0],
            "text": about.get(name, ("", ""))[1],
            "operations": operations,
        }
        for name, operations in found.items()
        if operations
    ]


def _operation(method: str, path: str, operation: Document, base: str) -> Document:
    body = _example_body(operation)
    call = Call(method.upper(), path, base, body, _media(operation))
    return {
        "id": operation["operationId"].replace("_", "-"),
        "method": method,
        "path": path,
        "summary": operation["summary"],
        "parameters": [_parameter(parameter) for parameter in operation.get("parameters", ())],
        "body": None if body is None else json.dumps(body, indent=2, ensure_ascii=False),
        "responses": [_response(code, about) for code, about in operation["responses"].items()],
        "curl": curl_snippet(call),
        "python": python_snippet(call),
    }


def _example_body(operation: Document) -> Any:
    if "requestBody" not in operation:
        return None
    content = operation["requestBody"]["content"]["application/json"]
    return next(iter(content.get("examples", {"": {"value": {}}}).values()))["value"]


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
        "location": parameter["in"],
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
