"""The measurements of one model, and published results to compare them with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from textmill.finetune.rouge import Rouge
from textmill.finetune.scoring import Score


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """Metrics of completions that a model generated for held-out prompts.

    The names of the fields are those of ``finetune.json``.

    Attributes:
        num_texts: completions that were generated and compared.
        num_skipped: examples skipped because their prompt leaves too little room in the context, or
            because they are too short to be split.
        rouge: against the held-out completions.
        distinct1: the share of distinct words; distinct2 of pairs, distinct3 of triples.
        memorised: the share of 8-grams of words that occur in the training texts.
        reference_memorised: the same share for the held-out texts, which are not copied: the level
            due to chance and common phrases.
    """

    num_texts: int
    num_skipped: int
    rouge: Rouge
    distinct1: float
    distinct2: float
    distinct3: float
    memorised: float
    reference_memorised: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """All measurements of one model.

    Attributes:
        num_examples: held-out examples over which the score was computed.
        score: the loss on their learned parts.
        texts: metrics of completions; ``None`` if none were requested, or none could be generated.
    """

    num_examples: int
    score: Score
    texts: TextMetrics | None

    def as_json(self) -> dict[str, Any]:
        """All numbers, for ``finetune.json``; shares and ROUGE are from 0 to 1."""
        return {
            "num_examples": self.num_examples,
            "num_tokens": self.score.num_tokens,
            "num_bytes": self.score.num_bytes,
            "nats_per_token": self.score.nats_per_token,
            "perplexity": self.score.perplexity,
            "bits_per_byte": self.score.bits_per_byte,
            "texts": None if self.texts is None else asdict(self.texts),
        }


@dataclass(frozen=True, slots=True)
class Published:
    """Published ROUGE of another system, in percent."""

    system: str
    rouge1: float
    rouge2: float
    rouge_l: float
    source: str


# The test split of Multi-XScience (Lu, Dong and Charlin, EMNLP 2020, arXiv:2010.14235). The list
# contains only results that could be checked against a source. First the paper's Pointer-Generator,
# as its table is quoted in issues 5 and 7 of the authors' repository,
# github.com/yaolu/Multi-XScience. Then what later work prints for the same paper (Table 4 of
# Caciularu et al., "Peek Across", ACL 2023, which follows Xiao et al., "PRIMERA", ACL 2022): they
# use rouge-score, as Textmill does, and report a far lower ROUGE-L, which depends on whether it
# is computed over whole texts or sentence by sentence.
PUBLISHED_MULTI_XSCIENCE: tuple[Published, ...] = (
    Published("Pointer-Generator", 34.11, 6.76, 30.63, "Lu et al., 2020"),
    Published("Lu et al. by rouge-score", 33.9, 6.8, 18.2, "Caciularu et al., 2023"),
)
