"""The pre-tokenizers of byte-level BPE vocabularies, by their names in llama.cpp.

A .gguf file contains the vocabulary and the merges, but only the name of the pre-tokenizer
(``tokenizer.ggml.pre``), which splits text before the merges are applied. The patterns are the
published definitions of the tokenizers; each one splits the pieces that the previous ones left.
Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
_DIGIT = r"\p{N}"
_DIGITS_APART = (_DIGIT, *_GPT2)
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _like_llama3(numbers: str, spaces: str = _SPACES) -> str:
    return f"{_SUFFIXES}|{_WORD}|{numbers}|{_SIGNS}|{spaces}"


_LLAMA3 = (_like_llama3(r"\p{N}{1,3}"),)
_QWEN2 = (_like_llama3(r"\p{N}"),)
_HALVINGS = "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = (_like_llama3(r"\p{N}{1,3}", rf"\s*[\r\n]+|{_HALVINGS}|\s{{1,2}}(?!\S)|\s{{1}}"),)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _like_gpt4o(numbers: str, suffixes: str, signs_end: str = r"[\r\n/]*", not_in: str = "") -> str:
    """Split words where upper case follows lower case; suffixes belong to the word."""
    before, upper, lower = r"[^\r\n\p{L}\p{N}]?", f"[{_UPPER}{not_in}]", f"[{_LOWER}{not_in}]"
    words = f"{before}{upper}*{lower}+{suffixes}|{before}{upper}+{lower}*{suffixes}"
    return rf"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+{signs_end}|{_SPACES}"


_GPT4O = (_like_gpt4o(r"\p{N}{1,3}", f"{_SUFFIXES}?"),)
_KANA_AND_HAN = "一-龥぀-ゟ゠-ヿ"
_ASCII_SIGNS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK_WORDS = (
    rf"{_ASCII_SIGNS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_DEEPSEEK3 = (r"\p{N}{1,3}", f"[{_KANA_AND_HAN}]+", _DEEPSEEK_WORDS)
# The letters with case, as that tokenizer lists them. Characters that NFC would change are escaped.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ"
    "ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ"
    "\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_NO_STOPS = " ?[^(\\s|.,!?…。，、।۔،)]+"
_ASIAN = (
    "[一-鿿㐀-䶿\uf900-\ufaff぀-ゟ゠-ヿ･-ﾟ\u2f00-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟"
    "ꩠ-ꩿꧠ-\ua9ff가-\ud7afᄀ-ᇿ]+"
)
_THREES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"  # counted from the end of the number


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """The meaning of a name in ``tokenizer.ggml.pre``.

    Attributes:
        patterns: regular expressions, applied one after the other.
        ignores_merges: whether a piece that is in the vocabulary becomes one token without merges.
        adds_bos: whether the beginning-of-text token is added, unless the file says otherwise.
        composes: whether the text is first normalized to NFC.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False
    composes: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """The pre-tokenizer for the tokenizers library."""
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, letters])

    def normalizer(self) -> Normalizer | None:
        """The normalizer for the tokenizers library, if one is needed."""
        return normalizers.NFC() if self.composes else None


# llama.cpp's choice for files without a name.
DEFAULT = PreTokenization(
    (r"[\p{P}\$\+<=>\^~\|]+", *_GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
)
_KINDS: dict[str, PreTokenization] = {
    "default": DEFAULT,
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat"
    " a.x-4.0 mellum modern-bert jais trillion granite-docling exaone4": PreTokenization(_GPT2),
    "mpt olmo": PreTokenization(_GPT2, composes=True),  # GPT-NeoX's, which normalizes to NFC
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": PreTokenization(
        _DIGITS_APART
    ),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": (
        PreTokenization(_LLAMA3, ignores_merges=True, adds_bos=True)
    ),
    "dbrx smaug-bpe chatglm-bpe glm4": PreTokenization(_LLAMA3),
    "jais-2": PreTokenization(_JAIS2),
    "minicpm5": PreTokenization((r"\p{N}{1,3}", _like_llama3(r"\p{N}+")), ignores_merges=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez": PreTokenization(_QWEN2, composes=True),
    "stablelm2 hunyuan solar-open grok-2": PreTokenization(_QWEN2),
    "qwen35": PreTokenization(
        (
            rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        ),
        composes=True,
    ),
    "deepseek-llm": PreTokenization(
        (
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenization((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT)),
    "deepseek-v3 hunyuan-dense joyai-llm": PreTokenization(_DEEPSEEK3),
    "youtu": PreTokenization(
        (
            f"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[{_KANA_AND_HAN}]+",
            _like_gpt4o(r"\p{N}", f"{_SUFFIXES}?"),
        ),
        ignores_merges=True,
    ),
    "falcon": PreTokenization((r"[\p{P}\$\+<=>\^~\|`]+", *_GPT2, "[0-9][0-9][0-9]")),
    "bloom gpt3-finnish poro-chat": PreTokenization((_NO_STOPS,)),
    "viking": PreTokenization((_NO_STOPS, _DIGIT)),
    "tekken": PreTokenization((_like_gpt4o(r"\p{N}", ""),), ignores_merges=True, adds_bos=True),
    "chameleon": PreTokenization(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            _DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            *_GPT2,
        ),
        adds_bos=True,
    ),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenization(_GPT4O),
    "granite-embed-multi-97m": PreTokenization(_GPT4O, ignores_merges=True),
    "tiny_aya cohere2moe": PreTokenization((r"\d{1,3}(?=(?:\d{3})*\b)", *_GPT4O)),
    "kimi-k2": PreTokenization(
        (r"\p{Han}+|" + _like_gpt4o(r"\p{N}{1,3}", f"{_SUFFIXES}?", r"[\r\n]*", r"&&[^\p{Han}]"),)
    ),
    "superbpe": PreTokenization((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "bailingmoe bailingmoe2 llada-moe": PreTokenization(
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "seed-coder": PreTokenization(
        (rf"{_SUFFIXES}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
    ),
    "exaone-moe": PreTokenization(
        (
            rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "afmoe": PreTokenization((_THREES, _ASIAN, _DEEPSEEK_WORDS)),
}
PRE_TOKENIZATIONS = {name: kind for names, kind in _KINDS.items() for name in names.split()}
"""By the names that llama.cpp supports for byte-level vocabularies (November 2026)."""

# The time of these grows faster than a text's length, because they look ahead over all digits.
_SLOW = {_THREES, r"(?=(\d{3})+(?!\d))", r"\d{1,3}(?=(?:\d{3})*\b)"}
_ALSO_PUBLISHED = {
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2's, short
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    " {2,}",  # the normalizer of T5 and others
}
LINEAR_PATTERNS = frozenset(
    _ALSO_PUBLISHED | {p for kind in PRE_TOKENIZATIONS.values() for p in kind.patterns} - _SLOW
)
"""Patterns whose time is known to be linear in a text's length."""


def _letters() -> dict[str, int]:
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    named = {chr(byte): byte for byte in plain}
    return named | {chr(256 + place): byte for place, byte in enumerate(others)}


LETTERS = _letters()
"""Character of a byte-level vocabulary → the byte that it represents."""
