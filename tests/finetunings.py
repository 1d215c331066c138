"""A ``finetune.json`` as a fine-tuning writes it, for tests that must not load torch."""

from __future__ import annotations

import json
from typing import Any

CURVE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><title>Loss</title>'
    '<path d="M0 0h9" stroke="#777"/></svg>\n'
)
HOSTILE_CURVE = CURVE.replace("<title>", "<script>alert(1)</script><title>")
CARD = """\
---
library_name: "peft"
base_model: "org/base"
tags: ["textmill", "lora"]
---

# tuned

Writes abstracts.

| file | rows |
| --- | ---: |
| a\\|b | 12 |

![Loss](loss.svg)
"""
HOSTILE_MARKDOWN = (
    """
<script>alert(1)</script> <img src=x onerror=alert(1)> [x](javascript:alert(1))
![pixel](https://evil.example/pixel.png) <p style="color:red" onclick="alert(1)">y</p>
"""
    + "> " * 2_000
)
_SCORES = {
    "num_examples": 990, "num_tokens": 2_000, "num_bytes": 9_000, "nats_per_token": 3.0,
    "perplexity": 20.0855, "bits_per_byte": 0.8656,
    "texts": {
        "num_texts": 100, "num_skipped": 0,
        "rouge": {"rouge1": 0.25, "rouge2": 0.05, "rouge_l": 0.2},
        "distinct1": 0.25, "distinct2": 0.5, "distinct3": 0.75,
        "memorised": 0.021, "reference_memorised": 0.017,
    },
}  # fmt: skip
_DOCUMENT: dict[str, Any] = {
    "name": "tuned", "description": "", "base": "org/tiny", "base_revision": "r1",
    "method": "lora", "seed": 1,
    "data": {
        "format": "title_abstract",
        "files": [
            {"name": "train.jsonl.gz", "role": "training", "sha256": "ab" * 32, "num_rows": 26_827},
            {"name": "held.jsonl.gz", "role": "validation", "sha256": "", "num_rows": 1_000},
        ],
        "training": {"num_texts": 1, "num_examples": 26_000},
        "validation": {"num_texts": 1, "num_examples": 990},
        "num_duplicates": 12, "num_overlapping": 34, "is_packed": False,
    },
    "training": {
        "training": [[1, 3.2], [2, 3.1]], "validation": [[2, 3.0]], "num_steps": 1_500,
        "best_step": 1_450, "num_tokens": 6_000_000, "seconds": 5_400.5, "device": "cpu",
        "hardware": "2 CPU cores (x86_64, AVX2)",
    },
    "metrics": {
        "before": _SCORES,
        "after": _SCORES | {"perplexity": 12.1825, "bits_per_byte": 0.7213},
    },
    "fingerprint": "x",
}  # fmt: skip


def finetune_document(**changes: Any) -> dict[str, Any]:
    """One with some places changed: ``data__files=[]``; ``...`` takes a place away."""
    document: dict[str, Any] = json.loads(json.dumps(_DOCUMENT))  # unlike copy, nothing is shared
    for path, value in changes.items():
        *parts, last = path.split("__")
        place = document
        for part in parts:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return document


def finetune_json(**changes: Any) -> bytes:
    """The same in the form of the file."""
    return json.dumps(finetune_document(**changes)).encode()
