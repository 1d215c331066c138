"""Reproduction: measures a finished folder again and compares with the figures that it records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from textmill.finetune.errors import ConfigError
from textmill.finetune.export import FINETUNE_FILE
from textmill.finetune.measurement import measure_finished
from textmill.finetune.reporting import figure_table, read_report
from textmill.finetune.run import FinetuningRun

# Tolerance in bits per byte: kernels of other processors add in another order.
BITS_PER_BYTE_TOLERANCE = 0.002
# Tolerance of a share: greedy completions diverge where two tokens are almost equally likely.
SHARE_TOLERANCE = 0.02

_Comparison = tuple[str, float, float, float]  # name, recorded value, measured value, tolerance


def check_reproduction(run: FinetuningRun, folder: Path) -> Iterator[str]:
    """Measure a finished folder again and check that the figures agree.

    Raises:
        ConfigError: a figure differs from the recorded one by more than its tolerance.
    """
    recorded = read_report(folder)["metrics"]
    measured = {name: m.as_json() for name, m in measure_finished(run, folder).items()}
    yield from figure_table(measured["before"], measured["after"])
    names: dict[str, None] = {}  # in order, without duplicates
    for stage in measured:
        for comparison in _comparisons(recorded, measured, stage, folder):
            _check(comparison, stage, folder)
            names[comparison[0]] = None
    yield f"The figures agree with those recorded in {folder}: {', '.join(names)}."


def _comparisons(
    recorded: Mapping[str, Any], measured: Mapping[str, Any], stage: str, folder: Path
) -> list[_Comparison]:
    try:
        old, new = recorded[stage], measured[stage]
        if old["num_examples"] != new["num_examples"]:
            raise ConfigError(
                f"{folder} was measured on {old['num_examples']} examples, this time"
                f" {new['num_examples']} were used: the data or evaluation.examples differ."
            )
        comparisons = [
            ("bits per byte", old["bits_per_byte"], new["bits_per_byte"], BITS_PER_BYTE_TOLERANCE)
        ]
        if old["texts"] and new["texts"] and old["texts"]["num_texts"] == new["texts"]["num_texts"]:
            comparisons += _completion_comparisons(old["texts"], new["texts"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder / FINETUNE_FILE} lacks the figure {error}.") from error
    return comparisons


def _completion_comparisons(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[_Comparison]:
    return [
        ("ROUGE-1", old["rouge"]["rouge1"], new["rouge"]["rouge1"], SHARE_TOLERANCE),
        ("ROUGE-L", old["rouge"]["rouge_l"], new["rouge"]["rouge_l"], SHARE_TOLERANCE),
        ("memorisation", old["memorised"], new["memorised"], SHARE_TOLERANCE),
    ]


def _check(comparison: _Comparison, stage: str, folder: Path) -> None:
    name, recorded, measured, tolerance = comparison
    if not abs(measured - recorded) <= tolerance:  # also true for NaN
        raise ConfigError(
            f"{folder} records {recorded:.4f} {name} {stage} training, but {measured:.4f} was"
            " measured: the data, the base, the weights or the evaluation options differ."
        )
