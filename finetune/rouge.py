"""What texts have in common with others and with themselves: ROUGE, distinct-n, memorisation.

Pure functions over texts; knows nothing of models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rouge_score import rouge_scorer

# Long enough that chance and phrases of the trade are rare; compared with the same share for the
# references, which shows how many are left.
MEMORISED_WORDS = 8
_WORD = re.compile(r"\w+")

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rouge:
    """ROUGE (Lin, 2004), F1 from 0 to 1, mean over pairs.

    Attributes:
        rouge1: words in common.
        rouge2: pairs of words in common.
        rouge_l: the longest common subsequence of the whole texts. The summary-level variant,
            which takes text sentence by sentence and gives higher numbers, is not computed.
    """

    rouge1: float
    rouge2: float
    rouge_l: float


def words(text: str) -> list[str]:
    """Words in lower case, punctuation left out."""
    return _WORD.findall(text.lower())


def rouge(texts: Sequence[str], references: Sequence[str]) -> Rouge:
    """ROUGE of texts against one reference each, with Porter's stemmer, as ``rouge-score`` has it.

    Its words are runs of ASCII letters and digits: for other scripts the numbers mean nothing.

    Raises:
        ValueError: there is nothing to compare, or a text without its reference.
    """
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    pairs = list(zip(references, texts, strict=True))
    if not pairs:
        raise ValueError("There are no texts to compare.")
    scores = [scorer.score(reference, text) for reference, text in pairs]
    means = {kind: fmean(s[kind].fmeasure for s in scores) for kind in scorer.rouge_types}
    return Rouge(means["rouge1"], means["rouge2"], means["rougeL"])


def distinct(texts: Iterable[str], length: int) -> float:
    """Distinct-n (Li et al., 2016): the share of n-grams of words that differ, over all texts.

    1 where none comes twice, near 0 where texts go round in circles; 0 where there are no n-grams.
    It falls as texts grow longer: compare it at equal lengths alone.
    """
    counts = _counts(texts, length)
    return len(counts) / counts.total() if counts else 0.0


def memorised_shares(
    groups: Sequence[Iterable[str]],
    training_texts: Iterable[str],
    length: int = MEMORISED_WORDS,
) -> list[float]:
    """The share of each group's n-grams of words that stand in the training texts.

    Exact: what the groups hold is looked for in the training texts, and not the other way round,
    so that memory is bounded by the groups however much was trained on.

    Args:
        groups: texts written by a model, say, and held-out texts to compare with.
        training_texts: gone through once.
        length: words of an n-gram.

    Returns:
        One number a group, every occurrence counted; 0 where there are no n-grams.
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
