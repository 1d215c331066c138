"""The ``messages`` format: a chat written as plain text, turn by turn.

Base models have no chat template, so every chat is written in the same way::

    System: Be brief.

    User: Hello!

    Assistant: Hi. What can I do for you?

The assistant's messages are learned, each with the space before it; everything else is prompt.
White space around a message is removed.
"""

from __future__ import annotations

from textmill.finetune.examples import Part
from textmill.finetune.records import Record, describe_type

_SPEAKERS = {"system": "System:", "user": "User:", "assistant": "Assistant:"}


def chat_parts(record: Record) -> tuple[Part, ...]:
    """The parts of a record with ``messages``, a list of ``{"role": …, "content": …}``.

    Returns:
        For each message of the assistant, a prompt part and a learned part.

    Raises:
        DataError: a message is invalid, or the last one is not the assistant's.
    """
    parts: list[Part] = []
    pending: list[str] = []  # messages since the assistant's last one
    role = ""
    messages = _messages(record)
    for number, message in enumerate(messages):
        role, content = _message(record, message, f"messages[{number}]")
        if role == "assistant":
            prompt = "\n\n".join([*pending, _SPEAKERS[role]])
            parts.append(Part("\n\n" + prompt if parts else prompt, is_learned=False))
            parts.append(Part(" " + content, is_learned=True))
            pending = []
        else:
            pending.append(f"{_SPEAKERS[role]} {content}")
    if role != "assistant":
        raise record.error(
            f"the last message must be the assistant's, which is learned, but its role is {role}.",
            f"messages[{len(messages) - 1}].role",
        )
    return tuple(parts)


def _messages(record: Record) -> list[object]:
    messages = record.fields.get("messages")
    if not isinstance(messages, list):
        is_given = "messages" in record.fields
        fault = f"but is {describe_type(messages)}" if is_given else "but is missing"
        raise record.error(f"must be a list of messages, {fault}.", "messages")
    if not messages:
        raise record.error("contains no message.", "messages")
    return messages


def _message(record: Record, message: object, name: str) -> tuple[str, str]:
    """(role, content without surrounding white space)."""
    if not isinstance(message, dict):
        raise record.error(f"must be an object, but is {describe_type(message)}.", name)
    for key in ("role", "content"):
        if key not in message:
            raise record.error("is missing.", f"{name}.{key}")
    role = record.as_text(message["role"], f"{name}.role")
    if role not in _SPEAKERS:
        raise record.error(f"must be {_roles()}, but is {role!r}.", f"{name}.role")
    content = record.as_text(message["content"], f"{name}.content").strip()
    if not content:
        raise record.error("is blank.", f"{name}.content")
    return role, content


def _roles() -> str:
    *others, last = _SPEAKERS
    return f"{', '.join(others)} or {last}"
