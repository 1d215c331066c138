"""Stop strings: the text ends before the first of them, and nothing of one is ever shown.

A stop string may name special tokens, which are no text: they are looked at in their place, beside
the text as it is shown, in which they are left out.
"""

from __future__ import annotations


class StopFilter:
    """Passes text on, holding back what may still become a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""  # with the names of special tokens
        self._shown: list[int] = []  # places in it that are text
        self.is_stopped = False

    def push(self, text: str, special: str = "") -> str:
        """The text that is safe to show now.

        Args:
            text: what comes next.
            special: the name of a special token that comes before it.
        """
        if not self._stops:
            return text
        self._held += special
        self._shown += range(len(self._held), len(self._held) + len(text))
        self._held += text
        # The stop that is complete first, whatever pieces the text comes in; then the longest.
        found = [place for stop in self._stops for place in self._places(stop)]
        if found:
            self.is_stopped = True
            return self._take(min(found)[1], rest=False)
        return self._take(min(self._begin(stop) for stop in self._stops), rest=True)

    def flush(self) -> str:
        """What was held back, when no stop string can come any more."""
        return self._take(len(self._held), rest=False)

    @property
    def _text(self) -> str:
        return "".join(self._held[place] for place in self._shown)

    def _places(self, stop: str) -> list[tuple[int, int]]:
        """Where a stop string ends and begins, with special tokens and without them."""
        at, in_text = self._held.find(stop), self._text.find(stop)
        found = [(at + len(stop), at)] if at >= 0 else []
        if in_text >= 0:
            last = self._shown[in_text + len(stop) - 1]
            found.append((last + 1, self._shown[in_text]))
        return found

    def _begin(self, stop: str) -> int:
        """Where the longest tail begins that a stop string begins with."""
        begin = len(self._held) - _overlap(self._held, stop)
        num_text = _overlap(self._text, stop)
        return min(begin, self._shown[-num_text]) if num_text else begin

    def _take(self, end: int, *, rest: bool) -> str:
        """The text before a place; what is behind it is kept, or dropped."""
        taken = "".join(self._held[place] for place in self._shown if place < end)
        self._shown = [place - end for place in self._shown if place >= end] if rest else []
        self._held = self._held[end:] if rest else ""
        return taken


def _overlap(text: str, stop: str) -> int:
    """Length of the longest tail of a text that a stop string begins with."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
