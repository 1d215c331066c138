"""The form of API keys: ``tm_``, 32 random bytes, and a checksum.

The digits are base 62, which a double click selects as a whole. The checksum lets a server refuse
a mistyped key without the database, and lets secret scanners recognise a leaked one. Its form
(CRC-32 in six digits) is that of GitHub's tokens.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

PREFIX = "tm_"
NUM_BYTES = 32
PREFIX_CHARACTERS = len(PREFIX) + 8  # enough to tell keys apart, too few to guess one
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_DIGITS, _CHECKSUM_DIGITS = 43, 6  # the fewest that hold 256 and 32 bits
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_SECRET_DIGITS}}})([0-9A-Za-z]{{{_CHECKSUM_DIGITS}}})")


def new_token() -> str:
    """A new random key."""
    secret = _base62(int.from_bytes(secrets.token_bytes(NUM_BYTES)), _SECRET_DIGITS)
    return PREFIX + secret + _checksum(secret)


def is_well_formed(token: str) -> bool:
    """Whether a text has the form of a key, and its checksum is right."""
    match = _FORM.fullmatch(token)
    return match is not None and _checksum(match[1]) == match[2]


def digest(token: str) -> str:
    """The SHA-256 under which a key is stored; 256 random bits need no slower function."""
    return hashlib.sha256(token.encode()).hexdigest()


def _checksum(secret: str) -> str:
    return _base62(zlib.crc32(secret.encode()), _CHECKSUM_DIGITS)


def _base62(number: int, length: int) -> str:
    found = ""
    for _ in range(length):
        number, digit = divmod(number, 62)
        found = _DIGITS[digit] + found
    return found
