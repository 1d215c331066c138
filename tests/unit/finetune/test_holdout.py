"""The holdout: duplicates, overlaps and the share, against counts made by hand."""

from __future__ import annotations

import random

import pytest

from textmill.finetune.errors import DataError
from textmill.finetune.examples import Example, Location, Part
from textmill.finetune.holdout import Duplicate, Duplicates, hold_out

LONG = " because the abstract is as long as this one and even longer."


def texts(*given: str, path: str = "data/train.csv") -> list[Example]:
    """Plain examples, the first at line 2, below a header."""
    return [
        Example((Part(text, is_learned=True),), Location(path, line))
        for line, text in enumerate(given, 2)
    ]


def answers(*given: tuple[str, str], path: str = "train.csv") -> list[Example]:
    return [
        Example(
            (Part(prompt, is_learned=False), Part(completion, is_learned=True)), Location(path, n)
        )
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
def test_texts_that_differ_only_in_case_space_or_composition_are_duplicates(
    first: str, second: str
) -> None:
    train, _, report = hold_out(
        texts(first, "other", second), texts("held", path="v.csv"), share=0.1, seed=0
    )
    assert read(train) == [first, "other"]
    assert report.train_duplicates == Duplicates(
        1, (Duplicate(Location("data/train.csv", 4), Location("data/train.csv", 2)),)
    )
    assert report.sentences() == (
        "1 example dropped from train as duplicates: train.csv:4 duplicates train.csv:2.",
    )


def test_the_same_text_is_a_duplicate_however_it_is_split_into_parts() -> None:
    train, _, _ = hold_out(
        [*answers(("Q: a", " b")), *texts("Q: a b")], texts("held", path="v"), share=0.1, seed=0
    )
    assert len(train) == 1


def test_a_report_counts_every_duplicate_and_shows_three() -> None:
    _, _, report = hold_out(texts(*"aaaaab"), texts("held", path="v"), share=0.1, seed=0)
    assert report.train_duplicates.count == 4
    assert [one.location.line for one in report.train_duplicates.samples] == [3, 4, 5]
    assert report.sentences()[0].endswith("train.csv:5 duplicates train.csv:2, ….")


def test_a_text_in_both_sets_is_dropped_from_train() -> None:
    train, validation, report = hold_out(
        texts("a", "b", "c"), texts("B", "d", path="v.csv"), share=0.1, seed=0
    )
    assert (read(train), read(validation)) == (["a", "c"], ["B", "d"])
    assert report.sentences() == (
        "1 example dropped from train because they are also in validation:"
        " train.csv:3 duplicates v.csv:2.",
    )


def test_a_long_completion_in_both_sets_is_dropped_from_train() -> None:
    train, _, report = hold_out(
        answers(("Q1", LONG), ("Q2", " yes"), ("Q3", LONG[:50])),
        answers(("Q4", LONG.upper()), ("Q5", " yes"), ("Q6", LONG[:50]), path="v.csv"),
        share=0.1,
        seed=0,
    )
    assert [example.prompt for example in train] == ["Q2", "Q3"]
    assert report.overlaps == Duplicates(
        1, (Duplicate(Location("train.csv", 2), Location("v.csv", 2)),)
    )


def test_duplicates_within_validation_are_dropped_and_counted_separately() -> None:
    _, validation, report = hold_out(
        texts("a"), texts("b", "b", "c", path="v.csv"), share=0.1, seed=0
    )
    assert read(validation) == ["b", "c"]
    assert (report.train_duplicates.count, report.validation_duplicates.count) == (0, 1)


def test_the_report_is_empty_if_nothing_was_dropped() -> None:
    _, _, report = hold_out(texts("a"), texts("b", path="v"), share=0.1, seed=0)
    assert report.sentences() == ()


def test_a_share_is_held_out_after_duplicates_are_dropped_and_both_sets_keep_their_order() -> None:
    given = texts(*(str(number % 40) for number in range(80)))
    train, validation, report = hold_out(given, [], share=0.25, seed=7)
    assert (len(train), len(validation)) == (30, 10)
    assert {*read(train), *read(validation)} == {str(number) for number in range(40)}
    for side in (train, validation):
        assert [e.location.line for e in side] == sorted(e.location.line for e in side)
    assert (report.train_duplicates.count, report.overlaps.count) == (40, 0)


def test_the_same_data_and_seed_give_the_same_split_in_any_order() -> None:
    given = texts(*map(str, range(100)))
    shuffled = random.Random(1).sample(given, k=len(given))
    splits = [
        set(read(hold_out(examples, [], share=0.2, seed=seed)[1]))
        for examples, seed in ((given, 3), (given, 3), (shuffled, 3), (given, 4))
    ]
    assert splits[0] == splits[1] == splits[2]
    assert splits[0] != splits[3]


def test_the_split_of_a_seed_never_changes() -> None:
    _, validation, _ = hold_out(texts(*map(str, range(20))), [], share=0.2, seed=0)
    assert read(validation) == ["2", "4", "8", "15"]


@pytest.mark.parametrize("num_alike", [2, 4, 50])
def test_examples_with_equal_completions_are_held_out_together_and_none_is_lost(
    num_alike: int,
) -> None:
    given = answers(*((f"Q{number}", LONG + str(number // num_alike)) for number in range(1000)))
    train, validation, report = hold_out(given, [], share=0.05, seed=0)
    assert not {e.completion for e in train} & {e.completion for e in validation}
    assert len(validation) == 50 // num_alike * num_alike
    assert len(train) + len(validation) == 1000
    assert report.overlaps.count == 0


def test_if_all_groups_are_larger_than_the_share_the_smallest_is_held_out() -> None:
    given = answers(*((f"Q{number}", LONG + str(number > 30)) for number in range(100)))
    train, validation, _ = hold_out(given, [], share=0.05, seed=0)
    assert (len(train), len(validation)) == (69, 31)


def test_data_with_a_single_completion_cannot_be_split() -> None:
    given = answers(*((f"Q{number}", LONG) for number in range(9)))
    with pytest.raises(DataError, match="all examples have the same completion"):
        hold_out(given, [], share=0.1, seed=0)


def test_a_completion_that_many_prompts_share_is_not_an_overlap() -> None:
    given = answers(*((f"Q{number}", LONG + str(number // 4)) for number in range(8)))
    held = answers(("Q", LONG + "0"), path="v.csv")
    train, _, report = hold_out(given, held, share=0.1, seed=0)
    assert (len(train), report.overlaps.count) == (8, 0)


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (9, 1), (10, 1), (30, 2)])
def test_a_share_has_at_least_one_example(count: int, held: int) -> None:
    train, validation, _ = hold_out(texts(*map(str, range(count))), [], share=0.05, seed=0)
    assert (len(train), len(validation)) == (count - held, held)


def test_a_single_text_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"train\.csv: contains only one text, so no share"):
        hold_out(texts("a", "A"), [], share=0.1, seed=0)


def test_a_train_set_that_is_entirely_in_validation_is_refused() -> None:
    with pytest.raises(DataError, match=r"train\.csv: every example is also in validation"):
        hold_out(texts("a", "b"), texts("b", "a", path="v"), share=0.1, seed=0)
