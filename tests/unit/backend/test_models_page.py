"""The models page: groups of models, and the labels of a fine-tuning."""

from __future__ import annotations

from typing import Any

import pytest

from tests.finetunings import finetune_document
from textmill.backend.pages.finetuning import MAX_FILES_SHOWN, describe_finetuning, main_figures
from textmill.backend.pages.model_groups import group_models


def model(name: str, base: str | None = None) -> Any:
    return {"name": name, "finetuning": {"base_model": base} if base else None}


def names(models: list[Any]) -> list[list[str]]:
    return [[one["name"] for one in group] for group in group_models(models)]


def test_models_without_relatives_share_a_group() -> None:
    assert names([model("a"), model("b"), model("c")]) == [["a", "b", "c"]]
    assert names([]) == []


def test_a_base_precedes_its_descendants() -> None:
    models = [model("x"), model("child", "base"), model("y"), model("base"), model("z", "child")]
    assert names(models) == [["x"], ["base", "child", "z"], ["y"]]


def test_two_families_are_two_groups() -> None:
    models = [model("a"), model("b"), model("a1", "a"), model("b1", "b"), model("c"), model("d")]
    assert names(models) == [["a", "a1"], ["b", "b1"], ["c", "d"]]


def test_a_base_that_is_not_served_leaves_its_child_alone() -> None:
    assert names([model("child", "gone"), model("a")]) == [["child", "a"]]


@pytest.mark.parametrize("others", [[], ["tail"]])
def test_a_cycle_of_bases_is_one_group(others: list[str]) -> None:
    models = [model("b", "a"), model("a", "b"), *(model(name, "b") for name in others)]
    assert names(models) == [["a", "b", *others]]
    assert names([model("a", "a")]) == [["a"]]


def scores(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = finetune_document()["metrics"]["before"] | changes
    return found


def test_the_page_shows_the_main_figures() -> None:
    titles = [figure.title for figure in main_figures(scores(), scores())]
    assert titles == ["Bits per byte", "Perplexity", "ROUGE-L", "Memorised 8-grams"]


def test_a_fine_tuning_is_described_in_labels() -> None:
    found = describe_finetuning(finetune_document() | {"base_model": None})
    assert (found["base"], found["is_base_served"]) == ("org/tiny", False)
    assert found["method"].startswith("LoRA")
    assert found["files"] == [
        "train.jsonl.gz (26,827 rows, training)", "held.jsonl.gz (1,000 rows, held out)",
    ]  # fmt: skip
    assert found["examples"] == "26,000 training examples, 990 held out"
    assert found["training"] == (
        "1,500 steps, 6 million tokens, 90 min on 2 CPU cores (x86_64, AVX2)"
    )
    assert describe_finetuning(finetune_document() | {"base_model": "tiny"})["base"] == "tiny"


def test_the_first_of_many_files_are_named() -> None:
    file = finetune_document()["data"]["files"][0]
    found = describe_finetuning(finetune_document(data__files=[file] * 20) | {"base_model": None})
    assert len(found["files"]) == MAX_FILES_SHOWN + 1
    assert found["files"][-1] == "12 more"
