"""The model card of a fine-tuned model: Markdown under YAML, for its folder's README.md.

Writes what it is told; knows nothing of how it was found out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from textmill.finetune.evaluation import PUBLISHED_MULTI_XSCIENCE, Metrics, TextMetrics
from textmill.finetune.preparation import DataFile
from textmill.finetune.scoring import Score

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")
_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What was learned from, and what was held out.

    Attributes:
        format: how the files were read, in the words of ``data.format``.
        num_training: examples trained on.
        num_validation: examples held out.
        num_duplicates: dropped since the same text came before.
        num_overlapping: dropped from training since they are also held out.
        num_truncated: examples trained on that were cut.
        num_cut_tokens: what they lost in all.
        max_tokens: where they were cut.
    """

    files: tuple[DataFile, ...]
    format: str
    num_training: int
    num_validation: int
    num_duplicates: int
    num_overlapping: int
    num_truncated: int
    num_cut_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """How it was trained.

    Attributes:
        options: names and values as the configuration's file has them, for the table.
        num_steps: steps made.
        best_step: the step whose weights were kept, the best on validation.
        num_tokens: tokens seen, those of all passes together.
        seconds: of training, without evaluation.
        hardware: kind and number of the processors, never a machine's name.
    """

    method: Literal["lora", "full"]
    options: tuple[tuple[str, str], ...]
    num_steps: int
    best_step: int
    num_tokens: int
    seconds: float
    hardware: str


@dataclass(frozen=True, slots=True)
class CardFacts:
    """All that a card says.

    Attributes:
        base_model: its id on a hub, its package or its folder's name.
        license: of the base model, which its descendants inherit; ``None`` if unknown.
        library: what loads the folder.
        curve: file name of the loss curve beside the card; ``None`` for none.
        is_multi_xscience: whether the data are of that set, which has a published table.
    """

    name: str
    description: str
    base_model: str
    license: str | None
    library: Literal["peft", "transformers"]
    data: DataFacts
    training: TrainingFacts
    before: Metrics
    after: Metrics
    curve: str | None = None
    is_multi_xscience: bool = False


def model_card(facts: CardFacts) -> str:
    """The card's whole text.

    Args:
        facts: every string may hold anything; in the text it stands for itself.
    """
    sections = [
        _front_matter(facts),
        f"# {_plain(facts.name)}",
        _introduction(facts),
        _limits(facts),
        _data(facts.data),
        _training(facts),
        _evaluation(facts),
        _use(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    tags = ["textmill", "fine-tuned", *(["lora"] if facts.training.method == "lora" else [])]
    fields = [
        ("library_name", facts.library),
        ("base_model", facts.base_model),
        *([("license", facts.license)] if facts.license is not None else []),
        ("pipeline_tag", "text-generation"),
        ("tags", tags),
    ]
    # JSON's strings and lists are YAML's too.
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields), "---"])


def _introduction(facts: CardFacts) -> str:
    how = "low-rank adaptation (LoRA)" if facts.training.method == "lora" else "all its weights"
    said = f"{_plain(facts.description)}\n\n" if facts.description else ""
    return (
        f"{said}{_plain(facts.base_model)}, fine-tuned ({how}) with Textmill on"
        f" {facts.data.num_training:,} examples. It continues a prompt as those examples do."
    )


def _limits(facts: CardFacts) -> str:
    legal = (
        f"The base model's license ({_plain(facts.license)}) holds for it as well."
        if facts.license is not None
        else "The base model's license is not known to us; it holds for this model as well."
    )
    return f"""\
## Intended use and limits

For texts like those it was trained on, in the same form of prompt; on others it may be worse than
the base model. It writes what is likely, not what is true: facts, names and numbers must be
checked. What is one-sided or offensive in the base model or the data may show in its texts, and it
may repeat passages of the training data (see the share below). {legal}"""


def _data(data: DataFacts) -> str:
    files = _table(
        ("file", "used for", "rows", "SHA-256"),
        ((_plain(f.name), f.role, f"{f.num_rows:,}", _checksum(f)) for f in data.files),
        right=(2,),
    )
    return f"""\
## Data

{files}

Read as {_plain(data.format)}: {data.num_training:,} examples to train on, \
{data.num_validation:,} held out.

- {data.num_duplicates:,} dropped as duplicates of an earlier example
- {data.num_overlapping:,} dropped from training because they are also held out
- {data.num_truncated:,} cut at {data.max_tokens:,} tokens, {data.num_cut_tokens:,} tokens in all"""


def _checksum(file: DataFile) -> str:
    checksum = _code(file.sha256).replace("|", "\\|")
    return f"`{checksum}`" if checksum else "kept on the Hub"


def _training(facts: CardFacts) -> str:
    training = facts.training
    rows = ((_plain(name), _plain(value)) for name, value in training.options)
    curve = f"\n\n![Loss over the steps]({quote(facts.curve)})" if facts.curve else ""
    options = f"\n\n{_table(('option', 'value'), rows)}" if training.options else ""
    return f"""\
## Training

{training.num_steps:,} steps over {training.num_tokens:,} tokens in {_duration(training.seconds)} \
on {_plain(training.hardware)}. The weights are those after step {training.best_step:,}, the best \
on the held-out examples.{options}{curve}"""


# Label, number, digits, unit.
_LOSS_ROWS: tuple[tuple[str, Callable[[Score], float], int, str], ...] = (
    ("perplexity a token (lower is better)", lambda s: s.perplexity, 2, ""),
    ("bits per byte (lower is better)", lambda s: s.bits_per_byte, 4, ""),
)
_TEXT_ROWS: tuple[tuple[str, Callable[[TextMetrics], float], int, str], ...] = (
    ("ROUGE-1, F1", lambda t: 100 * t.rouge.rouge1, 2, ""),
    ("ROUGE-2, F1", lambda t: 100 * t.rouge.rouge2, 2, ""),
    ("ROUGE-L, F1", lambda t: 100 * t.rouge.rouge_l, 2, ""),
    ("distinct-1", lambda t: 100 * t.distinct1, 1, " %"),
    ("distinct-2", lambda t: 100 * t.distinct2, 1, " %"),
    ("distinct-3", lambda t: 100 * t.distinct3, 1, " %"),
    ("8-grams that stand in the training data", lambda t: 100 * t.memorised, 2, " %"),
)


def _evaluation(facts: CardFacts) -> str:
    before, after = facts.before, facts.after
    rows = [
        _compared(label, number(before.score), number(after.score), digits, unit)
        for label, number, digits, unit in _LOSS_ROWS
    ]
    explanations = []
    if before.texts is not None and after.texts is not None:
        rows += [
            _compared(label, number(before.texts), number(after.texts), digits, unit)
            for label, number, digits, unit in _TEXT_ROWS
        ]
        explanations.append(
            f"ROUGE, distinct-n and 8-grams are of {after.texts.num_texts:,} texts that Textmill's"
            " own engine wrote for held-out prompts. Of the held-out texts themselves,"
            f" {100 * after.texts.reference_memorised:.2f} % of the 8-grams stand in the training"
            " data: so many come by chance and common phrases."
        )
    if after.texts is not None and facts.is_multi_xscience:
        explanations.append(_published(facts, after.texts))
    parts = [
        "## Evaluation",
        f"On held-out examples, before and after training. The loss is over {after.num_examples:,}"
        f" examples, {after.score.num_tokens:,} tokens, of what is learned alone.",
        _table(("", "base model", "this model", "change"), rows, right=(1, 2, 3)),
        *explanations,
    ]
    return "\n\n".join(parts)


def _compared(label: str, old: float, new: float, digits: int, unit: str) -> tuple[str, ...]:
    change = f"{new - old:+.{digits}f}".replace("-", "−")
    points = " points" if unit else ""
    return (label, f"{old:.{digits}f}{unit}", f"{new:.{digits}f}{unit}", f"{change}{points}")


def _published(facts: CardFacts, texts: TextMetrics) -> str:
    """Our ROUGE beside what others printed."""
    ours = (texts.rouge.rouge1, texts.rouge.rouge2, texts.rouge.rouge_l)
    rows = [
        (_plain(p.system), str(p.rouge1), str(p.rouge2), str(p.rouge_l), p.source)
        for p in PUBLISHED_MULTI_XSCIENCE
    ]
    own = (_plain(facts.name), *(f"{100 * number:.2f}" for number in ours), "this card")
    table = _table(
        ("on Multi-XScience", "ROUGE-1", "ROUGE-2", "ROUGE-L", "from"),
        [*rows, own],
        right=(1, 2, 3),
    )
    held_out = [_plain(file.name) for file in facts.data.files if file.role != "training"]
    return (
        f"{table}\n\nThe published rows are of the whole test split, 5,093 examples; ours is of"
        f" {texts.num_texts:,} held out from {', '.join(held_out)}, and compares only where that"
        " is the test split. ROUGE-L depends on whether texts are taken whole, as by us, or"
        " sentence by sentence, which gives more; set it beside the row by rouge-score."
    )


def _use(facts: CardFacts) -> str:
    has_own = any(file.role == "validation" for file in facts.data.files)
    files = "--train FILE --validation FILE" if has_own else "--train FILE"
    return f"""\
## How to use

```
textmill register FOLDER
textmill generate "Your prompt" --model {_code(facts.name)}
```

`FOLDER` is the one that holds this card.

## How to reproduce

```
textmill finetune finetune.toml {files}
textmill finetune finetune.toml {files} --evaluate FOLDER
```

The first command trains anew, the second computes the figures above again for the folder that holds
this card. `finetune.toml`, beside it, has every option; the data files are those with the checksums
above."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; the cells are escaped already."""
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")


def _code(text: str) -> str:
    """Text for a stretch of code, on one line."""
    return " ".join(text.split()).replace("`", "'")


def _duration(seconds: float) -> str:
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h"
