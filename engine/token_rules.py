"""Finds the tokens that the parameters of the strategy ``custom`` name, once for each text."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Protocol

from textmill.core.strategies import DecodingParameters
from textmill.engine.requests import ParametersUnusable
from textmill.engine.sampling.token_records import TokenRules


class Encoder(Protocol):
    """Turns text into tokens; see ``TextTokenizer``."""

    def encode_part(self, text: str) -> list[int]:
        """Encode a part of a text, without the tokens around a whole one."""
        ...


def rules_for(
    parameters: DecodingParameters, tokenizer: Encoder, vocabulary_size: int
) -> TokenRules | None:
    """The rules of a text's parameters; ``None`` if they name no tokens.

    Raises:
        ParametersUnusable: the model does not have one of the tokens.
        TokenizerFault, TokenizerBusy: the tokenizer cannot encode a sequence breaker.
    """
    ids = [token for token, _ in parameters.logit_bias]
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary_size:
        wrong = next(token for token in ids if not 0 <= token < vocabulary_size)
        raise ParametersUnusable(
            f"logit_bias names the token {wrong}, but the model has {vocabulary_size} tokens, ids"
            f" 0 to {vocabulary_size - 1}. Use the ids that POST /tokenize returns for this model."
        )
    breakers: set[int] = set()
    if parameters.dry_multiplier > 0.0:
        breakers = _last_tokens(parameters.dry_sequence_breakers, tokenizer)
    if not ids and not breakers:
        return None
    biases = array("f", [bias for _, bias in parameters.logit_bias])
    return TokenRules(array("i", ids), biases, array("i", sorted(breakers)))


def _last_tokens(texts: Iterable[str], tokenizer: Encoder) -> set[int]:
    """The last token of each text, within a text: at the start some tokenizers add a space.

    DRY's author takes the last token of a letter and the string (text-generation-webui, pull
    request 5677).
    """
    found = set()
    for text in texts:
        found.update(tokenizer.encode_part(f"a{text}")[-1:])
    return found
