r"""Formats: which fields a record has, and the prompt and the completion that they make.

One record of each, as JSON; the fields may as well be the columns of a CSV or TSV file, except
where they are lists or objects. Without a prompt, the whole text is learned.

================== ==============================================================================
format             a record, and what becomes of it (prompt | completion)
================== ==============================================================================
plain              a ``.txt`` file; blank lines part its texts: ``| {text}``
text               ``{"text": "Once upon a time …"}``: ``| {text}``
prompt_completion  ``{"prompt": "2 + 2 =", "completion": " 4"}``: ``{prompt}|{completion}``,
                   verbatim: the space before the completion is the file's matter
question_answer    ``{"question": "Who?", "answer": "I."}``:
                   ``Question: {question}\nAnswer:| {answer}``
messages           ``{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", …}]}``:
                   see ``finetune.chats``
title_abstract     ``{"title": "On …", "abstract": "We …"}``:
                   ``Title: {title}\nAbstract:| {abstract}``
multi_xscience     ``{"abstract": "We …", "related_work": "As @cite_1 …", "ref_abstract": {…}}``:
                   ``Abstract: {abstract}\n\n{references}Related work:| {related_work}``, where
                   ``references`` is made by ``finetune.multi_xscience``
================== ==============================================================================

A template of one's own (data.prompt, data.completion) may name any field of the records, known
here or not; further fields do no harm. Knows nothing of tokens.
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
from textmill.finetune.records import Record, listed
from textmill.finetune.templates import Template

# By these fields a record's format is known; plain text is known by its extension.
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
# (prompt, completion); messages have their own way.
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
    """The format of a file or a dataset of the Hub, by its extension and its first record.

    Args:
        name: a path, or a Hub id.
        split: of the Hub's dataset, where the name has none.

    Raises:
        DataError: it cannot be read, or its fields are those of no format or of several.
    """
    records = _records(name, "auto", split)
    return _format_of(name, _first(name, records))


def format_read(options: DataOptions) -> str:
    """How the data are read, in a word: the format, ``template``, or several with commas.

    Raises:
        DataError: as ``detect``.
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
    """The examples of all files, in order.

    Args:
        names: paths or Hub ids, ``options.train`` or ``options.validation``.
        options: the format, and a template in place of the format's own. A completion without a
            prompt makes the whole text learned; a prompt without one has the format's completion.
        split: of a Hub id that names none: ``train`` or ``validation``.
        limit: take no more than the first so many.

    Returns:
        At least one example of each name, up to the limit.

    Raises:
        ConfigError: a template cannot be used.
        DataError: a file, a record or a field cannot be used; the message names the place.
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
    first = _first(name, records)
    template = own or _template(name, first, options)
    for record in chain([first], records):
        if template is None:
            parts = chat_parts(record)
        elif template.has_field("references") and "ref_abstract" in record.fields:
            computed = {"references": reference_text(record)}
            parts = template.parts(replace(record, computed=computed))
        else:
            parts = template.parts(record)
        yield Example(parts, record.place)


def _template(name: str, first: Record, options: DataOptions) -> Template | None:
    """The format's template, perhaps with another prompt; none for messages."""
    format_ = options.format if options.format != "auto" else _format_of(name, first)
    if format_ == "messages":
        if options.prompt is not None:
            raise ConfigError(
                "data.prompt does not go with messages, which are written out in turns. Leave it"
                " out, or give data.completion too, with other fields."
            )
        return None
    prompt, completion = TEMPLATES[format_]
    return Template.parse(prompt if options.prompt is None else options.prompt, completion)


def _records(name: str, format_: Format, split: str) -> Iterator[Record]:
    if is_hub_name(name):
        return read_hub_records(name, split)
    return read_records(name, is_plain=format_ == "plain")


def _first(name: str, records: Iterator[Record]) -> Record:
    first = next(records, None)
    if first is None:
        raise DataError(name, "holds nothing to learn from. Take it out, or fill it.")
    return first


def _format_of(name: str, record: Record) -> Format:
    if not is_hub_name(name) and extension_of(name) == ".txt":
        return "plain"
    matching = [format_ for format_, keys in FIELDS.items() if set(keys) <= set(record.fields)]
    if len(matching) == 1:
        return matching[0]
    known = "; ".join(f"{format_}: {', '.join(keys)}" for format_, keys in FIELDS.items())
    fits = "fit several formats" if matching else "fit no format"
    raise record.error(
        f"its fields, {listed(record.fields)}, {fits} ({known}). Choose one with --format, or name"
        " fields in templates: --completion, and --prompt for what comes before it."
    )
