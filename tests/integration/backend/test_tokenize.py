"""Tokens over HTTP: texts that join, texts that no tokenizer can process, invalid tokenizers."""

from __future__ import annotations

import json
import uuid

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tests.integration.backend.conftest import JOBS, RUNS, Site, bad_fields
from textmill.backend.request_models import MAX_TOKENIZE_CHARACTERS
from textmill.core.catalog.served_models import ServedModel, store_served_model
from textmill.tokenizing.safe_tokenizer import SafeTokenizer

TOKENIZE = "/api/v1/tokenize"
UNREADABLE = "a" * 40 + "b"


def byte_level(*patterns: str) -> str:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, own])
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())


def register(site: Site, tokenizer_json: str, context_length: int = 1000) -> None:
    card = ServedModel(
        "other",
        uuid.uuid4().hex[:12],
        "gpt2",
        "native",
        1,
        context_length,
        256,
        "float32",
        tokenizer_json,
    )
    store_served_model(site.services.store.engine, card)
    site.services.models._served_until = 0.0  # as two seconds later


def test_the_texts_of_tokens_join_to_the_text(shared_site: Site) -> None:
    register(shared_site, byte_level())
    text = "a 😀\n龘e\u0301 "
    asked = {"text": text, "model": "other"}
    answer = shared_site.client.post(TOKENIZE, json=asked).get_json()
    texts = [token["text"] for token in answer["tokens"]]
    assert "".join(texts) == text
    assert answer["count"] == len(texts) == len(text.encode())
    assert texts[:6] == ["a", " ", "", "", "", "😀"]


def test_a_text_that_a_tokenizer_cannot_process_is_422_and_harms_nothing(shared_site: Site) -> None:
    register(shared_site, byte_level("(a|aa|a?a)+$"))
    before = shared_site.count_rows()
    for _ in range(3):
        asked = {"text": UNREADABLE, "model": "other"}
        assert bad_fields(shared_site.client.post(TOKENIZE, json=asked)) == {"text"}
        job = {"prompt": UNREADABLE, "model": "other"}
        assert bad_fields(shared_site.client.post(JOBS, json=job)) == {"prompt"}
        run = {**job, "variants": [{}, {"strategy": "sampling"}]}
        assert bad_fields(shared_site.client.post(RUNS, json=run)) == {"prompt"}
    assert shared_site.count_rows() == before
    assert (
        shared_site.client.post(TOKENIZE, json={"text": "aab", "model": "other"}).get_json()[
            "count"
        ]
        == 3
    )
    assert shared_site.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        json.dumps(json.loads(byte_level()) | {"normalizer": {"type": "Precompiled",
                                                              "precompiled_charsmap": ""}}),
    ],
)  # fmt: skip
def test_an_invalid_tokenizer_leaves_its_model_without_counts(site: Site, broken: str) -> None:
    register(site, broken)
    asked = {"text": "a", "model": "other"}
    assert bad_fields(site.client.post(TOKENIZE, json=asked)) == {"model"}
    assert site.client.post(JOBS, json={"prompt": "a", "model": "other"}).status_code == 202
    assert site.client.post(TOKENIZE, json={"text": "a zebra"}).status_code == 200


def test_a_long_prompt_is_tokenized_at_most_once_per_request(
    shared_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(shared_site, byte_level())
    lengths: list[int] = []
    encode = SafeTokenizer.encode

    def noted(self: SafeTokenizer, text: str, *, adds_ends: bool = True) -> list[int]:
        lengths.append(len(text))
        return encode(self, text, adds_ends=adds_ends)

    monkeypatch.setattr(SafeTokenizer, "encode", noted)
    variants = [{"strategy": "sampling", "seed": n} for n in range(16)]
    run = {"prompt": "x" * 900, "model": "other", "variants": variants, "max_new_tokens": 1}
    assert shared_site.client.post(RUNS, json=run).status_code == 202
    assert lengths == [900]
    too_long = {**run, "prompt": "1" * 200_000}
    answer = shared_site.client.post(RUNS, json=too_long)
    assert bad_fields(answer) == {"prompt"}
    assert "at least 200000 tokens" in answer.text
    assert lengths == [900]


def test_tokenize_has_its_own_limit(shared_site: Site) -> None:
    longest = {"text": "a " * (MAX_TOKENIZE_CHARACTERS // 2)}
    assert shared_site.client.post(TOKENIZE, json=longest).status_code == 200
    longer = {"text": "a" * (MAX_TOKENIZE_CHARACTERS + 1)}
    assert bad_fields(shared_site.client.post(TOKENIZE, json=longer)) == {"text"}
    document = shared_site.client.get("/api/v1/openapi.json").get_json()
    schema = document["components"]["schemas"]["TokenizeRequest"]["properties"]["text"]
    assert schema["maxLength"] == MAX_TOKENIZE_CHARACTERS
    assert "65,536 characters" in schema["description"]
