"""Conversations as prompts, by the chat template of a model.

The templates run in processes of their own, which are killed when they take too long.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from textmill.core.errors import TextmillError, Unavailable
from textmill.tokenizing import template_process
from textmill.tokenizing.line_process import LineProcess

START_SECONDS = 10.0
RENDER_SECONDS = 2.0
RETRY_SECONDS = 5
MAX_PROCESSES = 4  # one for each template; the one used longest ago ends
MAX_CHARACTERS = 300  # of a template's message
Message = Mapping[str, Any]


class TemplateFault(TextmillError):
    """A template refuses a conversation, fails on it, or takes too long; the message says which."""

    code = "template_fault"


class TemplateBusy(Unavailable):
    """Another conversation takes so long that this one was not rendered."""

    code = "template_busy"


class ChatTemplates:
    """Renders conversations. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: OrderedDict[str, LineProcess] = OrderedDict()

    def render(self, config: Mapping[str, Any], messages: Sequence[Message]) -> str:
        """The prompt that makes a model write the next message.

        Args:
            config: of the model's tokenizer, with its ``chat_template`` and special tokens.
            messages: the conversation so far.

        Raises:
            TemplateFault: the template refuses the conversation, fails on it, or takes too long.
            TemplateBusy: another conversation takes too long.
        """
        variables = {"messages": list(messages), "add_generation_prompt": True, "tools": None}
        try:
            reply = self._process(config).ask(variables)
        except TimeoutError:
            raise TemplateBusy(
                "The model's chat template is busy with another conversation; try again.",
                retry_after_seconds=RETRY_SECONDS,
            ) from None
        if reply is None:
            problem = f"the model's chat template failed, or took longer than {RENDER_SECONDS:g} s"
        elif "error" in reply:
            problem = str(reply["error"])[:MAX_CHARACTERS]
        else:
            return str(reply["text"])
        raise TemplateFault(problem)

    def _process(self, config: Mapping[str, Any]) -> LineProcess:
        tokens = {name: value for name, value in config.items() if name != "chat_template"}
        first = {"template": config["chat_template"], "tokens": tokens}
        key = hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()
        with self._lock:
            process = self._processes.pop(key, None) or LineProcess(
                template_process.__file__,
                first,
                start_seconds=START_SECONDS,
                seconds=RENDER_SECONDS,
            )
            self._processes[key] = process
            gone = [self._processes.popitem(last=False)[1]] if self._has_too_many() else []
        for old in gone:
            old.stop()
        return process

    def _has_too_many(self) -> bool:
        return len(self._processes) > MAX_PROCESSES

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            for process in self._processes.values():
                process.stop()
            self._processes.clear()
