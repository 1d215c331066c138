"""Templates: the parts that they produce, and errors about invalid ones."""

from __future__ import annotations

import pytest

from textmill.finetune.errors import ConfigError, DataError
from textmill.finetune.examples import Location, Part
from textmill.finetune.records import Record
from textmill.finetune.templates import Template


def record(**fields: object) -> Record:
    return Record(Location("train.jsonl", 3), fields)


def test_a_prompt_and_a_completion_become_two_parts_and_the_second_is_learned() -> None:
    template = Template.parse("Title: {title}\nAbstract:", " {abstract}")
    assert template.parts(record(title="On X", abstract="We.", year=2019)) == (
        Part("Title: On X\nAbstract:", is_learned=False),
        Part(" We.", is_learned=True),
    )


@pytest.mark.parametrize("prompt", [None, ""])
def test_without_a_prompt_the_whole_text_is_learned(prompt: str | None) -> None:
    assert Template.parse(prompt, "{text}").parts(record(text=" A\n")) == (
        Part(" A\n", is_learned=True),
    )


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("{a}{b c}{a}", "12 words1"),
        ("{{a}} {a}", "{a} 1"),
        ("{{{a}}}", "{1}"),
        ('{{"key": "{a}"}}\n', '{"key": "1"}\n'),
        ("  {a}\t", "  1\t"),
        ("{größe}", "ä"),
    ],
)
def test_the_text_around_fields_is_used_verbatim(completion: str, text: str) -> None:
    (part,) = Template.parse(None, completion).parts(
        Record(Location("a", 1), {"a": "1", "b c": "2 words", "größe": "ä"})
    )
    assert part.text == text


def test_braces_in_a_value_are_not_fields() -> None:
    (part,) = Template.parse(None, "{a}").parts(record(a="{b} {{", b="secret"))
    assert part.text == "{b} {{"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Say {text", "data.prompt: the brace { at character 5 is not closed. Write {{"),
        ("Say text}", "data.prompt: the brace } at character 9 has no opening brace. Write }}"),
        ("{a{text}}", "the brace { at character 1 is not closed"),
        ("{}", "{} is not a field"),
        ("{text.__class__}", "{text.__class__} is not a field"),
        ("{text[0]}", "{text[0]} is not a field"),
        ("{text!r}", "{text!r} is not a field"),
        ("{text:>10}", "{text:>10} is not a field"),
        ("{ text }", "without spaces around it"),
    ],
)
def test_an_error_about_an_invalid_prompt_says_how_to_correct_it(
    template: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Template.parse(template, "{text}")
    assert message in str(caught.value)


@pytest.mark.parametrize("completion", ["", "The end.", "{{text}}"])
def test_a_completion_without_a_field_is_refused(completion: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.completion contains no \{field\}"):
        Template.parse("{text}", completion)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"question": "Who?", "id": "7"},
            "is missing; the line has question, id.",
        ),
        ({}, "is missing; the line has no fields."),
        ({"answer": " \n"}, "is blank; fill it, or remove the line."),
        ({"answer": None}, "must be text, but is null."),
        ({"answer": 42}, "must be text, but is a number."),
        ({"answer": True}, "must be text, but is true or false."),
        ({"answer": ["a"]}, "must be text, but is a list."),
        ({"answer": {"text": "a"}}, "must be text, but is an object."),
        ({"answer": "\ud83d"}, "contains half of a surrogate pair; write the whole character."),
    ],
)
def test_an_error_about_an_invalid_value_names_file_line_and_field(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        Template.parse(None, "{answer}").parts(record(**fields))
    assert str(caught.value) == f"train.jsonl, line 3, field 'answer': {message}"
    assert (caught.value.path, caught.value.line, caught.value.field) == (
        "train.jsonl",
        3,
        "answer",
    )


def test_a_computed_field_may_be_blank_but_the_completion_must_not() -> None:
    blank = Record(Location("a.json", 1), {"text": "A"}, unit="item", computed={"references": ""})
    assert Template.parse("{references}", "{text}").parts(blank) == (Part("A", is_learned=True),)
    with pytest.raises(DataError, match=r"a\.json, item 1: the completion is blank"):
        Template.parse("{text}", " {references}").parts(blank)
