"""Decoding token by token gives the same text as decoding everything at once."""

from __future__ import annotations

import codecs
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.tiny_models import END_OF_TEXT, tiny_model
from textmill.engine.models.tokenizer import IncrementalDetokenizer, TextTokenizer

NUM_BYTE_LEVEL = 400  # tiny_models.build_tokenizer's size; the first is the end of text
WORDS = ["<unk>", "</s>", "▁", "▁the", "▁a", "n", "s", ",", "▁é", "你", "\ufffd"]
PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=300)
TEXTS = st.text(min_size=1, max_size=12)


@functools.cache
def byte_level() -> TextTokenizer:
    """Like GPT-2, GPT-Neo and SmolLM2: a character may be several tokens."""
    return TextTokenizer(tiny_model("gpt2") / "tokenizer.json")


@functools.cache
def word_pieces() -> TextTokenizer:
    """Like Llama 2: a word includes its space, and the text's first space is dropped."""
    tokenizer = Tokenizer(
        models.Unigram([(word, -float(at)) for at, word in enumerate(WORDS)], unk_id=0)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return saved(tokenizer)


def shown(tokenizer: TextTokenizer, prompt_ids: list[int], new_ids: list[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
    return [*(detokenizer.push(token) for token in new_ids), detokenizer.flush()]


def continuation(tokenizer: TextTokenizer, prompt_ids: list[int], new_ids: list[int]) -> str:
    """By the library, but for half a character at the end."""
    library = Tokenizer.from_str(tokenizer.json)
    before = library.decode(prompt_ids, skip_special_tokens=True)
    everything = library.decode(prompt_ids + new_ids, skip_special_tokens=True)
    assert everything.startswith(before)
    whole = b"".join(tokenizer.bytes_of(token) or b"" for token in prompt_ids + new_ids)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(whole)
    if tokenizer.is_bytes and decoder.getstate()[0]:
        everything = everything.removesuffix("\ufffd")
    return everything[len(before) :]


BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]
BYTE_WORDS = ["<unk>", "<s>", "</s>", *BYTE_NAMES, "▁", "▁a", "b", "é", "a"]


@functools.cache
def byte_fallback() -> TextTokenizer:
    """Like Llama 2 and TinyLlama: bytes by name for characters without an entry."""
    ids = {word: place for place, word in enumerate(BYTE_WORDS)}
    model = models.BPE(
        ids, [("▁", "a")] if "a" in ids else [], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return saved(tokenizer)


@functools.cache
def byte_fallback_of_no_known_kind() -> TextTokenizer:
    """The same words, joined by a decoder that looks at their places."""
    tokenizer = Tokenizer.from_str(byte_fallback().json)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    )
    return saved(tokenizer)


def saved(tokenizer: Tokenizer) -> TextTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return TextTokenizer(path)


@PROPERTY
@given(TEXTS, st.lists(st.integers(0, NUM_BYTE_LEVEL - 1), max_size=30))
@example("Größe 你好", [0, 0, 0])
@example("\ufffd", [5, 0, 5])
def test_any_tokens_of_a_byte_level_tokenizer_are_shown_as_decoded_at_once(
    prompt: str, new_ids: list[int]
) -> None:
    tokenizer = byte_level()
    prompt_ids = tokenizer.encode(prompt)
    assert "".join(shown(tokenizer, prompt_ids, new_ids)) == continuation(
        tokenizer, prompt_ids, new_ids
    )


@PROPERTY
@given(
    st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=12),
    st.lists(st.integers(0, len(WORDS) - 1), max_size=20),
)
@example([1] * 12, [3, 4])
@example([4, *[1] * 12], [3, 4])
@example([2], [2, 2, 3])
def test_any_tokens_that_bring_their_space_are_shown_as_decoded_at_once(
    prompt_ids: list[int], new_ids: list[int]
) -> None:
    tokenizer = word_pieces()
    assert "".join(shown(tokenizer, prompt_ids, new_ids)) == continuation(
        tokenizer, prompt_ids, new_ids
    )


@PROPERTY
@given(TEXTS, st.text(max_size=12))
def test_a_text_comes_back_and_no_half_character_is_ever_shown(prompt: str, text: str) -> None:
    tokenizer = byte_level()
    prompt_ids, new_ids = tokenizer.encode(prompt), tokenizer.encode(text)
    pieces = shown(tokenizer, prompt_ids, new_ids)
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("🦊")
    waits = [""] * (len(ids) - 1)
    assert waits  # else this tries nothing
    assert shown(tokenizer, tokenizer.encode("A fox: "), ids) == [*waits, "🦊", ""]


def test_a_text_that_ends_within_a_character_ends_before_it() -> None:
    tokenizer = byte_level()
    half = tokenizer.encode("🦊")[:2]
    assert shown(tokenizer, tokenizer.encode("A"), half) == ["", "", ""]
    assert tokenizer.decode(tokenizer.encode("A") + half) == "A"
    after = tokenizer.encode("b")
    assert shown(tokenizer, tokenizer.encode("A"), half + after) == ["", "", "\ufffdb", ""]


def test_special_tokens_are_shown_alone_but_are_no_text() -> None:
    tokenizer = byte_level()
    assert tokenizer.text_of(0) == END_OF_TEXT
    assert tokenizer.decode([0]) == ""
    assert tokenizer.encode("") == []


def test_a_file_that_truncates_and_pads_is_told_not_to(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(byte_level().json)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    text = "The quick brown fox jumps over the lazy dog."
    assert TextTokenizer(path).encode(text) == byte_level().encode(text)
    assert TextTokenizer(path).json == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("num_prompt", [1, 7, 8, 9, 40])
def test_a_prompts_length_does_not_matter(num_prompt: int) -> None:
    tokenizer = byte_level()
    prompt_ids = tokenizer.encode("Größe, naïve café, 你好世界, 😀 " * 8)[:num_prompt]
    new_ids = tokenizer.encode(" über 世界")
    if not tokenizer.decode(prompt_ids).endswith("\ufffd"):
        assert "".join(shown(tokenizer, prompt_ids, new_ids)) == " über 世界"


ANY_BYTES = st.lists(st.integers(0, len(BYTE_WORDS) - 1), max_size=30)
IN_BYTES = st.text("龘é😀 ab", max_size=10)


@PROPERTY
@given(ANY_BYTES, ANY_BYTES)
@example([2], [1, 259, 260])
@example([], [259, 259])
def test_any_tokens_with_bytes_are_shown_as_decoded_at_once(
    prompt_ids: list[int], new_ids: list[int]
) -> None:
    """Not by the library, which makes nothing of whole characters beside a broken one."""
    tokenizer = byte_fallback()
    before, everything = (tokenizer.decode(ids) for ids in (prompt_ids, prompt_ids + new_ids))
    text = "".join(shown(tokenizer, prompt_ids, new_ids))
    assert not everything.endswith("\ufffd") or text[-1:] in {"\ufffd", ""}
    if before == tokenizer.decode([*prompt_ids, 261])[:-1]:  # it ends with a whole character
        assert before + text == everything


@pytest.mark.parametrize("make", [byte_fallback, byte_fallback_of_no_known_kind])
@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(prompt=IN_BYTES, text=IN_BYTES)
@example(prompt="龘龘龘", text="龘龘龘")
@example(prompt="", text=" 龘")
def test_characters_in_bytes_come_back_whole(
    make: Callable[[], TextTokenizer], prompt: str, text: str
) -> None:
    tokenizer = make()
    whole = tokenizer.encode(prompt + text)
    prompt_ids = tokenizer.encode(prompt)
    if prompt and whole[: len(prompt_ids)] == prompt_ids:
        new_ids = whole[len(prompt_ids) :]
        pieces = shown(tokenizer, prompt_ids, new_ids)
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        for end in range(len(new_ids)):  # wherever it is cut off
            assert text.startswith("".join(shown(tokenizer, prompt_ids, new_ids[:end])))


def test_a_broken_character_leaves_those_beside_it_whole() -> None:
    tokenizer = byte_fallback()
    prompt_ids = tokenizer.encode("a")
    good, bad = tokenizer.encode("龘")[-3:], tokenizer.encode("龘")[-3:-1]
    assert "".join(shown(tokenizer, prompt_ids, good + bad + good)) == "龘\ufffd龘"
    assert tokenizer.decode(prompt_ids + good + bad) == "a龘"
