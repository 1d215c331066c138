r"""Formats: the fields of a record, and the prompt and completion that they become.

The table shows one record of each format as JSON. Fields that are not lists or objects may also be
columns of a CSV or TSV file. Without a prompt, the whole text is learned.

================== ==============================================================================
format             a record, and its example (prompt | completion)
================== ==============================================================================
plain              a ``.txt`` file; blank lines separate its texts: ``| {text}``
text               ``{"text": "Once upon a time …"}``: ``| {text}``
prompt_completion  ``{"prompt": "2 + 2 =", "completion": " 4"}``: ``{prompt}|{completion}``,
                   verbatim: the file provides the space before the completion
question_answer    ``{"question": "Who?", "answer": "I."}``:
                   ``Question: {question}\nAnswer:| {answer}``
messages           ``{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", …}]}``:
                   see ``finetune.chats``
title_abstract     ``{"title": "On …", "abstract": "We …"}``:
                   ``Title: {title}\nAbstract:| {abstract}``
multi_xscience     ``{"abstract": "We …", "related_work": "As @cite_1 …", "ref_abstract": {…}}``:
                   ``Abstract: {abstract}\n\n{references}Related work:| {related_work}``, where
                   ``references`` comes from ``finetune.multi_xscience``
================== ==============================================================================

A custom template (data.prompt, data.completion) may use any field of the records; other fields are
ignored. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from types import MappingProxyType

from textmill.finetune.chats import chat_parts
from textmill.finetune.config import DataOptions, Format
from textmill.finetune.errors import ConfigError, DataError
from textmill.finetune.examples import Example
from textmill.finetune.files import extension_of, read_records
from textmill.finetune.hub import is_hub_name, read_hub_records
from textmill.finetune.multi_xscience import reference_text
from textmill.finetune.records import Record, join_names
from textmill.finetune.templates import Template

# The fields that identify a format; plain text is identified by its extension.
FIELDS: MappingProxyType[Format, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("text",),
        "prompt_completion": ("prompt", "completion"),
        "question_answer": ("question", "answer"),
        "messages": ("messages",),
        "title_abstract": ("title", "abstract"),
        "multi_xscience": ("abstract", "related_work", "ref_abstract"),
    }
)
# Format → (prompt, completion). Messages are not formatted by a template.
TEMPLATES: MappingProxyType[Format, tuple[str, str]] = MappingProxyType(
    {
        "plain": ("", "{text}"),
        "text": ("", "{text}"),
        "prompt_completion": ("{prompt}", "{completion}"),
        "question_answer": ("Question: {question}\nAnswer:", " {answer}"),
        "title_abstract": ("Title: {title}\nAbstract:", " {abstract}"),
        "multi_xscience": (
            "Abstract: {abstract}\n\n{references}Related work:",
            " {related_work}",
        ),
    }
)


def detect(name: str, *, split: str = "train") -> Format:
    """Detect the format of a file or a Hub dataset from its extension and its first record.

    Args:
        name: a path, or a Hub id.
        split: the split of the Hub dataset if the name has none.

    Raises:
        DataError: the data cannot be read, or their fields match no format or several.
    """
    records = _records(name, "auto", split)
    return _format_of(name, _first_record(name, records))


def describe_format(options: DataOptions) -> str:
    """How the data are read: a format, ``template``, or several formats separated by commas.

    Raises:
        DataError: see ``detect``.
    """
    if options.completion is not None:
        return "template"
    if options.format != "auto":
        return options.format
    found = [detect(name) for name in options.train]
    found += [detect(name, split="validation") for name in options.validation]
    return ", ".join(dict.fromkeys(found))


def read_examples(
    names: Sequence[str], options: DataOptions, *, split: str = "train", limit: int | None = None
) -> list[Example]:
    """Read the examples of all files, in order.

    Args:
        names: paths or Hub ids: ``options.train`` or ``options.validation``.
        options: the format, and optionally a template that replaces the format's. With a completion
            but no prompt, the whole text is learned. With a prompt but no completion, the
            completion is the format's.
        split: the split of Hub ids that have none: ``train`` or ``validation``.
        limit: read at most this many examples.

    Returns:
        At least one example of each name, up to the limit.

    Raises:
        ConfigError: a template is invalid.
        DataError: a file, a record or a field is invalid; the message names the location.
    """
    own = (
        Template.parse(options.prompt, options.completion)
        if options.completion is not None
        else None
    )
    found = chain.from_iterable(_examples(name, options, own, split) for name in names)
    return list(islice(found, limit))


def _examples(
    name: str, options: DataOptions, own: Template | None, split: str
) -> Iterator[Example]:
    records = _records(name, options.format, split)
    first = _first_record(name, records)
    template = own or _template(name, first, options)
    for record in chain([first], records):
        if template is None:
            parts = chat_parts(record)
        elif template.has_field("references") and "ref_abstract" in record.fields:
            computed = {"references": reference_text(record)}
            parts = template.parts(replace(record, computed=computed))
        else:
            parts = template.parts(record)
        yield Example(parts, record.location)


def _template(name: str, first: Record, options: DataOptions) -> Template | None:
    """The format's template, with ``data.prompt`` if it is given; ``None`` for messages."""
    format_ = options.format if options.format != "auto" else _format_of(name, first)
    if format_ == "messages":
        if options.prompt is not None:
            raise ConfigError(
                "data.prompt cannot be combined with messages, which are written turn by turn."
                " Omit it, or give data.completion as well, with other fields."
            )
        return None
    prompt, completion = TEMPLATES[format_]
    return Template.parse(prompt if options.prompt is None else options.prompt, completion)


def _records(name: str, format_: Format, split: str) -> Iterator[Record]:
    if is_hub_name(name):
        return read_hub_records(name, split)
    return read_records(name, is_plain=format_ == "plain")


def _first_record(name: str, records: Iterator[Record]) -> Record:
    first = next(records, None)
    if first is None:
        raise DataError(name, "contains no examples. Remove it, or fill it.")
    return first


def _format_of(name: str, record: Record) -> Format:
    if not is_hub_name(name) and extension_of(name) == ".txt":
        return "plain"
    matching = [format_ for format_, keys in FIELDS.items() if set(keys) <= set(record.fields)]
    if len(matching) == 1:
        return matching[0]
    known = "; ".join(f"{format_}: {', '.join(keys)}" for format_, keys in FIELDS.items())
    match = "match several formats" if matching else "match no format"
    raise record.error(
        f"its fields, {join_names(record.fields)}, {match} ({known}). Choose a format with"
        " --format, or use templates with the names of fields: --completion, and optionally"
        " --prompt."
    )
