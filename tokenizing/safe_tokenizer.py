"""Tokenizers that cannot harm who calls them: no panic, no endless pattern, no lock held for long.

A tokenizer.json may hold any regular expression, and other parts that end the process or never end.
What is known to take time by the length of a text alone runs here, without Python's lock; all else
runs in a process that is killed when it takes too long. Knows nothing of models or of HTTP.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from tokenizers import Tokenizer

from textmill.tokenizing.child import (
    MAX_CHARACTERS,
    TokenizerBusy,
    TokenizerFault,
    TokenizerProcess,
)
from textmill.tokenizing.files import bound, is_known

__all__ = ["SafeTokenizer", "Spans", "TokenizerBusy", "TokenizerFault", "library_faults"]


# One text is one thread's work, and the library's own threads would not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_NO_ENCODING = {"normalizer": None, "pre_tokenizer": None, "post_processor": None}


@dataclass(frozen=True, slots=True)
class Spans:
    """The tokens of a text and what each one covers.

    Attributes:
        ids: token ids.
        offsets: for each, where it begins and ends in the text, in characters; those of one
            character have the same.
        is_added: for each, whether the tokenizer set it around the text.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    is_added: list[bool]

    def pieces(self, text: str) -> list[str]:
        """A piece of the text for each token; together they are the text.

        A character of several tokens is with its last one, and what no token covers is with the
        next one.
        """
        own = [n for n, added in enumerate(self.is_added) if not added]
        pieces = [""] * len(self.ids)
        begin = 0
        for n, following in itertools.pairwise(own):
            end = min(self.offsets[n][1], self.offsets[following][0])
            pieces[n] = text[begin:end]
            begin = max(begin, end)
        if own:
            pieces[own[-1]] = text[begin:]
        return pieces


class SafeTokenizer:
    """A tokenizer.json, read by the tokenizers library. Threads may share it."""

    def __init__(self, tokenizer_json: str) -> None:
        """Read it.

        Raises:
            TokenizerFault: it cannot be read.
        """
        try:
            document = json.loads(tokenizer_json)
        except (ValueError, RecursionError) as error:
            raise TokenizerFault(f"The tokenizer is no JSON: {error}.") from None
        if not isinstance(document, dict):
            raise TokenizerFault("The tokenizer is no JSON object.")
        if document.get("truncation") or document.get("padding"):
            # Neither is wanted, and a file may ask for more padding than there is memory.
            document |= {"truncation": None, "padding": None}
            tokenizer_json = json.dumps(document)
        self.is_known = is_known(document)
        self._process = None if self.is_known else TokenizerProcess(tokenizer_json)
        if self._process is not None:
            self._process.start()  # what crashes the library crashes there
            tokenizer_json = json.dumps(document | _NO_ENCODING)
        with library_faults("The tokenizer cannot be loaded"):
            self.library = Tokenizer.from_str(tokenizer_json)
        self._bound = bound(document) if self.is_known else None

    def encode(self, text: str, *, adds_ends: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: what to cut.
            adds_ends: set the tokens around it that the file asks for.

        Raises:
            TokenizerFault: the tokenizer fails on it, or takes too long.
            TokenizerBusy: another text takes too long.
        """
        if self._process is not None:
            reply = self._process.ask({"text": text, "spans": False, "ends": adds_ends})
            return cast("list[int]", reply["ids"])
        with library_faults("The model's tokenizer cannot read this text"):
            # The call for one text keeps Python's lock; the one for several lets go of it.
            (encoding,) = self.library.encode_batch_fast([text], add_special_tokens=adds_ends)
            return list(encoding.ids)

    def spans(self, text: str) -> Spans:
        """The same with what each token covers; four times slower.

        Raises:
            TokenizerFault: the tokenizer fails on it, or takes too long.
            TokenizerBusy: another text takes too long.
        """
        if self._process is not None:
            found = self._process.ask({"text": text, "spans": True})
            offsets = [(begin, end) for begin, end in found["offsets"]]
            return Spans(found["ids"], offsets, [bool(added) for added in found["added"]])
        with library_faults("The model's tokenizer cannot read this text"):
            encoding = self.library.encode_batch([text])[0]
            added = [bool(added) for added in encoding.special_tokens_mask]
            return Spans(list(encoding.ids), list(encoding.offsets), added)

    def least_tokens(self, text: str) -> int:
        """How many tokens a text has at least, in no time; 0 where that cannot be told."""
        return 0 if self._bound is None else self._bound.least_tokens(text)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens.

        Raises:
            TokenizerFault: the tokenizer fails on them.
        """
        with library_faults("The model's tokenizer cannot show these tokens"):
            return str(self.library.decode(ids, skip_special_tokens=skip_special_tokens))

    def close(self) -> None:
        """End its process, if it has one."""
        if self._process is not None:
            self._process.stop()


@contextlib.contextmanager
def library_faults(what: str) -> Iterator[None]:
    """Make one kind of error of all that the library raises; its panics are no ``Exception``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise TokenizerFault(f"{what}: {str(error)[:MAX_CHARACTERS]}.") from None
