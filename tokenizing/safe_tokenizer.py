"""Tokenizers that are safe to call: no panic, no endless pattern, no lock held for long.

A tokenizer.json may contain any regular expression, and other parts that crash the process or never
end. Tokenizers whose time is known to depend on the text's length alone run in this process,
without Python's lock; all others run in a process that is killed when it takes too long. Knows
nothing of models or of HTTP.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer

from textmill.tokenizing.child import (
    MAX_CHARACTERS,
    TokenizerBusy,
    TokenizerFault,
    TokenizerProcess,
)
from textmill.tokenizing.files import bound, is_known

__all__ = ["SafeTokenizer", "Spans", "TokenizerBusy", "TokenizerFault", "library_faults"]


# Each text is tokenized on one thread; the library's own threads would not survive a fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_NO_ENCODING = {"normalizer": None, "pre_tokenizer": None, "post_processor": None}


@dataclass(frozen=True, slots=True)
class Spans:
    """The tokens of a text and the part of it that each one covers.

    Attributes:
        ids: token ids.
        offsets: for each token, its begin and end in the text, in characters; tokens of the same
            character have the same offsets.
        is_added: for each token, whether the tokenizer added it around the text.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    is_added: list[bool]

    def pieces(self, text: str) -> list[str]:
        """The piece of the text for each token; joined they are the text.

        A character of several tokens belongs to the last of them, and a part that no token covers
        to the next token.
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
    """A tokenizer.json, read by the tokenizers library. Threads may share it.

    Attributes:
        is_known: whether it runs in this process.
        added_tokens: the file's list of them.
        decoder: the file's decoder.
    """

    def __init__(self, tokenizer_json: str) -> None:
        """Load the tokenizer.

        Raises:
            TokenizerFault: it cannot be loaded.
        """
        try:
            document = json.loads(tokenizer_json)
        except (ValueError, RecursionError) as error:
            raise TokenizerFault(f"The tokenizer is not valid JSON: {error}.") from None
        if not isinstance(document, dict):
            raise TokenizerFault("The tokenizer is not a JSON object.")
        if document.get("truncation") or document.get("padding"):
            # Neither is used, and a file may request more padding than there is memory.
            document |= {"truncation": None, "padding": None}
            tokenizer_json = json.dumps(document)
        self.added_tokens: list[Mapping[str, Any]] = document.get("added_tokens") or []
        self.decoder: Mapping[str, Any] | None = document.get("decoder")
        self.is_known = is_known(document)
        self._process = None if self.is_known else TokenizerProcess(tokenizer_json)
        if self._process is not None:
            self._process.start()  # a file that crashes the library crashes that process
            tokenizer_json = json.dumps(document | _NO_ENCODING)
        with library_faults("The tokenizer cannot be loaded"):
            self.library = Tokenizer.from_str(tokenizer_json)
        self._bound = bound(document) if self.is_known else None

    def encode(self, text: str, *, adds_ends: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: the text to tokenize.
            adds_ends: whether to add the tokens around it that the file specifies.

        Raises:
            TokenizerFault: the tokenizer fails on it, or takes too long.
            TokenizerBusy: another text takes too long.
        """
        if self._process is not None:
            reply = self._process.ask({"text": text, "spans": False, "ends": adds_ends})
            return cast("list[int]", reply["ids"])
        with library_faults("The model's tokenizer cannot read this text"):
            # The call for one text keeps Python's lock; the one for a batch releases it.
            (encoding,) = self.library.encode_batch_fast([text], add_special_tokens=adds_ends)
            return list(encoding.ids)

    def spans(self, text: str) -> Spans:
        """The tokens of a text with their offsets; four times slower than ``encode``.

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
        """A lower bound on a text's number of tokens, without tokenizing; 0 if unknown."""
        return 0 if self._bound is None else self._bound.least_tokens(text)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens.

        Raises:
            TokenizerFault: the tokenizer fails on them.
        """
        with library_faults("The model's tokenizer cannot show these tokens"):
            return str(self.library.decode(ids, skip_special_tokens=skip_special_tokens))

    def close(self) -> None:
        """Stop its process, if it has one."""
        if self._process is not None:
            self._process.stop()


@contextlib.contextmanager
def library_faults(what: str) -> Iterator[None]:
    """Convert all errors of the library; its panics are not subclasses of ``Exception``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise TokenizerFault(f"{what}: {str(error)[:MAX_CHARACTERS]}.") from None
