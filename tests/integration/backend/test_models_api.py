"""Fine-tuned models in the API and on the models page, with curve and card."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from tests.finetunings import CARD, HOSTILE_CURVE, HOSTILE_MARKDOWN, finetune_json
from tests.integration.backend.conftest import Site
from textmill.backend.access.headers import page_policy
from textmill.backend.pages.models import CURVE_POLICY
from textmill.backend.response_models import ModelView
from textmill.core.catalog.finetunings import parse_finetuning
from textmill.core.catalog.served_models import ServedModel, store_served_model

HTML = {"Accept": "text/html"}
TUNED = ServedModel(
    "other", "r2", "llama", "native", 1_000, 128, 100, "float32", None,
    parse_finetuning(finetune_json()), HOSTILE_CURVE, CARD,
)  # fmt: skip


@pytest.fixture
def tuned(site: Site) -> Site:
    """``other``, fine-tuned from ``tiny``, whose card the site has already."""
    store_served_model(site.services.store.engine, TUNED)
    return site


def models_of(site: Site) -> dict[str, dict[str, object]]:
    answer = site.client.get("/api/v1/models")
    assert answer.status_code == 200
    views = TypeAdapter(ModelView)
    for document in answer.get_json():
        parsed = views.validate_python(document)
        assert views.dump_python(parsed, mode="json") == document
    return {document["name"]: document for document in answer.get_json()}


def test_the_api_describes_a_fine_tuning(tuned: Site) -> None:
    models = models_of(tuned)
    found = models["other"]["finetuning"]
    assert isinstance(found, dict)
    assert (found["base"], found["base_model"], found["method"]) == ("org/tiny", "tiny", "lora")
    assert found["metrics"]["before"]["bits_per_byte"] == 0.8656
    assert found["metrics"]["after"]["texts"]["rouge"]["rouge_l"] == 0.2
    assert models["other"]["links"] == {
        "curve": "/models/other/loss.svg", "card": "/models/other/card",
    }  # fmt: skip
    assert models["tiny"]["finetuning"] is None
    assert models["tiny"]["links"] == {"curve": None, "card": None}


def test_the_instruction_set_and_the_compiler_are_shown(tuned: Site) -> None:
    card = replace(TUNED, instruction_set="avx2", kernels_note="g++ (Example 13) <13.2>")
    store_served_model(tuned.services.store.engine, card)
    found = models_of(tuned)["other"]
    assert (found["instruction_set"], found["kernels_note"]) == ("avx2", card.kernels_note)
    page = tuned.client.get("/models").text
    assert "<dt>Kernels</dt><dd>avx2, compiled by g++ (Example 13) &lt;13.2&gt;</dd>" in page


def test_the_reason_why_pytorch_computes_alone_is_shown(tuned: Site) -> None:
    reason = "no C++ compiler was found: install g++ or clang++, or run pip install ziglang"
    store_served_model(tuned.services.store.engine, replace(TUNED, kernels_note=reason))
    found = models_of(tuned)["other"]
    assert (found["instruction_set"], found["kernels_note"]) == (None, reason)
    assert f"<dt>Kernels</dt><dd>none: {reason}</dd>" in tuned.client.get("/models").text


def test_nothing_is_shown_of_the_kernels_of_a_worker_of_an_earlier_version(tuned: Site) -> None:
    assert models_of(tuned)["other"]["kernels_note"] is None
    assert "<dt>Kernels</dt>" not in tuned.client.get("/models").text


def test_the_openapi_document_describes_it(site: Site) -> None:
    schemas = site.client.get("/api/v1/openapi.json").get_json()["components"]["schemas"]
    assert {"finetuning", "links"} <= set(schemas["ModelView"]["required"])
    assert {"base", "base_model", "metrics"} <= set(schemas["FinetuningView"]["required"])


def test_the_page_shows_a_base_and_its_descendant_in_one_group(tuned: Site) -> None:
    page = tuned.client.get("/models").text
    family = re.search(r'<section class="model-family".*?</section>', page, re.S)
    assert family is not None
    assert re.findall(r'<h2 class="break">(\w+)</h2>', family[0]) == ["tiny", "other"]
    for words in (
        "<dt>Fine-tuned from</dt><dd>tiny</dd>",
        "LoRA",
        "train.jsonl.gz (26,827 rows, training)",
        "26,000 training examples, 990 held out",
        '<td class="number">0.8656</td><td class="number">0.7213</td>',
        '<td class="number">−0.1443</td>',
        'src="/models/other/loss.svg"',
        'href="/models/other/card"',
    ):
        assert words in family[0]


def test_models_without_a_fine_tuning_have_no_origin(site: Site) -> None:
    page = site.client.get("/models").text
    assert "model-family" not in page
    assert "Fine-tuned from" not in page
    assert "loss.svg" not in page
    assert re.findall(r'<h2 class="break">(\w+)</h2>', page) == ["tiny", "other"]
    assert "The size is unknown until a worker loads this model" in page


def test_a_curve_can_neither_run_nor_load_anything(tuned: Site) -> None:
    answer = tuned.client.get("/models/other/loss.svg")
    assert answer.status_code == 200
    assert answer.text == HOSTILE_CURVE
    assert answer.content_type == "image/svg+xml; charset=utf-8"
    assert answer.headers["Content-Security-Policy"] == CURVE_POLICY
    assert {"default-src 'none'", "sandbox"} <= set(CURVE_POLICY.split("; "))
    assert "script-src" not in CURVE_POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    again = tuned.client.get(
        "/models/other/loss.svg", headers={"If-None-Match": answer.headers["ETag"]}
    )
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["Content-Security-Policy"] == CURVE_POLICY


def test_a_card_is_a_page_under_the_policy_of_all_pages(tuned: Site) -> None:
    answer = tuned.client.get("/models/other/card")
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"] == page_policy()
    assert "<dt>Base</dt><dd>org/base</dd>" in answer.text
    assert "<p>Writes abstracts.</p>" in answer.text
    assert '<img alt="Loss" src="/models/other/loss.svg"' in answer.text


def test_a_hostile_card_is_shown_as_text(tuned: Site) -> None:
    engine = tuned.services.store.engine
    matter = '---\nlicense: "<script>alert(1)</script>"\n---\n'
    store_served_model(engine, replace(TUNED, card_markdown=matter + HOSTILE_MARKDOWN))
    page = tuned.client.get("/models/other/card").text
    main = page[page.index("<main") :]
    assert "<script" not in main[: main.index("</main>")]
    for tag in re.findall("<[^>]*>", main):
        assert not re.search(r"\sstyle=|\son[a-z]+=|javascript:|evil", tag)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize(
    "path",
    [
        "/models/tiny/loss.svg",
        "/models/tiny/card",
        "/models/gone/loss.svg",
        "/models/gone/card",
        "/models/%00/card",
        "/models/..%2Fx/card",
        "/models/other/README.md",
        "/models/other",
    ],
)
def test_a_missing_curve_or_card_is_404(tuned: Site, path: str) -> None:
    answer = tuned.client.get(path, headers=HTML)
    assert answer.status_code == 404
    assert answer.mimetype == "text/html"


def test_the_card_of_a_model_that_is_no_longer_served_is_404(tuned: Site) -> None:
    store_served_model(tuned.services.store.engine, replace(TUNED, name="past"))
    assert tuned.client.get("/models/past/card", headers=HTML).status_code == 404
