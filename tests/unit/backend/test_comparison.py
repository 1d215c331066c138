"""Columns of a run whose variants differ by model."""

from __future__ import annotations

from typing import Any

from textmill.backend.pages.comparison import columns_of

TITLES = {"greedy": "Greedy", "top_k": "Top-k"}


def job(number: int, strategy: str, model: str, text: str = "a text") -> Any:
    return {
        "id": f"j{number}",
        "variant_index": number,
        "strategy": strategy,
        "model": model,
        "parameters": {"seed": 1},
        "prompt": "p",
        "text": text,
        "status": "succeeded",
    }


def test_with_one_model_a_column_is_titled_by_its_strategy() -> None:
    columns = columns_of(
        [job(0, "greedy", "tiny"), job(1, "top_k", "tiny")], TITLES, by_variant=True
    )
    assert [(c.title, c.model) for c in columns] == [("Greedy", "tiny"), ("Top-k", "tiny")]


def test_with_several_models_a_column_title_contains_the_model() -> None:
    jobs = [job(0, "greedy", "tiny"), job(1, "greedy", "faq", "another"), job(2, "top_k", "tiny")]
    for by_variant in (True, False):
        columns = columns_of(jobs, TITLES, by_variant=by_variant)
        assert [c.title for c in columns] == ["Greedy, tiny", "Greedy, faq", "Top-k, tiny"]
        assert [c.model for c in columns] == [None] * 3  # it is said already
        assert (
            columns[1].samples[0].divergence.note == "differs from Greedy, tiny from the first word"
        )
