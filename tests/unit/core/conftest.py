"""Property tests: the same examples at every run, and no limit of time on a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("textmill", deadline=None, derandomize=True, database=None)
settings.load_profile("textmill")
