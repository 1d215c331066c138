"""Tokenizers of any tokenizer.json: faults are errors, time is bounded, pieces are the text."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from textmill.backend.services.tokenizing import TokenizerCache
from textmill.tokenizing import child as tokenizer_child
from textmill.tokenizing import process as tokenizer_process
from textmill.tokenizing.pretokenizers import LETTERS, LINEAR_PATTERNS, PRE_TOKENIZATIONS
from textmill.tokenizing.safe_tokenizer import SafeTokenizer, TokenizerBusy, TokenizerFault

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=150)
PANICKING = r"(a|aa|a?a)+$"
ENDLESS = r"(x+x+)+y"  # its time doubles with each letter, until the engine gives up, at each place


def byte_level(*patterns: str, merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    """A vocabulary of bytes, cut by patterns of anybody's."""
    merges = merges or [("Ġ", "t"), ("Ġt", "h"), ("ð", "Ł")]
    words = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(left + right for left, right in merges),
    ]
    tokenizer = Tokenizer(models.BPE({w: n for n, w in enumerate(dict.fromkeys(words))}, merges))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, letters])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece() -> Tokenizer:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<unk>", "<s>", *names, "▁", "t", "h", "e", "▁t", "th"]
    tokenizer = Tokenizer(
        models.BPE(
            {word: place for place, word in enumerate(words)},
            [("▁", "t"), ("t", "h")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def word_piece() -> Tokenizer:
    """As in BERT: lower case, without accents and spaces, with tokens at both ends."""
    words = ["[UNK]", "[CLS]", "[SEP]", "the", "##re", "cafe", "!", "t", "##h"]
    tokenizer = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def composing() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return tokenizer


def trimming() -> Tokenizer:
    """Offsets without the space before a word, as in GPT-2's own file."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte level, trimmed": trimming,
    "composing": composing,
    "sentencepiece": sentencepiece,
    "word piece": word_piece,
    "own process": functools.partial(byte_level, r"[a-h]+|\s"),
}


@functools.cache
def safe(kind: str) -> SafeTokenizer:
    return SafeTokenizer(KINDS[kind]().to_str())


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(text=st.text("th eT😀é́Å龘\n!  caf", max_size=20))
@example("😀")
@example("t <s> h[SEP]")
@example(" 😀 the")
@example("  the  ")
@example("e\u0301e\u0301")
def test_the_pieces_of_a_text_are_the_text(kind: str, text: str) -> None:
    spans = safe(kind).spans(text)
    pieces = spans.pieces(text)
    assert len(pieces) == len(spans.ids)
    assert spans.ids == safe(kind).encode(text)
    if not all(spans.is_added):  # otherwise no token represents any of it
        assert "".join(pieces) == text


def test_a_character_of_several_tokens_is_with_the_last() -> None:
    spans = safe("byte level").spans("a 😀b")
    pieces = spans.pieces("a 😀b")
    assert pieces[0] == "a"
    assert pieces[-1] == "b"
    assert [piece for piece in pieces if piece] == ["a", " ", "😀", "b"]
    spans = safe("sentencepiece").spans("龘t")
    assert spans.pieces("龘t") == ["", "", "", "", "龘", "t"]  # <s>, the mark, and three bytes


def test_an_alphabet_and_its_bound_belong_together() -> None:
    """No text has fewer tokens than the bound says."""
    for kind in ("byte level", "byte level, trimmed", "sentencepiece"):
        for text in ("the the", " th" * 50, "😀" * 7, "é", "龘 ", " " * 40, "a"):
            least = safe(kind).least_tokens(text)
            assert 0 < least <= len(safe(kind).encode(text))
    for kind in ("composing", "word piece", "own process"):  # which may drop any part of a text
        assert safe(kind).least_tokens("a" * 1000) == 0


def test_bytes_that_a_vocabulary_lacks_are_not_counted() -> None:
    """SmolLM2's has no token for some control characters and leaves them out."""
    document = json.loads(byte_level().to_str())
    lacking = document["model"]["vocab"]
    letter = next(letter for letter, byte in LETTERS.items() if byte == 4)
    del lacking[letter]
    tokenizer = SafeTokenizer(json.dumps(document))
    assert tokenizer.encode("\x04" * 500) == []
    assert tokenizer.least_tokens("\x04" * 500) == 0
    assert tokenizer.least_tokens("\x04" * 500 + "a" * 30) > 0
    assert tokenizer.spans("\x04a\x04").pieces("\x04a\x04") == ["\x04a\x04"]


def test_a_token_that_takes_spaces_with_it_leaves_no_bound() -> None:
    tokenizer = byte_level()
    document = json.loads(tokenizer.to_str())
    token = {"id": 0, "content": "!", "single_word": False, "lstrip": True, "rstrip": False,
             "normalized": False, "special": False}  # fmt: skip
    assert SafeTokenizer(json.dumps(document)).least_tokens("a" * 9) > 0
    document["added_tokens"] = [token]
    assert SafeTokenizer(json.dumps(document)).least_tokens(" " * 1000 + "!") == 0


def test_a_panic_is_an_error_of_that_text_alone() -> None:
    tokenizer = SafeTokenizer(byte_level(PANICKING).to_str())
    assert not tokenizer.is_known
    for _ in range(2):
        with pytest.raises(TokenizerFault, match=r"cannot read this text.*retry-limit"):
            tokenizer.encode("a" * 40 + "b")
        with pytest.raises(TokenizerFault, match="cannot read this text"):
            tokenizer.spans("a" * 40 + "b")
        assert tokenizer.decode(tokenizer.encode("aab"), skip_special_tokens=True) == "aab"
    tokenizer.close()


def test_an_error_that_is_no_panic_is_one_too() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))  # which is not there
    safe_one = SafeTokenizer(tokenizer.to_str())
    assert safe_one.is_known
    with pytest.raises(TokenizerFault, match="cannot read this text"):
        safe_one.encode("b")
    assert safe_one.encode("a") == [0]


def test_a_text_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_child, "ENCODE_SECONDS", 0.5)
    # Just short of where the engine gives up, again and again.
    tokenizer = SafeTokenizer(byte_level(ENDLESS).to_str())
    text = ("x" * 20 + " ") * 2000
    started = time.monotonic()
    with pytest.raises(TokenizerFault, match=r"longer than 0\.5 s"):
        tokenizer.encode(text)
    assert time.monotonic() - started < 5
    monkeypatch.setattr(tokenizer_child, "ENCODE_SECONDS", 20.0)
    assert tokenizer.encode("xxy") == SafeTokenizer(byte_level().to_str()).encode("xxy")
    tokenizer.close()


def test_a_second_text_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SafeTokenizer(byte_level(PANICKING).to_str())
    assert tokenizer._process is not None
    monkeypatch.setattr(tokenizer._process._process, "_seconds", 0.1)
    with tokenizer._process._process._lock, pytest.raises(TokenizerBusy) as caught:
        tokenizer.encode("a")
    assert (caught.value.http_status, caught.value.retry_after_seconds) == (503, 5)
    tokenizer.close()


def test_its_process_ends_with_it() -> None:
    tokenizer = SafeTokenizer(byte_level(PANICKING).to_str())
    assert tokenizer._process is not None
    assert tokenizer._process._process._child is not None
    pid = tokenizer._process._process._child.pid
    tokenizer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert tokenizer.encode("a") == SafeTokenizer(byte_level().to_str()).encode("a")  # a new one
    tokenizer.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"model": null}',
        "[" * 100_000,
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
    ],
)
def test_what_is_no_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(TokenizerFault):
        SafeTokenizer(text)


def changed(**parts: Any) -> str:
    document: dict[str, Any] = json.loads(byte_level().to_str())
    return json.dumps(document | parts)


TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
HOSTILE: dict[str, dict[str, Any]] = {
    "a charsmap that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a token that is not there": {
        "post_processor": {**TEMPLATE, "single": [{"SpecialToken": {"id": "x", "type_id": 0}}]}
    },
    "a text that is not there": {
        "post_processor": {**TEMPLATE, "single": [{"Sequence": {"id": "B", "type_id": 0}}]}
    },
    "more and more": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 999}]
            * 4,
        }
    },
    "a prefix longer than a word": {
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]],
            "continuing_subword_prefix": "####",
        },
        "pre_tokenizer": None,
    },
}


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_a_part_that_crashes_the_library_harms_nobody(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_child, "ENCODE_SECONDS", 2.0)
    with pytest.raises(TokenizerFault):
        SafeTokenizer(changed(**parts)).encode("abab")


def test_more_padding_than_there_is_memory_is_not_asked_for() -> None:
    padding = {
        "strategy": {"Fixed": 1 << 40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    tokenizer = SafeTokenizer(changed(padding=padding))
    assert len(tokenizer.encode("abc")) == 3


@pytest.mark.parametrize("depth", [100, 4_000, 200_000])
def test_a_pattern_that_is_deep_or_broken_harms_nobody(depth: int) -> None:
    document: dict[str, Any] = json.loads(byte_level("b").to_str())
    cuts = document["pre_tokenizer"]["pretokenizers"]
    cuts[0]["pattern"]["Regex"] = "(" * depth + "a" + ")" * depth
    try:
        tokenizer = SafeTokenizer(json.dumps(document))
    except TokenizerFault:
        pass
    else:
        assert len(tokenizer.encode("aab")) == 3
        tokenizer.close()
    cuts[0]["pattern"]["Regex"] = "(" * depth
    with pytest.raises(TokenizerFault):
        SafeTokenizer(json.dumps(document))


def test_a_pattern_that_calls_itself_harms_nobody() -> None:
    tokenizer = SafeTokenizer(byte_level(r"(?<p>a\g<p>?b)").to_str())
    text = "a" * 50_000 + "b" * 50_000
    with contextlib.suppress(TokenizerFault):  # where the library has not the memory
        assert len(tokenizer.encode(text)) == 100_000
    assert len(tokenizer.encode("aabb")) == 4
    tokenizer.close()


def test_other_threads_run_while_a_long_text_is_cut() -> None:
    tokenizer = safe("byte level")
    text = "12345 67890 " * 20_000
    ticks: list[float] = []
    is_done = threading.Event()

    def tick() -> None:
        while not is_done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.perf_counter()
    count = len(tokenizer.encode(text))
    seconds = time.perf_counter() - started
    is_done.set()
    thread.join()
    assert count > 200_000
    # Held for the whole call, the lock would have let no tick through.
    assert len([at for at in ticks if started < at < started + seconds]) >= 3


@pytest.mark.parametrize("run", ["1", "a", "aB", " ", "\n", "é", "龘a", "'s", "!", "IMGIMGA"])
def test_known_patterns_take_time_by_the_length_alone(run: str) -> None:
    """At 20,000 characters the square of the length would already take minutes."""
    text = (run * 20_000)[:20_000]
    for pattern in sorted(LINEAR_PATTERNS):
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        started = time.process_time()
        cut.pre_tokenize_str(text)
        assert time.process_time() - started < 2.0, pattern


def test_patterns_that_look_ahead_over_all_digits_run_apart() -> None:
    for name in ("superbpe", "tiny_aya", "afmoe"):
        assert not set(PRE_TOKENIZATIONS[name].patterns) <= LINEAR_PATTERNS
    for name in ("smollm", "gpt-2", "llama-bpe", "qwen2", "gpt-4o", "deepseek-v3"):
        assert set(PRE_TOKENIZATIONS[name].patterns) <= LINEAR_PATTERNS


@pytest.fixture
def cache() -> TokenizerCache:
    cache = TokenizerCache()
    cache.put("good", "r1", byte_level().to_str())
    return cache


def test_a_tokenizer_that_cannot_be_loaded_is_tried_once(cache: TokenizerCache) -> None:
    cache.put("bad", "r1", "{}")
    assert cache.has("bad", "r1")
    assert not cache.is_usable("bad")
    assert cache.is_usable("good")
    with pytest.raises(TokenizerFault):
        cache.tokens("bad", "a")
    cache.put("bad", "r2", byte_level().to_str())
    assert cache.is_usable("bad")


def test_a_text_is_counted_once_a_request(
    cache: TokenizerCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encode = SafeTokenizer.encode

    def noted(self: SafeTokenizer, text: str, *, adds_ends: bool = True) -> list[int]:
        asked.append(text)
        if text == "bad":
            raise TokenizerFault("no")
        return encode(self, text, adds_ends=adds_ends)

    monkeypatch.setattr(SafeTokenizer, "encode", noted)
    counter = cache.counter("good")
    assert [counter("ab"), counter("ab"), counter("abc")] == [2, 2, 3]
    for _ in range(2):
        with pytest.raises(TokenizerFault):
            counter("bad")
    assert asked == ["ab", "abc", "bad"]


def test_the_file_of_the_process_needs_nothing_of_the_product(tmp_path: Path) -> None:
    source = Path(tokenizer_process.__file__).read_text(encoding="utf-8")
    assert "from core" not in source
    assert "import core" not in source
