"""Ends of completions: within characters of several tokens, and at special tokens."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.fakes import fake_model, spelling
from textmill.core.strategies import DecodingParameters
from textmill.engine import GenerationRequest, InferenceEngine
from textmill.engine.models.tokenizer import IncrementalDetokenizer, TextTokenizer
from textmill.engine.requests import Delta, Generation, PromptUnusable
from textmill.engine.sampling.token_records import TokenTrace
from textmill.engine.sequence import TokenSequence
from textmill.engine.stops import StopFilter

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=150)


def saved(tokenizer: Tokenizer) -> TextTokenizer:
    tokenizer.add_special_tokens(SPECIAL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path))
        return TextTokenizer(path)


@functools.cache
def byte_level() -> TextTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({w: n for n, w in enumerate(SPECIAL + letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return saved(tokenizer)


@functools.cache
def byte_fallback() -> TextTokenizer:
    words = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdST:"]
    ids = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # no mark behind special tokens
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return saved(tokenizer)


KINDS = pytest.mark.parametrize("make", [byte_level, byte_fallback])


def continued(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The tokens of a text that follows another one."""
    begun = tokenizer.encode("a")
    whole = tokenizer.encode("a" + text)
    assert whole[: len(begun)] == begun
    return whole[len(begun) :]


class Written:
    """A sequence that was given tokens until it ended, or they did."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        tokens: list[int],
        *,
        prompt: str = "a",
        reason: str = "canceled",
        eos: frozenset[int] = frozenset(),
        **parameters: Any,
    ) -> None:
        given_: dict[str, Any] = {
            "strategy": "greedy",
            "max_new_tokens": 1000,
            "seed": 0,
            "trace": True,
        }
        request = GenerationRequest("j", "m", prompt, DecodingParameters(**given_ | parameters))
        ids = tokenizer.encode(prompt)
        self.deltas: list[Delta] = []
        sequence = TokenSequence(
            Generation(request),
            ids,
            detokenizer=IncrementalDetokenizer(tokenizer, ids),
            eos_token_ids=eos,
            context_length=10_000,
            on_delta=self.deltas.append,
        )
        for token in tokens:
            trace = TokenTrace(token, tokenizer.text_of(token), -1.0, 1, 1.0, 0.5, [])
            ended = sequence.push(token, trace)
            if ended is not None:
                reason = ended
                break
        sequence.finish(reason)
        result = sequence.generation.result(0)
        self.text, self.reason = result.text, result.finish_reason
        self.num_tokens = result.num_completion_tokens
        self.trace = result.trace or []
        assert "".join(delta.text for delta in self.deltas) == self.text


@KINDS
def test_a_text_cut_within_a_character_ends_before_it(make: Any) -> None:
    tokenizer = make()
    tokens = continued(tokenizer, "b龘龘")
    for count in range(1, len(tokens)):
        by_length = Written(tokenizer, tokens, max_new_tokens=count)
        assert by_length.reason == "length"
        assert by_length.num_tokens == count  # what was written counts, shown or not
        canceled = Written(tokenizer, tokens[:count])
        assert canceled.reason == "canceled"
        assert canceled.num_tokens == count
        for written in (by_length, canceled):
            assert "\ufffd" not in written.text
            assert "b龘龘".startswith(written.text)
    ended = Written(tokenizer, [*tokens[:-1], tokens[0]], eos=frozenset({tokens[0]}))
    assert ended.text == ""
    at_eos = Written(tokenizer, [*tokens[1:-1], 1], eos=frozenset({1}))
    assert (at_eos.text, at_eos.reason) == ("龘", "stop")


def test_a_prompt_of_such_characters_goes_on_with_them() -> None:
    tokenizer = byte_fallback()
    written = Written(tokenizer, continued(tokenizer, "龘" * 6), prompt="龘" * 3)
    assert written.text == "龘" * 6


@KINDS
@pytest.mark.parametrize("stop", ["龘", "龘龘", "😀", "b龘", "龘 c"])
def test_a_stop_string_of_characters_of_several_tokens_is_seen(make: Any, stop: str) -> None:
    tokenizer = make()
    text = f"ab cd{stop}aa{stop}"
    written = Written(tokenizer, continued(tokenizer, text), prompt="龘龘龘", stop=(stop,))
    assert (written.text, written.reason) == ("ab cd", "stop")


@KINDS
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<|im_start|>", "ab"),
        ("b<|im_start|>", "a"),
        ("<|im_start|>c", "ab"),
        ("b<|im_start|>c", "a"),
        ("<|im_start|><|im_end|>", "abc"),
        ("c<|im_start|><|im_end|>d", "ab"),
        ("bc", "a"),  # the text as it is shown, which has no special tokens
        ("ab", ""),
        ("cd", "ab"),
        ("<|endoftext|>", "abcd"),  # which never comes
        ("start", "ab"),
        ("|>d", "abc"),
    ],
)
def test_special_tokens_are_seen_by_stop_strings_and_are_no_text(
    make: Any, stop: str, text: str
) -> None:
    tokenizer = make()
    tokens = continued(tokenizer, "ab<|im_start|>c<|im_start|><|im_end|>d")
    written = Written(tokenizer, tokens, stop=(stop,))
    assert written.text == text
    assert written.reason == ("stop" if text != "abcd" else "canceled")


@KINDS
def test_the_token_that_ends_a_text_completes_a_stop_string(make: Any) -> None:
    tokenizer = make()
    end = tokenizer.encode("<|im_end|>")[-1]
    tokens = continued(tokenizer, "abc<|im_end|>")
    for stop, text in [("c<|im_end|>", "ab"), ("<|im_end|>", "abc"), ("d<|im_end|>", "abc")]:
        written = Written(tokenizer, tokens, eos=frozenset({end}), stop=(stop,))
        assert (written.text, written.reason, written.num_tokens) == (text, "stop", 3)


pieces = st.lists(
    st.tuples(st.booleans(), st.text("ab|<", min_size=1, max_size=3)), min_size=1, max_size=12
)


@PROPERTY
@given(parts=pieces, stops=st.lists(st.text("ab|<", min_size=1, max_size=4), max_size=3))
@example(parts=[(False, "a"), (True, "|"), (False, "b")], stops=["ab", "a|b"])
def test_a_text_ends_with_the_first_stop_string_with_special_tokens_or_without(
    parts: list[tuple[bool, str]], stops: list[str]
) -> None:
    """Against a search of the whole after every piece."""
    filter_, shown, wanted = StopFilter(tuple(stops)), "", None
    for count, (is_special, name) in enumerate(parts, 1):
        shown += filter_.push("", name) if is_special else filter_.push(name)
        both = "".join(n for _, n in parts[:count])
        places = [
            sum(len(n) for _, n in parts[:k]) + j
            for k, (special, name_) in enumerate(parts[:count])
            if not special
            for j in range(len(name_))
        ]
        text = "".join(both[place] for place in places)
        ends = [(both.find(s) + len(s), both.find(s)) for s in stops if s in both]
        ends += [
            (places[text.find(s) + len(s) - 1] + 1, places[text.find(s)])
            for s in stops
            if s in text
        ]
        if ends:
            begin = min(ends)[1]
            wanted = "".join(both[place] for place in places if place < begin)
            break
    assert filter_.is_stopped == (wanted is not None)
    if wanted is None:
        wanted = "".join(name for is_special, name in parts if not is_special)
        shown += filter_.flush()
    assert shown == wanted
    assert not any(stop in shown for stop in stops)


@KINDS
def test_the_texts_of_a_trace_are_together_the_text(make: Any) -> None:
    tokenizer = make()
    written = Written(tokenizer, continued(tokenizer, "b 😀龘<|im_start|> c"))
    assert written.text == "b 😀龘 c"
    assert "".join(token.text for token in written.trace) == written.text
    assert len(written.trace) == written.num_tokens
    by_id = {token.id: token.text for token in written.trace if token.text == ""}
    assert tokenizer.encode("<|im_start|>")[-1] in by_id
    stopped = Written(tokenizer, continued(tokenizer, "b龘cd"), stop=("龘c",))
    assert stopped.text == "b"
    assert "".join(token.text for token in stopped.trace) == "b龘c"  # and why it stopped


def test_a_prompt_that_the_tokenizer_cannot_read_fails_alone() -> None:
    model, _ = fake_model(spelling("xyz\0", "p"))
    document = json.loads(byte_level().json)
    document["pre_tokenizer"] = {
        "type": "Split",
        "behavior": "Isolated",
        "invert": False,
        "pattern": {"Regex": "(a|aa|a?a)+$"},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        hostile = dataclasses.replace(model, name="hostile", tokenizer=TextTokenizer(path))
    engine = InferenceEngine({"fake": model, "hostile": hostile}, num_slots=2)
    engine.start()
    try:
        parameters = DecodingParameters(strategy="greedy", max_new_tokens=3, seed=0)
        request = GenerationRequest("j", "hostile", "a" * 40 + "b", parameters)
        with pytest.raises(PromptUnusable, match="cannot read this text") as caught:
            engine.submit(request)
        assert caught.value.is_permanent
        other = GenerationRequest("k", "fake", "p", parameters)
        assert engine.submit(other).result(30).text == "xyz"
    finally:
        engine.stop(30)
