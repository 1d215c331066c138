"""Stop strings: the text ends before the first of them, and nothing of one is ever shown."""

from __future__ import annotations


class StopFilter:
    """Passes text on, holding back what may still become a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The text that is safe to show now."""
        if not self._stops:
            return text
        self._held += text
        # The stop that is complete first, whatever pieces the text comes in; then the longest.
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.is_stopped = True
            safe, self._held = self._held[: min(found)[1]], ""
            return safe
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe

    def flush(self) -> str:
        """What was held back, when no stop string can come any more."""
        safe, self._held = self._held, ""
        return safe

    def _overlap(self, stop: str) -> int:
        """Length of the longest tail of what is held that a stop string begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
