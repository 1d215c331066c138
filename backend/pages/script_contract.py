"""Generates ``web/static/js/contract.js``: what the scripts share with the server.

``scripts/write_contract.py`` writes the file, and a test fails if it is out of date.
"""

from __future__ import annotations

import json
from typing import Any

from textmill.backend.pages.comparison import MAX_MARKED_CHARACTERS
from textmill.backend.pages.job import MIN_RATE_SECONDS
from textmill.backend.pages.phrases import (
    DURATION_UNITS,
    FINISH_SENTENCES,
    STATUS_LABELS,
    Phrase,
)
from textmill.backend.pages.queue import MAX_SLOT_MARKS, SLOT_WIDTH
from textmill.backend.pages.run import MAX_COMPARED
from textmill.core.problems import KINDS, in_words
from textmill.core.statuses import FINAL_STATUSES
from textmill.core.strategy_specs import DETERMINISTIC_STRATEGIES

_HEADER = """\
// @ts-check
// Generated from backend/pages/script_contract.py by scripts/write_contract.py. Do not edit.
"""


def contract_js() -> str:
    """Return the text of ``contract.js``."""
    constants: dict[str, Any] = {
        "FINAL_STATUSES": list(FINAL_STATUSES),
        "STATUS_LABELS": STATUS_LABELS,
        "FINISH_SENTENCES": FINISH_SENTENCES,
        "DETERMINISTIC_STRATEGIES": sorted(DETERMINISTIC_STRATEGIES),
        "DURATION_UNITS": DURATION_UNITS,
        "LIMITS": {
            "maxCompared": MAX_COMPARED,
            "maxMarkedCharacters": MAX_MARKED_CHARACTERS,
            "maxSlotMarks": MAX_SLOT_MARKS,
            "slotWidth": SLOT_WIDTH,
            "minRateSeconds": MIN_RATE_SECONDS,
        },
        "PROBLEM_SENTENCES": {kind: in_words(kind, "{name}", "{reason}") for kind in KINDS},
        "PHRASES": {phrase.name: phrase.value for phrase in Phrase},
    }
    return _HEADER + "".join(
        f"\nexport const {name} = {json.dumps(value, indent=2, ensure_ascii=False)};\n"
        for name, value in constants.items()
    )
