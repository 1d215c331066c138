"""How good a model is on held-out examples, measured in the same way before and after training.

Computes the loss on held-out examples and generates completions of their prompts. Knows nothing of
training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from textmill.engine.models.loading import LoadedModel
from textmill.engine.models.tokenizer import TextTokenizer
from textmill.finetune.completions import decoding_parameters, generate_completions
from textmill.finetune.config import EvaluationOptions
from textmill.finetune.examples import Example
from textmill.finetune.metrics import Metrics, TextMetrics
from textmill.finetune.rouge import distinct, memorised_shares, rouge
from textmill.finetune.scoring import Encode, score

# The part of a plain text that serves as the prompt: enough to show the subject, and short compared
# with the completion.
OPENING_WORDS = 24
_WORD = re.compile(r"\S+")


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
        model: must have been loaded with at least ``num_slots`` slots.
        examples: held-out examples; the first ones are used.
        training_texts: the training texts, prompts included; iterated once, and only if completions
            are generated.
        options: how many examples and completions to measure.
        encode: converts an example into tokens; see ``score``.
        max_tokens: the maximum length of an example.
        seed: of the completions, if the strategy draws.
        num_slots: completions generated at once.

    Raises:
        ConfigError: no held-out token is left to count.
        TrainingError: the model's logits are not finite, or it cannot generate.
    """
    scored = examples[: options.examples]
    found = score(model, scored, max_tokens, encode)
    tasks, num_skipped = _tasks(model, examples, options)
    if not tasks:
        return Metrics(len(scored), found, None)
    parameters = decoding_parameters(options.strategy, options.max_new_tokens, seed)
    prompts = [task.prompt for task in tasks]
    completions = generate_completions(model, prompts, parameters, num_slots)
    references = [task.reference for task in tasks]
    texts = _compare(completions, references, training_texts, num_skipped)
    return Metrics(len(scored), found, texts)


def _compare(
    completions: list[str], references: list[str], training_texts: Iterable[str], num_skipped: int
) -> TextMetrics:
    shares = memorised_shares((completions, references), training_texts)
    return TextMetrics(
        num_texts=len(completions),
        num_skipped=num_skipped,
        rouge=rouge(completions, references),
        distinct1=distinct(completions, 1),
        distinct2=distinct(completions, 2),
        distinct3=distinct(completions, 3),
        memorised=shares[0],
        reference_memorised=shares[1],
    )


def _tasks(
    model: LoadedModel, examples: Sequence[Example], options: EvaluationOptions
) -> tuple[list[_Task], int]:
    """The first prompts that leave room for a full-length completion; how many were skipped."""
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
    """A prompt and the reference for its completion.

    A plain text has no prompt: its opening becomes the prompt, and as much of the rest as a
    completion can contain becomes the reference.
    """
    if example.prompt:
        return _Task(example.prompt, example.completion) if example.completion.strip() else None
    words = list(islice(_WORD.finditer(example.text), 2 * OPENING_WORDS))
    num_opening = len(words) // 2
    if num_opening == 0:
        return None
    end = words[num_opening - 1].end()
    rest = tokenizer.encode(example.text[end:])[:max_new_tokens]
    return _Task(example.text[:end], tokenizer.decode(rest))
