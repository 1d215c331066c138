"""Converts Pydantic's validation errors to messages about fields."""

from __future__ import annotations

from pydantic import ValidationError

from textmill.core.errors import FieldError
from textmill.core.strategies import STRATEGIES, STRATEGIES_BY_NAME

# Messages for Pydantic's error types; its ``ctx`` fills in the braces.
_MESSAGES = {
    "missing": "is required",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "too_long": "must have at most {max_length} items",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a JSON object",
}


def field_errors(error: ValidationError, strategy: str | None = None) -> list[FieldError]:
    """Convert a Pydantic error to messages, one for each field."""
    found: dict[str, FieldError] = {}
    for item in error.errors(include_url=False, include_input=False):
        path = ".".join(_printable(part) for part in item["loc"])
        template = _MESSAGES.get(item["type"], item["msg"])
        message = template.format(**item.get("ctx", {})) if template != item["msg"] else template
        if item["type"] == "extra_forbidden":
            message = _unknown_field(path, strategy)
        found.setdefault(path, FieldError(path, message))
    return list(found.values())


def _printable(part: object) -> str:
    return str(part).encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")[:100]


def _unknown_field(name: str, strategy: str | None) -> str:
    spec = STRATEGIES_BY_NAME.get(strategy or "")
    users = [other.name for other in STRATEGIES if name in other.parameter_names]
    if spec is not None and users:
        names = ", ".join(sorted(spec.parameter_names))
        return f"strategy {spec.name} does not use this field; its parameters are {names}"
    return "there is no such field"
