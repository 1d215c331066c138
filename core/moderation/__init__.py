"""Moderation: who is asked before a prompt is stored, and before a text is shown.

``TEXTMILL_MODERATION`` names a word list (``words:PATH``), a service (``https://…``) or a function
of the operator's own (``python:MODULE:FUNCTION``). Without it nothing is asked.
"""

from __future__ import annotations

from textmill.core.moderation.moderators import (
    ModerationUnavailable,
    Moderator,
    Verdict,
    make_moderator,
)

__all__ = ["ModerationUnavailable", "Moderator", "Verdict", "make_moderator"]
