"""Metrics of generated texts: ROUGE, distinct-n and memorisation.

Pure functions of texts; knows nothing of models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rouge_score import rouge_scorer

# Long enough that matches by chance and through stock phrases are rare. The same share of the
# reference texts shows how many such matches remain.
MEMORISED_WORDS = 8
_WORD = re.compile(r"\w+")

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rouge:
    """ROUGE (Lin, 2004): F1 from 0 to 1, averaged over pairs of texts.

    Attributes:
        rouge1: overlap of words.
        rouge2: overlap of word pairs.
        rouge_l: longest common subsequence of the whole texts. The summary-level variant, which
            compares sentence by sentence and gives higher numbers, is not computed.
    """

    rouge1: float
    rouge2: float
    rouge_l: float


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def rouge(texts: Sequence[str], references: Sequence[str]) -> Rouge:
    """Compute ROUGE of texts against one reference each, by ``rouge-score`` with Porter's stemmer.

    ``rouge-score`` splits text into runs of ASCII letters and digits, so the numbers are
    meaningless for other scripts.

    Raises:
        ValueError: there are no texts, or the numbers of texts and references differ.
    """
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    pairs = list(zip(references, texts, strict=True))
    if not pairs:
        raise ValueError("There are no texts to compare.")
    scores = [scorer.score(reference, text) for reference, text in pairs]
    means = {kind: fmean(s[kind].fmeasure for s in scores) for kind in scorer.rouge_types}
    return Rouge(means["rouge1"], means["rouge2"], means["rougeL"])


def distinct(texts: Iterable[str], length: int) -> float:
    """Distinct-n (Li et al., 2016): the share of distinct n-grams of words, over all texts.

    It is 1 if no n-gram occurs twice, near 0 for repetitive texts, and 0 if there are no n-grams.
    It falls with the length of the texts, so compare it only between texts of equal length.
    """
    counts = _counts(texts, length)
    return len(counts) / counts.total() if counts else 0.0


def memorised_shares(
    groups: Sequence[Iterable[str]],
    training_texts: Iterable[str],
    length: int = MEMORISED_WORDS,
) -> list[float]:
    """Compute the share of each group's n-grams of words that occur in the training texts.

    The result is exact. Memory is bounded by the groups, however long the training texts are,
    because only the n-grams of the groups are kept.

    Args:
        groups: groups of texts, such as completions of a model and held-out texts.
        training_texts: iterated once.
        length: words in an n-gram.

    Returns:
        One share for each group, counting every occurrence; 0 if a group has no n-grams.
    """
    counts = [_counts(group, length) for group in groups]
    wanted: set[Gram] = set().union(*counts)
    found: set[Gram] = set()
    for text in training_texts:
        found.update(wanted.intersection(_grams(text, length)))
    return [
        sum(num for gram, num in group.items() if gram in found) / group.total() if group else 0.0
        for group in counts
    ]


def _counts(texts: Iterable[str], length: int) -> Counter[Gram]:
    return Counter(gram for text in texts for gram in _grams(text, length))


def _grams(text: str, length: int) -> Iterator[Gram]:
    found = words(text)
    return zip(*(found[start:] for start in range(length)), strict=False)
