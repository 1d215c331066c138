"""Stop strings: the text ends before the first of them, and no part of one is ever emitted.

A stop string may contain the names of special tokens, which are not part of the text. So stop
strings are searched for twice: in the text with the names of special tokens, and without them.
"""

from __future__ import annotations


class StopFilter:
    """Passes text on, and holds back the part that may become a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""  # text that is held back, with the names of special tokens
        self._visible: list[int] = []  # the positions in it that are not names
        self.is_stopped = False

    def push(self, text: str, special: str = "") -> str:
        """Add text, and return the text that can be emitted.

        Args:
            text: the next part of the text.
            special: the name of a special token that precedes it.
        """
        if not self._stops:
            return text
        self._held += special
        self._visible += range(len(self._held), len(self._held) + len(text))
        self._held += text
        # The stop string that ends first, however the text is split; of these, the longest.
        found = [span for stop in self._stops for span in self._spans(stop)]
        if found:
            self.is_stopped = True
            return self._release(min(found)[1], rest=False)
        return self._release(min(self._begin(stop) for stop in self._stops), rest=True)

    def flush(self) -> str:
        """Return the text that is held back, when the text has ended."""
        return self._release(len(self._held), rest=False)

    @property
    def _text(self) -> str:
        return "".join(self._held[place] for place in self._visible)

    def _spans(self, stop: str) -> list[tuple[int, int]]:
        """The (end, start) of a stop string, with the names of special tokens and without them."""
        at, in_text = self._held.find(stop), self._text.find(stop)
        found = [(at + len(stop), at)] if at >= 0 else []
        if in_text >= 0:
            last = self._visible[in_text + len(stop) - 1]
            found.append((last + 1, self._visible[in_text]))
        return found

    def _begin(self, stop: str) -> int:
        """The start of the longest suffix that is a prefix of a stop string."""
        begin = len(self._held) - _overlap(self._held, stop)
        num_text = _overlap(self._text, stop)
        return min(begin, self._visible[-num_text]) if num_text else begin

    def _release(self, end: int, *, rest: bool) -> str:
        """Return the text before a position, and keep or drop the rest."""
        released = "".join(self._held[place] for place in self._visible if place < end)
        self._visible = [place - end for place in self._visible if place >= end] if rest else []
        self._held = self._held[end:] if rest else ""
        return released


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of a text that is a prefix of a stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
