"""Stop strings that span tokens: they are removed, and no part of one is ever emitted."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from textmill.engine.stops import StopFilter

letters = st.text("ab\n", max_size=30)


@given(
    text=letters,
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=30),
)
def test_however_the_text_arrives_it_ends_before_a_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    pieces, at, i = [], 0, 0
    while at < len(text):
        pieces.append(text[at : at + cuts[i % len(cuts)]])
        at += cuts[i % len(cuts)]
        i += 1
    filter_ = StopFilter(tuple(stops))
    shown = ""
    for piece in pieces:
        shown += filter_.push(piece)
        assert not any(stop in shown for stop in stops)
        if filter_.is_stopped:
            break
    if filter_.is_stopped:
        assert any(text.startswith(shown + stop) for stop in stops)
    else:
        assert shown + filter_.flush() == text
        assert not any(stop in text for stop in stops)


def test_what_may_become_a_stop_is_held_back_and_no_more() -> None:
    filter_ = StopFilter(("\n\nTitle:", "END"))
    assert filter_.push("one\n") == "one"
    assert filter_.push("two\n\nTi") == "\ntwo"
    assert filter_.push("me EN") == "\n\nTime "
    assert filter_.push("D of it") == ""
    assert filter_.is_stopped


def test_the_earliest_stop_counts() -> None:
    filter_ = StopFilter(("later", "soon"))
    assert filter_.push("a soon b later") == "a "


def test_an_unfinished_stop_is_text_after_all() -> None:
    filter_ = StopFilter(("abc",))
    assert filter_.push("xab") == "x"
    assert filter_.flush() == "ab"
    assert filter_.flush() == ""


@given(
    text=letters,
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=30),
)
@example(text="aabba", stops=["abba", "bb"], cuts=[5])
def test_where_a_text_ends_does_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    """It ends with the stop that is complete first; of two that end together, the longer."""
    ends = [(at + len(s), at) for s in stops if (at := text.find(s)) >= 0]
    wanted = text[: min(ends)[1]] if ends else text
    filter_ = StopFilter(tuple(stops))
    shown, rest, sizes = "", text, itertools.cycle(cuts)
    while rest and not filter_.is_stopped:
        size = next(sizes)
        shown += filter_.push(rest[:size])
        rest = rest[size:]
        assert wanted.startswith(shown)  # what was shown is never taken back
    assert shown + filter_.flush() == wanted
    assert filter_.is_stopped == bool(ends)
