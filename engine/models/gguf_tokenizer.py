"""The tokenizer of a .gguf file, from its metadata: vocabulary, merges or scores, and flags.

Two kinds are supported, those of the causal models that can be loaded: byte-level BPE ("gpt2") and
SentencePiece with byte fallback ("llama"). Knows nothing of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.gguf_file import GgufFile
from textmill.tokenizing.pretokenizers import DEFAULT, PRE_TOKENIZATIONS, PreTokenization

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # of tokenizer.ggml.token_type
_SPACE = "▁"
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "mask_token": "mask_token_id",
}
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """A tokenizer, with the data that transformers stores in addition."""

    tokenizer: Tokenizer
    roles: dict[str, str]
    chat_template: str | None


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    path: Path
    keys: dict[str, Any]
    tokens: list[str]
    types: list[int]

    def key(self, name: str, default: Any = None) -> Any:
        return self.keys.get(f"tokenizer.ggml.{name}", default)

    def role(self, name: str) -> str | None:
        """The token of a role, such as the one that begins a text."""
        place = self.key(_ROLES[name])
        exists = isinstance(place, int) and 0 <= place < len(self.tokens)
        return self.tokens[place] if exists else None

    def ids(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens)}


def read_gguf_tokenizer(path: Path, report: Report) -> GgufTokenizer:
    """Build the tokenizer that a .gguf file describes.

    Args:
        path: the file.
        report: is called with a sentence if important metadata is missing.

    Raises:
        ModelUnusable: the kind is not supported; the message names it.
    """
    found = _vocabulary(path)
    kind = found.key("model")
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(found, report)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(found), True
    else:
        raise ModelUnusable(
            f"{path.name} has a tokenizer of the kind {kind!r} (tokenizer.ggml.model); the"
            " supported kinds are gpt2 and llama. Serve the model from a folder with a"
            " tokenizer.json."
        )
    _add_special_tokens(tokenizer, found)
    _add_ends(tokenizer, found, adds_bos)
    roles = {name: token for name in _ROLES if (token := found.role(name)) is not None}
    template = found.keys.get("tokenizer.chat_template")
    return GgufTokenizer(tokenizer, roles, template if isinstance(template, str) else None)


def _vocabulary(path: Path) -> _Vocabulary:
    keys = GgufFile(path).fields
    tokens = keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelUnusable(
            f"{path.name} has no vocabulary (tokenizer.ggml.tokens). Convert the model again."
        )
    # A vocabulary has an entry for every id; empty entries must remain distinct.
    tokens = [token or f"[EMPTY_{place}]" for place, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        raise ModelUnusable(
            f"{path.name} has the same token twice in its vocabulary. Convert the model again."
        )
    types = keys.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ModelUnusable(
            f"{path.name} has {len(tokens)} tokens and {len(types)} types of tokens. Convert the"
            " model again."
        )
    return _Vocabulary(path, keys, tokens, types)


def _byte_level(found: _Vocabulary, report: Report) -> tuple[Tokenizer, bool]:
    cuts = _pre_tokenization(found, report)
    merges = found.key("merges")
    if not isinstance(merges, list):
        raise ModelUnusable(
            f"{found.path.name} has no merges (tokenizer.ggml.merges). Convert the model again."
        )
    # Split at the first space after the first character, because a token may begin with a space.
    pairs = [(pair[: (at := pair.index(" ", 1))], pair[at + 1 :]) for pair in merges]
    tokenizer = Tokenizer(BPE(found.ids(), pairs, ignore_merges=cuts.ignores_merges))
    normalizer = cuts.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = cuts.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cuts.adds_bos


def _pre_tokenization(found: _Vocabulary, report: Report) -> PreTokenization:
    name = found.key("pre")
    if not name:
        report(
            f"{found.path.name} does not name its pre-tokenizer (tokenizer.ggml.pre), so text may"
            " be split differently than in training; convert the model with a newer llama.cpp."
        )
        return DEFAULT
    cuts = PRE_TOKENIZATIONS.get(name)
    if cuts is None:
        raise ModelUnusable(
            f"{found.path.name} needs the unsupported pre-tokenizer {name!r} (tokenizer.ggml.pre)."
            " Serve the model from a folder with a tokenizer.json."
        )
    return cuts


def _sentencepiece(found: _Vocabulary) -> Tokenizer:
    scores = found.key("scores")
    if not isinstance(scores, list) or len(scores) != len(found.tokens):
        raise ModelUnusable(
            f"{found.path.name} does not have a score for each token (tokenizer.ggml.scores)."
            " Convert the model again."
        )
    unknown = found.role("unk_token") or next(
        (t for t, kind in zip(found.tokens, found.types, strict=True) if kind == _UNKNOWN), None
    )
    merges = list(_merges(found, scores))
    model = BPE(found.ids(), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    has_prefix = bool(found.key("add_space_prefix", True))
    spaces = [normalizers.Replace(" ", _SPACE)]
    prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, *spaces])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(found: _Vocabulary, scores: list[float]) -> Iterator[tuple[str, str]]:
    """All pairs of tokens whose concatenation is a token, in descending order of its score.

    SentencePiece merges the pair whose result has the highest score.
    """
    kinds = zip(found.tokens, found.types, strict=True)
    ids = {t: n for n, (t, kind) in enumerate(kinds) if kind in {_NORMAL, _USER_DEFINED}}
    pairs = [
        (-scores[place], ids[token[:cut]], ids[token[cut:]])
        for token, place in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return ((found.tokens[left], found.tokens[right]) for _, left, right in sorted(pairs))


def _add_special_tokens(tokenizer: Tokenizer, found: _Vocabulary) -> None:
    """Add the tokens that are matched before pre-tokenization; control tokens are special."""
    for token, kind in zip(found.tokens, found.types, strict=True):
        if kind in {_UNKNOWN, _CONTROL, _USER_DEFINED}:
            is_special = kind != _USER_DEFINED
            added = AddedToken(token, special=is_special, normalized=False)
            if is_special:
                tokenizer.add_special_tokens([added])
            else:
                tokenizer.add_tokens([added])


def _add_ends(tokenizer: Tokenizer, found: _Vocabulary, adds_bos: bool) -> None:
    """Add the tokens around a text that the file specifies."""
    first = found.role("bos_token") if found.key("add_bos_token", adds_bos) else None
    last = found.role("eos_token") if found.key("add_eos_token", False) else None
    ends = [token for token in (first, last) if token is not None]
    if ends:
        ids = found.ids()
        one = [*([first] if first else []), "$A", *([last] if last else [])]
        two = [*one, *(piece.replace("$A", "$B") + ":1" for piece in one)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=one, pair=two, special_tokens=[(token, ids[token]) for token in set(ends)]
        )
