"""What was shown token by token is what decoding everything at once gives."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.tiny_models import END_OF_TEXT, tiny_model
from worker.models.tokenizer import IncrementalDetokenizer, TextTokenizer

NUM_BYTE_LEVEL = 400  # tiny_models.build_tokenizer's size; the first is the end of text
WORDS = ["<unk>", "</s>", "▁", "▁the", "▁a", "n", "s", ",", "▁é", "你", "\ufffd"]
PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=300)
TEXTS = st.text(min_size=1, max_size=12)


@functools.cache
def byte_level() -> TextTokenizer:
    """As GPT-2, GPT-Neo and SmolLM2 have it: a character may be several tokens."""
    return TextTokenizer(tiny_model("gpt2") / "tokenizer.json")


@functools.cache
def word_pieces() -> TextTokenizer:
    """As Llama 2 has it: a word brings its space, and the text's first space is dropped."""
    tokenizer = Tokenizer(
        models.Unigram([(word, -float(at)) for at, word in enumerate(WORDS)], unk_id=0)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return TextTokenizer(path)


def shown(tokenizer: TextTokenizer, prompt_ids: list[int], new_ids: list[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
    return [*(detokenizer.push(token) for token in new_ids), detokenizer.flush()]


def continuation(tokenizer: TextTokenizer, prompt_ids: list[int], new_ids: list[int]) -> str:
    before = tokenizer.decode(prompt_ids)
    everything = tokenizer.decode(prompt_ids + new_ids)
    assert everything.startswith(before)
    return everything[len(before) :]


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
    assert pieces[-1] == ("\ufffd" * (len(text) - len(text.rstrip("\ufffd"))))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("🦊")
    waits = [""] * (len(ids) - 1)
    assert waits  # else this tries nothing
    assert shown(tokenizer, tokenizer.encode("A fox: "), ids) == [*waits, "🦊", ""]


def test_what_never_becomes_a_character_is_shown_at_the_end() -> None:
    tokenizer = byte_level()
    half = tokenizer.encode("🦊")[:2]
    assert shown(tokenizer, tokenizer.encode("A"), half) == ["", "", "\ufffd"]
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
