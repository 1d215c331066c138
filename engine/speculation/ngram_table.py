"""A table of n-grams: after which tokens which token is likely. Needs no torch.

A file of such a table, all numbers little-endian: the header, then the sorted hashes of contexts
(uint32), the successors of each context, the likeliest first (``WIDTH`` × uint32), and their
probabilities (``WIDTH`` × uint8, in 255ths). Contexts are known by their hashes alone: a collision
is a wrong guess, no error.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

NGRAMS_FILE = "ngrams.bin"  # beside a fine-tuning's weights
WIDTH = 2  # successors of a context
MAX_ORDER = 4  # tokens of the longest context
MAX_ENTRIES = 300_000  # 4 MB; twice as many give 0.1 % more tokens a step
MAX_TABLE_BYTES = 8 << 20
HEADER = struct.Struct("<8sIIIII")  # mark, vocabulary, order, width, entries, CRC-32 of the rest
MARK = b"TMNGRAM1"
_ENTRY_BYTES = 4 + WIDTH * 5
_MASK = 0xFFFFFFFF
MULTIPLIER = 0x9E3779B1


class BadTable(ValueError):
    """The content is not a table for this model; the message is the end of a sentence."""


class NgramTable:
    """The successors of contexts of one to ``order`` tokens."""

    def __init__(
        self, vocabulary_size: int, order: int, hashes: bytes, tokens: bytes, shares: bytes
    ) -> None:
        """Create a table of the three parts of a file; ``parse`` and ``build`` check them."""
        self.vocabulary_size = vocabulary_size
        self.order = order
        self._hashes = _numbers(hashes)
        self._tokens = _numbers(tokens)
        self._shares = shares

    def __len__(self) -> int:
        """The number of contexts."""
        return len(self._hashes)

    def successors(self, ids: Sequence[int]) -> list[tuple[int, float]]:
        """The likeliest next tokens after the longest known context, with their probabilities."""
        for length in range(min(self.order, len(ids)), 0, -1):
            code = hash_of(ids[-length:])
            place = bisect_left(self._hashes, code)
            if place < len(self._hashes) and self._hashes[place] == code:
                places = range(place * WIDTH, (place + 1) * WIDTH)
                pairs = ((self._tokens[i], self._shares[i] / 255) for i in places)
                return [pair for pair in pairs if pair[1] > 0]
        return []

    def check(self) -> None:
        """Check the order of the contexts and the range of the tokens.

        Raises:
            BadTable: they cannot be used.
        """
        if not self._hashes:
            return
        # As arrays: in Python this is 40 ms of a worker's start.
        hashes, tokens = np.asarray(self._hashes), np.asarray(self._tokens)
        if tokens.max(initial=0) >= self.vocabulary_size:
            raise BadTable("it contains a token that the model does not have")
        if (hashes[:-1] >= hashes[1:]).any():
            raise BadTable("its contexts are not sorted")

    def dump(self) -> bytes:
        """The table as the content of a file."""
        body = _little(self._hashes) + _little(self._tokens) + self._shares
        sizes = self.vocabulary_size, self.order, WIDTH, len(self)
        return HEADER.pack(MARK, *sizes, zlib.crc32(body)) + body


def parse(content: bytes, vocabulary_size: int) -> NgramTable:
    """Read a file's content.

    Args:
        content: at most ``MAX_TABLE_BYTES``.
        vocabulary_size: of the model that is to use it.

    Raises:
        BadTable: it is damaged, or belongs to a model with another vocabulary.
    """
    if len(content) < HEADER.size or not content.startswith(MARK):
        raise BadTable("it is not a table of n-grams")
    _, vocabulary, order, width, count, checksum = HEADER.unpack_from(content)
    body = content[HEADER.size :]
    if vocabulary != vocabulary_size:
        raise BadTable(
            f"it is for a vocabulary of {vocabulary} tokens, and the model has {vocabulary_size}"
        )
    if width != WIDTH or not 1 <= order <= MAX_ORDER or len(body) != count * _ENTRY_BYTES:
        raise BadTable("it is incomplete, or of another version of Textmill")
    if zlib.crc32(body) != checksum:
        raise BadTable("it is damaged")
    ends = 4 * count, 4 * count * (1 + WIDTH)
    table = NgramTable(vocabulary, order, body[: ends[0]], body[ends[0] : ends[1]], body[ends[1] :])
    table.check()
    return table


def hash_of(context: Sequence[int]) -> int:
    """The hash of a context, 32 bits; ``ngram_builder`` computes the same for many at once."""
    code = len(context)
    for token in context:
        code = (code * MULTIPLIER + token + 1) & _MASK
    return code ^ (code >> 15)


def _numbers(content: bytes) -> array[int]:
    numbers = array("I")
    numbers.frombytes(content)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _little(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = array("I", numbers)
        numbers.byteswap()
    return numbers.tobytes()
