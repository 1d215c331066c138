"""The table of n-grams: what it answers, and what it refuses."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from textmill.engine.models.loading import _ngrams
from textmill.engine.speculation import ngram_builder
from textmill.engine.speculation.ngram_builder import build
from textmill.engine.speculation.ngram_table import (
    HEADER,
    MARK,
    MAX_TABLE_BYTES,
    NGRAMS_FILE,
    BadTable,
    parse,
)

VOCABULARY_SIZE = 100
TEXTS = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 4, 5], [9, 3, 7], [9, 3, 7], [9, 3, 7]]


def content() -> bytes:
    return build(TEXTS, VOCABULARY_SIZE).dump()


def with_checksum(changed: bytes) -> bytes:
    mark, *sizes, _ = HEADER.unpack_from(changed)
    body = changed[HEADER.size :]
    return HEADER.pack(mark, *sizes, zlib.crc32(body)) + body


def test_the_longest_known_context_answers_and_the_likeliest_token_is_first() -> None:
    table = parse(content(), VOCABULARY_SIZE)
    assert [token for token, _ in table.successors([1, 2, 3])] == [4]
    assert [token for token, _ in table.successors([8, 8, 3])] == [4, 7]
    assert [token for token, _ in table.successors([9, 3])] == [7]
    assert [token for token, _ in table.successors([1, 2, 3, 4])] == [5, 6]
    assert table.successors([50]) == []
    assert table.successors([]) == []


def test_probabilities_are_discounted_shares() -> None:
    (_, first), (_, second) = parse(content(), VOCABULARY_SIZE).successors([2, 3, 4])
    assert first == pytest.approx(1.5 / 3.5, abs=1 / 255)
    assert second == pytest.approx(0.5 / 3.5, abs=1 / 255)


def test_no_n_gram_spans_two_texts() -> None:
    table = build([[1, 2], [3, 4]] * 5, VOCABULARY_SIZE)
    assert table.successors([2]) == []
    assert [token for token, _ in table.successors([3])] == [4]


def test_the_most_frequent_contexts_are_kept() -> None:
    table = build([[1, 2]] * 5 + [[3, 4]] * 9, VOCABULARY_SIZE, max_entries=1)
    assert len(table) == 1
    assert [token for token, _ in table.successors([3])] == [4]


def test_texts_above_the_limit_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_builder, "MAX_TOKENS", 6)
    table = build([[1, 2]] * 3 + [[3, 4]] * 9, VOCABULARY_SIZE)
    assert table.successors([3]) == []
    assert table.successors([1]) != []


@pytest.mark.parametrize("texts", [[], [[]], [[1]], [[1, 2]]])
def test_texts_without_repetition_give_an_empty_table(texts: list[list[int]]) -> None:
    table = parse(build(texts, VOCABULARY_SIZE).dump(), VOCABULARY_SIZE)
    assert len(table) == 0
    assert table.successors([1]) == []


BAD: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "another file": lambda _: b"PK\x03\x04" * 100,
    "mark alone": lambda _: MARK,
    "truncated": lambda good: good[:-1],
    "too long": lambda good: good + b"\0",
    "a flipped bit": lambda good: good[:-5] + bytes([good[-5] ^ 1]) + good[-4:],
    "a huge count": lambda good: good[:20] + b"\xff\xff\xff\xff" + good[24:],
    "order 0": lambda good: good[:12] + b"\0\0\0\0" + good[16:],
    "order 99": lambda good: good[:12] + b"\x63\0\0\0" + good[16:],
    "another width": lambda good: good[:16] + b"\x03\0\0\0" + good[20:],
    "unsorted": lambda good: with_checksum(
        good[: HEADER.size] + b"\xff" * 4 + good[HEADER.size + 4 :]
    ),
    "another vocabulary": lambda _: build(TEXTS, VOCABULARY_SIZE + 1).dump(),
    "unknown tokens": lambda _: build([[1, 99], [1, 100]] * 4, VOCABULARY_SIZE).dump(),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(case: str) -> None:
    with pytest.raises(BadTable):
        parse(BAD[case](content()), VOCABULARY_SIZE)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_omitted_with_one_sentence(case: str, tmp_path: Path) -> None:
    (tmp_path / NGRAMS_FILE).write_bytes(BAD[case](content()))
    sentences: list[str] = []
    assert _ngrams(tmp_path, VOCABULARY_SIZE, sentences.append) is None
    assert len(sentences) == 1
    assert "is omitted, because" in sentences[0]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / NGRAMS_FILE).open("wb") as file:
        file.truncate(1 << 40)
    sentences: list[str] = []
    assert _ngrams(tmp_path, VOCABULARY_SIZE, sentences.append) is None
    assert f"more than {MAX_TABLE_BYTES:,} bytes" in sentences[0]


def test_a_folder_without_a_table_is_no_problem(tmp_path: Path) -> None:
    sentences: list[str] = []
    assert _ngrams(tmp_path, VOCABULARY_SIZE, sentences.append) is None
    assert sentences == []


def test_a_good_file_is_read(tmp_path: Path) -> None:
    (tmp_path / NGRAMS_FILE).write_bytes(content())
    table = _ngrams(tmp_path, VOCABULARY_SIZE, pytest.fail)
    assert table is not None
    assert table.dump() == content()
