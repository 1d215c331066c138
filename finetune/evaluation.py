"""How good a model is on held-out examples: the same measurements before and after training.

Loss on the held-out texts, and texts written for their prompts. Knows nothing of training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from textmill.engine.models.loading import LoadedModel
from textmill.engine.models.tokenizer import TextTokenizer
from textmill.finetune.config import EvaluationOptions
from textmill.finetune.examples import Example
from textmill.finetune.rouge import Rouge, distinct, memorised_shares, rouge
from textmill.finetune.scoring import Encode, Score, score
from textmill.finetune.writing import decoding_parameters, write_texts

# Of a plain text, to be continued: enough to show what it is about, short beside what is written.
OPENING_WORDS = 24
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """Of texts that the model wrote for held-out prompts.

    Attributes:
        num_texts: written and compared.
        num_skipped: examples passed over, whose prompt leaves no room in the model's context, or
            which are too short to be divided.
        rouge: against what stands in the held-out examples.
        distinct1: share of words that differ; distinct2 of pairs, distinct3 of triples.
        memorised: share of the 8-grams of words that stand in the training texts.
        reference_memorised: the same of the held-out texts, which nobody copied: what chance and
            common phrases come to.
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
    """One model, measured.

    Attributes:
        num_examples: held-out examples that the score was taken from.
        score: of their learned parts.
        texts: ``None`` where none were asked for, or could be written.
    """

    num_examples: int
    score: Score
    texts: TextMetrics | None

    def as_json(self) -> dict[str, Any]:
        """All numbers, for a report; shares and ROUGE from 0 to 1."""
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
    """ROUGE of another system as somebody printed it, in percent."""

    system: str
    rouge1: float
    rouge2: float
    rouge_l: float
    source: str


# The test split of Multi-XScience (Lu, Dong and Charlin, EMNLP 2020, arXiv:2010.14235). Only rows
# that could be checked against a source stand here. First the paper's Pointer-Generator, as its
# table is quoted in issues 5 and 7 of the authors' repository, github.com/yaolu/Multi-XScience.
# Then what later work prints for the same paper (Table 4 of Caciularu et al., "Peek Across", ACL
# 2023, which follows Xiao et al., "PRIMERA", ACL 2022): they use rouge-score, as we do, and get a
# far lower ROUGE-L, which depends on whether texts are taken whole or sentence by sentence.
PUBLISHED_MULTI_XSCIENCE: tuple[Published, ...] = (
    Published("Pointer-Generator", 34.11, 6.76, 30.63, "Lu et al., 2020"),
    Published("Lu et al. by rouge-score", 33.9, 6.8, 18.2, "Caciularu et al., 2023"),
)


@dataclass(frozen=True, slots=True)
class _Task:
    prompt: str
    reference: str


def evaluate(
    model: LoadedModel,
    examples: Sequence[Example],
    training_texts: Iterable[str],
    options: EvaluationOptions,
    *,
    encode: Encode,
    max_tokens: int,
    seed: int,
    num_slots: int,
) -> Metrics:
    """Measure a model; the same arguments give the same numbers.

    Args:
        model: must have been loaded for ``num_slots`` texts at least.
        examples: held out; the first ones are taken.
        training_texts: what was trained on, prompts included; gone through once, where texts are
            written.
        options: how much to measure.
        encode: how an example becomes tokens; see ``score``.
        max_tokens: of an example.
        seed: of the texts, where the strategy draws.
        num_slots: texts at once.

    Raises:
        ConfigError: no held-out token is left to count.
        TrainingError: the model gives numbers that are not finite, or cannot write.
    """
    scored = examples[: options.examples]
    found = score(model, scored, max_tokens, encode)
    tasks, num_skipped = _tasks(model, examples, options)
    if not tasks:
        return Metrics(len(scored), found, None)
    parameters = decoding_parameters(options.strategy, options.max_new_tokens, seed)
    texts = write_texts(model, [task.prompt for task in tasks], parameters, num_slots)
    references = [task.reference for task in tasks]
    memorised, reference_memorised = memorised_shares((texts, references), training_texts)
    written = TextMetrics(
        num_texts=len(texts),
        num_skipped=num_skipped,
        rouge=rouge(texts, references),
        distinct1=distinct(texts, 1),
        distinct2=distinct(texts, 2),
        distinct3=distinct(texts, 3),
        memorised=memorised,
        reference_memorised=reference_memorised,
    )
    return Metrics(len(scored), found, written)


def _tasks(
    model: LoadedModel, examples: Sequence[Example], options: EvaluationOptions
) -> tuple[list[_Task], int]:
    """The first prompts that can be continued at full length, and how many were passed over."""
    room = model.info.context_length - options.max_new_tokens
    made = (_task(example, model.tokenizer, options.max_new_tokens) for example in examples)
    found: list[_Task] = []
    num_skipped = 0
    for task in made if options.texts else ():
        if task is not None and 0 < len(model.tokenizer.encode(task.prompt)) <= room:
            found.append(task)
        else:
            num_skipped += 1
        if len(found) == options.texts:
            break
    return found, num_skipped


def _task(example: Example, tokenizer: TextTokenizer, max_new_tokens: int) -> _Task | None:
    """What to continue, and what stands there instead.

    A plain text has no prompt: its opening is taken, and of the rest as much as can be written.
    """
    if example.prompt:
        return _Task(example.prompt, example.completion) if example.completion.strip() else None
    places = list(islice(_WORD.finditer(example.text), 2 * OPENING_WORDS))
    num_opening = len(places) // 2
    if num_opening == 0:
        return None
    end = places[num_opening - 1].end()
    rest = tokenizer.encode(example.text[end:])[:max_new_tokens]
    return _Task(example.text[:end], tokenizer.decode(rest))
