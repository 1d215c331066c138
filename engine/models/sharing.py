"""The parts that models of one process have in common, each kept in memory once.

A fine-tuned model usually has its base model's tokenizer and token embedding.
"""

from __future__ import annotations

import weakref
from pathlib import Path

from textmill.engine.models.embedding import Embedding
from textmill.engine.models.tokenizer import TextTokenizer


class SharedParts:
    """Parts of the models that are loaded now; a part is dropped with the last model that uses it.

    Models are loaded one after another, on one thread.
    """

    def __init__(self) -> None:
        self._embeddings: weakref.WeakSet[Embedding] = weakref.WeakSet()
        self._tokenizers: weakref.WeakSet[TextTokenizer] = weakref.WeakSet()

    def embedding(self, found: Embedding) -> Embedding:
        """The same embedding of another model, or this one."""
        for known in self._embeddings:
            if known.is_same(found):
                return known
        self._embeddings.add(found)
        return found

    def tokenizer(self, path: Path) -> TextTokenizer:
        """The tokenizer of another model with the same tokenizer.json, or a new one.

        Raises:
            OSError, UnicodeDecodeError, TokenizerFault: the file cannot be read.
        """
        content = path.read_bytes() if self._tokenizers else b""
        for known in self._tokenizers:
            if known.is_read_from(content):
                return known
        made = TextTokenizer(path)
        self._tokenizers.add(made)
        return made
