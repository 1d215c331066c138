"""Formats: valid and invalid files of each one, and their detection."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from textmill.finetune.config import DataOptions
from textmill.finetune.errors import ConfigError, DataError
from textmill.finetune.examples import Location, Part
from textmill.finetune.formats import describe_format, detect, read_examples


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write(folder: Path, name: str, content: str | bytes) -> str:
    """Write a file, compressed if its name ends with ``.gz``."""
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") else raw)
    return str(path)


def options(**given: Any) -> DataOptions:
    return DataOptions(train=("unused",), **given)


def read(path: str, **given: Any) -> list[list[tuple[str, bool]]]:
    """Each example as (text, is learned), part by part."""
    return [
        [(part.text, part.is_learned) for part in example.parts]
        for example in read_examples([path], options(**given))
    ]


def answered(prompt: str, completion: str) -> list[tuple[str, bool]]:
    return [(prompt, False), (completion, True)]


def plain(text: str) -> list[tuple[str, bool]]:
    return [(text, True)]


PAPER = {
    "aid": "math9912167",
    "mid": "1631980677",
    "abstract": "We study trees.",
    "related_work": "As in @cite_1 and @cite_16.",
    "ref_abstract": {
        "@cite_16": {"mid": "1481005306", "abstract": "Older\ntrees."},
        "@cite_2": {"mid": "2", "abstract": ""},
        "@cite_1": {"mid": "1", "abstract": "Oldest trees."},
    },
}
PAPER_COLUMNS = PAPER | {
    "ref_abstract": {
        "cite_N": ["@cite_16", "@cite_2", "@cite_1"],
        "mid": ["1481005306", "2", "1"],
        "abstract": ["Older\ntrees.", "", "Oldest trees."],
    }
}
PAPER_ROWS = PAPER | {
    "ref_abstract": [
        {"cite_N": "@cite_16", "mid": "1481005306", "abstract": "Older\ntrees."},
        {"cite_N": "@cite_2", "mid": "2", "abstract": None},
        {"cite_N": "@cite_1", "mid": "1", "abstract": "Oldest trees."},
    ]
}
PAPER_READ = answered(
    "Abstract: We study trees.\n\n@cite_16: Older trees.\n@cite_1: Oldest trees.\n\nRelated work:",
    " As in @cite_1 and @cite_16.",
)
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\n"},
        {"role": "assistant", "content": " Hello!"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye."},
    ]
}
CHAT_READ = [
    ("System: Be brief.\n\nUser: Hi\n\nAssistant:", False),
    (" Hello!", True),
    ("\n\nUser: Bye\n\nAssistant:", False),
    (" Bye.", True),
]
ARXIV = {"arxiv_id": "1", "title": "On X", "abstract": "We.", "categories": ["cs.CL"]}
ARXIV_READ = answered("Title: On X\nAbstract:", " We.")
FOX = "the fox, the dog"

GOOD = [
    (
        "plain",
        "a.txt",
        "One\n two\n\n \n\nThree\r\nfour",
        [plain("One\n two"), plain("Three\nfour")],
    ),
    ("plain", "a.txt.gz", "\ufeffOne\n", [plain("One")]),
    ("text", "a.jsonl", lines({"text": "A\n"}, {"text": "B", "n": 1}), [plain("A\n"), plain("B")]),
    ("text", "a.ndjson", "\ufeff\n" + lines({"text": "A\u2028B"}) + "\n", [plain("A\u2028B")]),
    ("text", "A.JSONL.GZ", '{"text": "ä"}\r\n', [plain("ä")]),
    ("text", "a.csv", f'id,text\n1,"{FOX}"\n2,B\n', [plain(FOX), plain("B")]),
    ("text", "a.csv", '\ufeff"text"\r\n"say ""A""\nB"\r\n\r\n', [plain('say "A"\nB')]),
    ("text", "a.tsv", f"text\tid\n{FOX}\t1\n", [plain(FOX)]),
    ("text", "a.json", '[{"text": "A"}, {"text": "B"}]', [plain("A"), plain("B")]),
    ("text", "a.json", '\n [\n {"text": "A"}\n]', [plain("A")]),
    ("text", "a.json", lines({"text": "A"}, {"text": "B"}), [plain("A"), plain("B")]),
    (
        "prompt_completion",
        "a.jsonl",
        lines({"prompt": "2 + 2 =", "completion": " 4"}, {"prompt": "a", "completion": "b"}),
        [answered("2 + 2 =", " 4"), answered("a", "b")],
    ),
    ("prompt_completion", "a.csv.gz", "prompt, completion\nA,B\n", [answered("A", "B")]),
    (
        "question_answer",
        "a.csv",
        "question,answer\nWho?,I\n",
        [answered("Question: Who?\nAnswer:", " I")],
    ),
    ("messages", "a.jsonl", lines(CHAT), [CHAT_READ]),
    ("messages", "a.json.gz", json.dumps([CHAT]), [CHAT_READ]),
    ("title_abstract", "a.jsonl.gz", lines(ARXIV), [ARXIV_READ]),
    ("title_abstract", "a.tsv.gz", "abstract\ttitle\nWe.\tOn X\n", [ARXIV_READ]),
    ("multi_xscience", "a.json.gz", json.dumps([PAPER]), [PAPER_READ]),
    ("multi_xscience", "a.json", json.dumps([PAPER_COLUMNS]), [PAPER_READ]),
    ("multi_xscience", "a.jsonl", lines(PAPER_ROWS), [PAPER_READ]),
    (
        "multi_xscience",
        "a.json",
        json.dumps([PAPER | {"ref_abstract": {"@cite_1": {"mid": "1", "abstract": " "}}}]),
        [answered("Abstract: We study trees.\n\nRelated work:", " As in @cite_1 and @cite_16.")],
    ),
]


@pytest.mark.parametrize(("format_", "name", "content", "examples"), GOOD)
def test_a_format_is_detected_and_read(
    tmp_path: Path, format_: str, name: str, content: str, examples: list[Any]
) -> None:
    path = write(tmp_path, name, content)
    assert detect(path) == format_
    assert read(path) == read(path, format=format_) == examples


BAD_FILES = [
    ("a.txt", "", ": contains no examples."),
    ("a.txt", " \n\n", ": contains no examples."),
    ("a.jsonl", "\n", ": contains no examples."),
    ("a.json", "", ": contains no examples."),
    ("a.json", "[]", ": contains no examples."),
    ("a.csv", "text\n", ": contains no examples."),
    ("a.parquet", "PAR1", ": the extension is unknown. Known extensions are .txt,"),
    ("README", "A", ": the extension is unknown."),
    ("a.txt", b"A\n\nB\xff", ", line 3: is not UTF-8: the byte 0xff at position 2 of the line."),
    (
        "a.jsonl",
        b'{"text": "A"}\n\xe9',
        ", line 2: is not UTF-8: the byte 0xe9 at position 1 of the line.",
    ),
    ("a.jsonl", lines({"text": "A"}) + "{'text'}", ", line 2: is not valid JSON: Expecting prop"),
    ("a.jsonl", '\n{"text": "A" 1}', ", line 2: is not valid JSON: Expecting ',' delimiter (col"),
    ("a.jsonl", "[1]", ", line 1: must be a JSON object with fields, but is a list."),
    ("a.jsonl", '"A"', ", line 1: must be a JSON object with fields, but is text."),
    ("a.jsonl", "[" * 100_000, ", line 1: cannot be read as JSON: "),
    ("a.jsonl", '{"text": ' + "1" * 5000 + "}", ", line 1: cannot be read as JSON: "),
    ("a.json", '[{"text": "A"},\n\n {]', ", line 3: is not valid JSON: Expecting property name "),
    (
        "a.json",
        '{\n "text": "A"}',
        "A .json file contains a list of objects, or one object per line.",
    ),
    ("a.json", '[{"text": "A"}, 7]', ", item 2: must be a JSON object with fields, but is a num"),
    (
        "a.csv",
        'text,id\n"A\nB",1\nC,D,2\n',
        ", line 4: the row has 3 cells, the header has 2 names.",
    ),
    ("a.csv", "text,id\nA\n", ", line 2: the row has 1 cells, the header has 2 names."),
    ("a.csv", 'text\nA\n"B', ", line 3: is not a valid table: unexpected end of data."),
    ("a.csv", 'text\n"A"B\n', ", line 2: is not a valid table: "),
    ("a.csv", "text,text\nA,B\n", ", line 1, field 'text': occurs twice in the header."),
    (
        "a.csv",
        ",frage\n0,Wer?\n",
        ", line 2: its fields, (no name), frage, match no format (text: text; prompt_completion:"
        " prompt, completion; ",
    ),
    (
        "a.jsonl",
        lines({"text": "A", "question": "Q", "answer": "A"}),
        ", line 1: its fields, text, question, answer, match several formats",
    ),
    ("a.jsonl", lines({"content": "A"}), "Choose a format with --format, or use templates"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_an_error_about_an_invalid_file_names_it_and_the_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}{message[0] if message[0] in ',:' else ''}")


def messages(*given: object) -> str:
    return lines(CHAT, {"messages": list(given)})


USER = {"role": "user", "content": "Hi"}
BAD_FIELDS = [
    ("a.jsonl", lines({"text": "A"}, {"txt": "B"}), 2, "text", "is missing; the line has txt."),
    ("a.jsonl", lines({"text": "A"}) + "\n" + lines({"text": " "}), 3, "text", "is blank; fill"),
    ("a.jsonl", lines({"text": 7}), 1, "text", "must be text, but is a number."),
    ("a.json", json.dumps([{"text": "A"}, {"text": None}]), 2, "text", "must be text, but is null"),
    ("a.csv", 'text,id\n"A\nB",1\n,2\n', 4, "text", "is blank; fill it, or remove the line."),
    (
        "a.jsonl",
        lines({"prompt": "A", "completion": ""}),
        1,
        "completion",
        "is blank; fill it, or remove the line.",
    ),
    (
        "a.jsonl",
        lines({"question": ["A"], "answer": "B"}),
        1,
        "question",
        "must be text, but is a list.",
    ),
    ("a.jsonl.gz", lines(ARXIV, ARXIV | {"title": ""}), 2, "title", "is blank"),
    ("a.jsonl", lines({"messages": "Hi"}), 1, "messages", "must be a list of messages, but is t"),
    (
        "a.jsonl",
        lines(CHAT, {"message": []}),
        2,
        "messages",
        "must be a list of messages, but is m",
    ),
    ("a.jsonl", messages(), 2, "messages", "contains no message."),
    ("a.jsonl", messages("Hi"), 2, "messages[0]", "must be an object, but is text."),
    ("a.jsonl", messages({"content": "Hi"}), 2, "messages[0].role", "is missing."),
    ("a.jsonl", messages(USER, {"role": "assistant"}), 2, "messages[1].content", "is missing."),
    (
        "a.jsonl",
        messages({"role": "tool", "content": "Hi"}),
        2,
        "messages[0].role",
        "must be system, user or assistant, but is 'tool'.",
    ),
    (
        "a.jsonl",
        messages(USER, {"role": "assistant", "content": ""}),
        2,
        "messages[1].content",
        "is blank.",
    ),
    (
        "a.jsonl",
        messages({"role": "user", "content": [{"type": "text"}]}),
        2,
        "messages[0].content",
        "must be text, but is a list.",
    ),
    (
        "a.jsonl",
        messages(USER, {"role": "assistant", "content": "A"}, USER),
        2,
        "messages[2].role",
        "the last message must be the assistant's, which is learned, but its role is user.",
    ),
    (
        "a.json",
        json.dumps([PAPER, PAPER | {"related_work": ""}]),
        2,
        "related_work",
        "is blank; fill it, or remove the item.",
    ),
    (
        "a.json",
        json.dumps([PAPER | {"ref_abstract": None}]),
        1,
        "ref_abstract",
        "must be an object, but is null.",
    ),
    (
        "a.json",
        json.dumps([PAPER | {"ref_abstract": {"@cite_1": "A"}}]),
        1,
        "ref_abstract.@cite_1",
        "must be an object, but is text.",
    ),
    (
        "a.json",
        json.dumps([PAPER | {"ref_abstract": {"@cite_1": {"mid": "1"}}}]),
        1,
        "ref_abstract.@cite_1.abstract",
        "is missing.",
    ),
    (
        "a.json",
        json.dumps([PAPER | {"ref_abstract": {"@cite_1": {"abstract": 1}}}]),
        1,
        "ref_abstract.@cite_1.abstract",
        "must be text, but is a number.",
    ),
    (
        "a.json",
        json.dumps([PAPER | {"ref_abstract": {"cite_N": ["1"], "abstract": []}}]),
        1,
        "ref_abstract.abstract",
        "must be a list of the same length as cite_N.",
    ),
    (
        "a.json",
        json.dumps([PAPER | {"ref_abstract": [{"abstract": "A"}]}]),
        1,
        "ref_abstract.0.cite_N",
        "is missing.",
    ),
]


@pytest.mark.parametrize(("name", "content", "line", "field", "message"), BAD_FIELDS)
def test_an_error_about_an_invalid_field_names_file_line_and_field(
    tmp_path: Path, name: str, content: str, line: int, field: str, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert (caught.value.path, caught.value.line, caught.value.field) == (path, line, field)
    unit = "item" if name == "a.json" else "line"
    assert str(caught.value).startswith(f"{path}, {unit} {line}, field {field!r}: {message}")


@pytest.mark.parametrize(
    "name", ["missing.jsonl", "missing.txt.gz", "./owner/missing", "../missing.md", "a/b/c"]
)
def test_a_missing_file_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(DataError) as caught:
        read(name)
    assert str(caught.value) == f"{name}: the file does not exist. Correct the path."


@pytest.mark.parametrize("name", ["a.jsonl", "data"])
def test_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: is a folder. Name the files in it"):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (lines({"text": "A"}).encode(), 1),
        (gzip.compress(lines(*[{"text": "A"}] * 9).encode(), mtime=0)[:-12], None),
        (gzip.compress(lines({"text": "A"}).encode(), mtime=0)[:12] + b"\xff" * 20, None),
    ],
    ids=["not compressed", "truncated", "corrupt"],
)
def test_an_error_about_a_corrupt_gzip_file_names_it(
    tmp_path: Path, raw: bytes, line: int | None
) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(raw)
    with pytest.raises(DataError, match="the gzip file is corrupt or truncated: ") as caught:
        read(str(path))
    assert line is None or caught.value.line == line


def test_a_cell_may_be_longer_than_the_default_limit_of_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text\n" + "long " * 50_000 + "\n")
    assert len(read(path)[0][0][0]) == 250_000


def test_the_location_of_a_record_is_its_first_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text\n\n"A\nB"\nC\n')
    plain = write(tmp_path, "a.txt", "\nA\nB\n\n\nC\n")
    examples = read_examples([path, plain], options())
    assert [example.location for example in examples] == [
        Location(path, 3),
        Location(path, 5),
        Location(plain, 2),
        Location(plain, 6),
    ]


def test_files_of_different_formats_are_read_in_order_up_to_the_limit(tmp_path: Path) -> None:
    first = write(tmp_path, "a.txt", "A\n\nB")
    second = write(tmp_path, "b.jsonl", lines(ARXIV, ARXIV))
    third = write(tmp_path, "c.jsonl", "broken")
    examples = read_examples([first, second, third], options(), limit=3)
    assert [example.text for example in examples] == ["A", "B", "Title: On X\nAbstract: We."]


def test_any_file_can_be_read_as_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path, "notes.md", "# A\n\nB")
    assert read(path, format="plain") == [plain("# A"), plain("B")]


def test_an_explicit_format_resolves_ambiguity(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", lines({"text": "A", "question": "Q", "answer": "A"}))
    assert read(path, format="question_answer") == [answered("Question: Q\nAnswer:", " A")]


class TestTemplates:
    def test_they_may_use_any_column(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", "Frage,Antwort\nWer?,Ich\n")
        given = {"prompt": "F: {Frage}\nA:", "completion": " {Antwort}"}
        assert read(path, **given) == [answered("F: Wer?\nA:", " Ich")]

    def test_without_a_prompt_the_whole_completion_is_learned(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", lines(ARXIV))
        assert read(path, completion="{title}\n{abstract}") == [plain("On X\nWe.")]

    def test_a_prompt_is_combined_with_the_completion_of_the_format(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", lines(ARXIV))
        assert read(path, prompt="{title}:") == [answered("On X:", " We.")]
        assert read(path, prompt="") == [plain(" We.")]

    def test_they_may_use_the_references_of_a_paper(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", lines(PAPER_COLUMNS))
        assert read(path, prompt="{references}", completion="{abstract}") == [
            answered("@cite_16: Older trees.\n@cite_1: Oldest trees.\n\n", "We study trees.")
        ]

    def test_they_are_applied_to_the_paragraphs_of_plain_text(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", "A\n\nB")
        assert read(path, completion="{text}\n") == [plain("A\n"), plain("B\n")]

    def test_an_error_names_a_missing_column(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", "Frage,Antwort\nWer?,Ich\n")
        with pytest.raises(DataError, match=r"line 2, field 'Anwort': is missing; the line has"):
            read(path, completion="{Anwort}")

    def test_a_prompt_cannot_be_combined_with_messages(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", lines(CHAT))
        with pytest.raises(ConfigError, match=r"data\.prompt cannot be combined with messages"):
            read(path, prompt="{messages}")

    @pytest.mark.parametrize("given", [{"completion": "{text"}, {"completion": ""}])
    def test_an_invalid_completion_is_refused(self, tmp_path: Path, given: dict[str, str]) -> None:
        path = write(tmp_path, "a.jsonl", lines({"text": "A"}))
        with pytest.raises(ConfigError, match=r"data\.completion"):
            read(path, **given)


def test_the_completion_of_a_chat_is_its_last_message(tmp_path: Path) -> None:
    (example,) = read_examples([write(tmp_path, "a.jsonl", lines(CHAT))], options())
    assert example.parts[-1] == Part(" Bye.", is_learned=True)
    assert example.completion == " Bye."
    assert example.prompt.endswith("Assistant: Hello!\n\nUser: Bye\n\nAssistant:")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "title_abstract, question_answer"),
        ({"format": "messages"}, "messages"),
        ({"completion": " {answer}"}, "template"),
    ],
)
def test_the_format_of_the_files_is_described(
    tmp_path: Path, options: dict[str, str], expected: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "A", "abstract": "B"}\n')
    (tmp_path / "b.csv").write_text("question,answer\nWho?,I.\n")
    given = {"train": (str(tmp_path / "a.jsonl"),), "validation": (str(tmp_path / "b.csv"),)}
    assert describe_format(DataOptions.model_validate(given | options)) == expected
