"""Chats: ``messages``, written out as plain text in turns.

Base models have no chat template of their own, so a chat is written the same way for every one::

    System: Be brief.

    User: Hello!

    Assistant: Hi. What can I do for you?

The assistant's words are learned, each with the space before them; all else is prompt. White space
around a message is left out.
"""

from __future__ import annotations

from textmill.finetune.examples import Part
from textmill.finetune.records import Record, type_word

_SPEAKERS = {"system": "System:", "user": "User:", "assistant": "Assistant:"}


def chat_parts(record: Record) -> tuple[Part, ...]:
    """The parts of a record with ``messages``, a list of ``{"role": …, "content": …}``.

    Returns:
        A part that is not learned and one that is, in turn, as often as the assistant speaks.

    Raises:
        DataError: a message cannot be used, or the last one is not the assistant's.
    """
    messages = record.fields.get("messages")
    if not isinstance(messages, list):
        was = f"but is {type_word(messages)}" if "messages" in record.fields else "but is missing"
        raise record.error(f"must be a list of messages, {was}.", "messages")
    if not messages:
        raise record.error("holds no message.", "messages")
    parts: list[Part] = []
    waiting: list[str] = []
    role = ""
    for number, message in enumerate(messages):
        role, content = _message(record, message, f"messages[{number}]")
        if role == "assistant":
            prompt = "\n\n".join([*waiting, _SPEAKERS[role]])
            parts.append(Part("\n\n" + prompt if parts else prompt, is_learned=False))
            parts.append(Part(" " + content, is_learned=True))
            waiting = []
        else:
            waiting.append(f"{_SPEAKERS[role]} {content}")
    if role != "assistant":
        raise record.error(
            f"the last message must be the assistant's, which is learned, but its role is {role}.",
            f"messages[{len(messages) - 1}].role",
        )
    return tuple(parts)


def _message(record: Record, message: object, name: str) -> tuple[str, str]:
    """(role, content without white space around it)."""
    if not isinstance(message, dict):
        raise record.error(f"must be an object, but is {type_word(message)}.", name)
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
