"""The model card of a fine-tuned model: Markdown with YAML front matter, for README.md.

Formats the facts that it is given (``finetune.card_facts``); knows nothing of where they come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from textmill.core.catalog.figures import ComparedFigure, compare_figures, duration_text
from textmill.finetune.card_facts import CardFacts, DataFacts
from textmill.finetune.data_files import DataFile
from textmill.finetune.metrics import PUBLISHED_MULTI_XSCIENCE, TextMetrics

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")


def model_card(facts: CardFacts) -> str:
    """Format a model card.

    Args:
        facts: the contents; strings may contain any characters, Markdown in them is escaped.
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
    # JSON strings and lists are valid YAML.
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields), "---"])


def _introduction(facts: CardFacts) -> str:
    how = "low-rank adaptation (LoRA)" if facts.training.method == "lora" else "all its weights"
    description = f"{_plain(facts.description)}\n\n" if facts.description else ""
    return (
        f"{description}{_plain(facts.base_model)}, fine-tuned ({how}) with Textmill on"
        f" {facts.data.num_training:,} examples. It continues a prompt as those examples do."
    )


def _limits(facts: CardFacts) -> str:
    license_ = (
        f"The base model's license ({_plain(facts.license)}) applies to this model as well."
        if facts.license is not None
        else "The base model's license is unknown; it applies to this model as well."
    )
    return f"""\
## Intended use and limits

The model is for texts like those it was trained on, with prompts in the same form; on other texts
it may be worse than the base model. It generates what is likely, not what is true: check facts,
names and numbers. Bias and offensive content of the base model or of the data may show in its
completions, and it may repeat passages of the training data (see the share below). {license_}"""


def _data(data: DataFacts) -> str:
    files = _table(
        ("file", "used for", "rows", "SHA-256"),
        ((_plain(f.name), f.role, f"{f.num_rows:,}", _checksum(f)) for f in data.files),
        right=(2,),
    )
    return f"""\
## Data

{files}

Read as {_plain(data.format)}: {data.num_training:,} training examples, \
{data.num_validation:,} held out.

- {data.num_duplicates:,} dropped as duplicates of an earlier example
- {data.num_overlapping:,} dropped from training because they are also held out
- {data.num_truncated:,} truncated to {data.max_tokens:,} tokens, \
{data.num_cut_tokens:,} tokens cut in all"""


def _checksum(file: DataFile) -> str:
    checksum = _code(file.sha256).replace("|", "\\|")
    return f"`{checksum}`" if checksum else "kept on the Hub"


def _training(facts: CardFacts) -> str:
    training = facts.training
    duration = duration_text(training.seconds)
    rows = ((_plain(name), _plain(value)) for name, value in training.options)
    curve = f"\n\n![Loss over the steps]({quote(facts.curve)})" if facts.curve else ""
    options = f"\n\n{_table(('option', 'value'), rows)}" if training.options else ""
    return f"""\
## Training

{training.num_steps:,} steps over {training.num_tokens:,} tokens in {duration} \
on {_plain(training.hardware)}. The weights are those after step {training.best_step:,}, which had \
the lowest loss on held-out examples.{options}{curve}"""


def _evaluation(facts: CardFacts) -> str:
    after = facts.after
    figures = compare_figures(facts.before.as_json(), after.as_json())
    rows = [(_title(f), f.before, f.after, f.change) for f in figures]
    parts = [
        "## Evaluation",
        "Figures on held-out examples, before and after training. Perplexity (per token) and bits"
        f" per byte are computed over {after.num_examples:,} examples with"
        f" {after.score.num_tokens:,} tokens, counting only the learned parts.",
        _table(("", "base model", "this model", "change"), rows, right=(1, 2, 3)),
    ]
    if facts.before.texts is not None and after.texts is not None:
        parts.append(_completion_note(after.texts))
    if after.texts is not None and facts.is_multi_xscience:
        parts.append(_published(facts, after.texts))
    return "\n\n".join(parts)


def _title(figure: ComparedFigure) -> str:
    return f"{figure.title} ({figure.note})" if figure.note else figure.title


def _completion_note(texts: TextMetrics) -> str:
    return (
        f"ROUGE (F1), distinct-n and memorised 8-grams are computed over {texts.num_texts:,}"
        " completions of held-out prompts, generated by Textmill's own engine. Memorised 8-grams"
        " are those that also occur in the training data. For comparison, the held-out texts"
        f" themselves share {100 * texts.reference_memorised:.2f} % of their 8-grams with the"
        " training data, by chance and through common phrases."
    )


def _published(facts: CardFacts, texts: TextMetrics) -> str:
    """This model's ROUGE beside published results."""
    own = (texts.rouge.rouge1, texts.rouge.rouge2, texts.rouge.rouge_l)
    rows: list[tuple[str, ...]] = [
        (_plain(p.system), str(p.rouge1), str(p.rouge2), str(p.rouge_l), p.source)
        for p in PUBLISHED_MULTI_XSCIENCE
    ]
    rows.append((_plain(facts.name), *(f"{100 * number:.2f}" for number in own), "this card"))
    table = _table(
        ("on Multi-XScience", "ROUGE-1", "ROUGE-2", "ROUGE-L", "from"),
        rows,
        right=(1, 2, 3),
    )
    held_out = [_plain(file.name) for file in facts.data.files if file.role != "training"]
    return (
        f"{table}\n\nThe published rows cover the whole test split, 5,093 examples. This model's"
        f" row covers {texts.num_texts:,} examples held out from {', '.join(held_out)} and is"
        " comparable only if that is the test split. ROUGE-L depends on whether it is computed over"
        " whole texts, as here, or sentence by sentence, which gives higher values; compare with"
        " the row by rouge-score."
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

`FOLDER` is the folder that contains this card.

## How to reproduce

```
textmill finetune finetune.toml {files}
textmill finetune finetune.toml {files} --evaluate FOLDER
```

The first command repeats the training; the second recomputes the figures above. `finetune.toml`, in
this folder, contains every option; the data files are those with the checksums above."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; the cells must be escaped already."""
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _plain(text: str) -> str:
    """Text escaped for Markdown, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")


def _code(text: str) -> str:
    """Text for a code span, on one line."""
    return " ".join(text.split()).replace("`", "'")
