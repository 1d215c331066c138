"""The holdout: repeats, overlaps and the share, each against what was counted by hand."""

from __future__ import annotations

import random

import pytest

from textmill.finetune.errors import DataError
from textmill.finetune.examples import Example, Part, Place
from textmill.finetune.holdout import Repeat, Repeats, hold_out

LONG = " because the abstract is as long as this one and even longer."


def texts(*given: str, path: str = "data/train.csv") -> list[Example]:
    """Plain examples, the first at line 2, below a header."""
    return [
        Example((Part(text, is_learned=True),), Place(path, line))
        for line, text in enumerate(given, 2)
    ]


def answers(*given: tuple[str, str], path: str = "train.csv") -> list[Example]:
    return [
        Example((Part(prompt, is_learned=False), Part(completion, is_learned=True)), Place(path, n))
        for n, (prompt, completion) in enumerate(given, 2)
    ]


def read(examples: list[Example]) -> list[str]:
    return [example.text for example in examples]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a b", "a b"),
        ("a b", " A\n\tb "),
        ("caf\u00e9", "cafe\u0301"),
        ("STRASSE", "straße"),
        ("a\u00a0b", "a b"),
    ],
)
def test_texts_that_differ_in_case_space_or_composition_alone_are_repeats(
    first: str, second: str
) -> None:
    train, _, report = hold_out(
        texts(first, "other", second), texts("held", path="v.csv"), share=0.1, seed=0
    )
    assert read(train) == [first, "other"]
    assert report.train_repeats == Repeats(
        1, (Repeat(Place("data/train.csv", 4), Place("data/train.csv", 2)),)
    )
    assert report.sentences() == (
        "1 example dropped from train as repeats: train.csv:4 repeats train.csv:2.",
    )


def test_the_same_text_repeats_however_it_is_cut_into_parts() -> None:
    train, _, _ = hold_out(
        [*answers(("Q: a", " b")), *texts("Q: a b")], texts("held", path="v"), share=0.1, seed=0
    )
    assert len(train) == 1


def test_a_report_counts_every_repeat_and_shows_three() -> None:
    _, _, report = hold_out(texts(*"aaaaab"), texts("held", path="v"), share=0.1, seed=0)
    assert report.train_repeats.count == 4
    assert [repeat.place.line for repeat in report.train_repeats.samples] == [3, 4, 5]
    assert report.sentences()[0].endswith("train.csv:5 repeats train.csv:2, ….")


def test_train_gives_way_where_validation_has_the_same_text() -> None:
    train, validation, report = hold_out(
        texts("a", "b", "c"), texts("B", "d", path="v.csv"), share=0.1, seed=0
    )
    assert (read(train), read(validation)) == (["a", "c"], ["B", "d"])
    assert report.sentences() == (
        "1 example dropped from train because validation has the same:"
        " train.csv:3 repeats v.csv:2.",
    )


def test_train_gives_way_where_validation_has_the_same_long_completion() -> None:
    train, _, report = hold_out(
        answers(("Q1", LONG), ("Q2", " yes"), ("Q3", LONG[:50])),
        answers(("Q4", LONG.upper()), ("Q5", " yes"), ("Q6", LONG[:50]), path="v.csv"),
        share=0.1,
        seed=0,
    )
    assert [example.prompt for example in train] == ["Q2", "Q3"]
    assert report.overlaps == Repeats(1, (Repeat(Place("train.csv", 2), Place("v.csv", 2)),))


def test_repeats_within_validation_are_dropped_and_counted_apart() -> None:
    _, validation, report = hold_out(
        texts("a"), texts("b", "b", "c", path="v.csv"), share=0.1, seed=0
    )
    assert read(validation) == ["b", "c"]
    assert (report.train_repeats.count, report.validation_repeats.count) == (0, 1)


def test_without_anything_dropped_there_is_nothing_to_say() -> None:
    _, _, report = hold_out(texts("a"), texts("b", path="v"), share=0.1, seed=0)
    assert report.sentences() == ()


def test_a_share_is_held_out_after_repeats_are_gone_and_both_sides_keep_their_order() -> None:
    given = texts(*(str(number % 40) for number in range(80)))
    train, validation, report = hold_out(given, [], share=0.25, seed=7)
    assert (len(train), len(validation)) == (30, 10)
    assert {*read(train), *read(validation)} == {str(number) for number in range(40)}
    for side in (train, validation):
        assert [e.place.line for e in side] == sorted(e.place.line for e in side)
    assert (report.train_repeats.count, report.overlaps.count) == (40, 0)


def test_the_same_data_and_seed_give_the_same_split_in_whatever_order() -> None:
    given = texts(*map(str, range(100)))
    shuffled = random.Random(1).sample(given, k=len(given))
    splits = [
        set(read(hold_out(examples, [], share=0.2, seed=seed)[1]))
        for examples, seed in ((given, 3), (given, 3), (shuffled, 3), (given, 4))
    ]
    assert splits[0] == splits[1] == splits[2]
    assert splits[0] != splits[3]


def test_this_split_stays_what_it_was() -> None:
    _, validation, _ = hold_out(texts(*map(str, range(20))), [], share=0.2, seed=0)
    assert read(validation) == ["2", "4", "8", "15"]


@pytest.mark.parametrize("num_alike", [2, 4, 50])
def test_what_completes_alike_is_held_out_together_and_nothing_is_lost(num_alike: int) -> None:
    given = answers(*((f"Q{number}", LONG + str(number // num_alike)) for number in range(1000)))
    train, validation, report = hold_out(given, [], share=0.05, seed=0)
    assert not {e.completion for e in train} & {e.completion for e in validation}
    assert len(validation) == 50 // num_alike * num_alike
    assert len(train) + len(validation) == 1000
    assert report.overlaps.count == 0


def test_a_group_larger_than_the_share_is_held_out_where_all_are() -> None:
    given = answers(*((f"Q{number}", LONG + str(number > 30)) for number in range(100)))
    train, validation, _ = hold_out(given, [], share=0.05, seed=0)
    assert (len(train), len(validation)) == (69, 31)


def test_one_answer_to_everything_cannot_be_shared_out() -> None:
    given = answers(*((f"Q{number}", LONG) for number in range(9)))
    with pytest.raises(DataError, match="all examples have the same completion"):
        hold_out(given, [], share=0.1, seed=0)


def test_an_answer_that_many_prompts_share_is_no_copy_of_validations() -> None:
    given = answers(*((f"Q{number}", LONG + str(number // 4)) for number in range(8)))
    held = answers(("Q", LONG + "0"), path="v.csv")
    train, _, report = hold_out(given, held, share=0.1, seed=0)
    assert (len(train), report.overlaps.count) == (8, 0)


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (9, 1), (10, 1), (30, 2)])
def test_a_share_has_at_least_one_example(count: int, held: int) -> None:
    train, validation, _ = hold_out(texts(*map(str, range(count))), [], share=0.05, seed=0)
    assert (len(train), len(validation)) == (count - held, held)


def test_a_single_text_cannot_be_shared_out() -> None:
    with pytest.raises(DataError, match=r"train\.csv: holds a single text, of which no share"):
        hold_out(texts("a", "A"), [], share=0.1, seed=0)


def test_train_that_is_all_in_validation_is_refused() -> None:
    with pytest.raises(DataError, match=r"train\.csv: every example stands in validation too"):
        hold_out(texts("a", "b"), texts("b", "a", path="v"), share=0.1, seed=0)
