"""The bases of fine-tuned models, and how models are presented."""

from __future__ import annotations

from typing import Any

from tests.finetunings import finetune_json
from textmill.backend.model_views import base_names, model_view
from textmill.core.catalog.finetunings import parse_finetuning
from textmill.core.catalog.models_file import ModelSpec
from textmill.core.catalog.served_models import ServedModel


def spec(name: str, source: str = "org/tiny", adapter: str | None = None) -> ModelSpec:
    return ModelSpec(name, source, adapter, "auto", False, "")


def card(name: str, revision: str, **changes: Any) -> ServedModel:
    finetuning = parse_finetuning(finetune_json(**changes)) if changes else None
    return ServedModel(name, revision, "llama", "native", 1, 8, 8, "float32", None, finetuning)


def test_a_base_is_found_by_its_weights() -> None:
    specs = [spec("tuned", adapter="a"), spec("elsewhere", "/copy"), spec("base")]
    cards = {
        "tuned": card("tuned", "r9", base_revision="r1"),
        "elsewhere": card("elsewhere", "r2"),
        "base": card("base", "r1"),
    }
    assert base_names(specs, cards) == {"tuned": "base"}


def test_a_base_that_no_worker_has_loaded_is_found_by_its_source() -> None:
    cards = {"tuned": card("tuned", "r9", base="org/tiny")}
    assert base_names([spec("tuned", adapter="a"), spec("base")], cards) == {"tuned": "base"}
    assert base_names([spec("tuned", adapter="a"), spec("base", "org/other")], cards) == {}


def test_neither_another_adapter_on_the_same_source_nor_the_model_itself_is_a_base() -> None:
    cards = {"tuned": card("tuned", "r1", base_revision="r1")}
    assert base_names([spec("tuned", adapter="a"), spec("sister", adapter="b")], cards) == {}


def test_models_without_a_fine_tuning_have_no_base() -> None:
    specs = [spec("one"), spec("two")]
    assert base_names(specs, {"one": card("one", "r1")}) == {}
    assert base_names(specs, {}) == {}


def test_a_fine_tuned_model_is_presented_with_its_base() -> None:
    found = card("tuned", "r9", base_revision="r1")
    document = model_view(spec("tuned", adapter="a"), found, 1, is_default=False, base_model="base")
    assert document["finetuning"] is not None
    assert document["finetuning"]["base_model"] == "base"
    assert document["finetuning"]["metrics"]["after"]["bits_per_byte"] == 0.7213
    assert document["links"] == {"curve": None, "card": None}


def test_a_model_that_is_not_loaded_has_no_fine_tuning_and_no_links() -> None:
    document = model_view(spec("base"), None, 0, is_default=True)
    assert document["finetuning"] is None
    assert document["links"] == {"curve": None, "card": None}
