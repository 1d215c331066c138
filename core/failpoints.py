"""Named points of the code at which a test may kill the process.

A process reads ``TEXTMILL_TEST_FAILPOINTS`` once, when it starts: the path of a folder. A file in
that folder arms the point of the same name, and the next process that reaches the point removes the
file and kills itself with SIGKILL. A file named ``POINT.always`` stays, so every process that
reaches the point dies. A file that is not empty contains a text; it applies only if the subject
of the point, such as a prompt, contains that text.

Without the variable, which no setting of the product has, reaching a point is one comparison.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

VARIABLE = "TEXTMILL_TEST_FAILPOINTS"
_FOLDER = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def reach(point: str, subject: str = "") -> None:
    """Die here if a test has armed this point for this subject."""
    if _FOLDER is not None and is_armed(_FOLDER, point, subject):
        os.kill(os.getpid(), signal.SIGKILL)


def is_armed(folder: Path, point: str, subject: str) -> bool:
    """Whether the point is armed for the subject; disarms a point that is armed once."""
    if _matches(folder / f"{point}.always", subject):
        return True
    once = folder / point
    if not _matches(once, subject):
        return False
    try:
        once.unlink()
    except FileNotFoundError:  # another process was here first
        return False
    return True


def _matches(file: Path, subject: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") in subject
    except FileNotFoundError:
        return False
