"""The programs in examples/ run as they are against a running product."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.stack import Stack

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh"))
SHOWN = {
    "background.py": "incomplete: ",
    "completion.py": "40 tokens, finished by length",
    "completion.sh": '"object":"text_completion"',
    "logprobs.py": "%   of ",
    "retries.py": "",
    "several.py": "A Survey of Sampling:",
    "stream.py": "tokens with the prompt",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_runs(stack: Stack, name: str) -> None:
    settings = {
        "OPENAI_BASE_URL": f"{stack.url}/v1",
        "OPENAI_API_KEY": "none",
        "MODEL": "tiny-llama",
    }
    program = str(EXAMPLES / name)
    command = [sys.executable, program] if name.endswith(".py") else ["sh", program]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SHOWN[name] in done.stdout
    assert done.stdout.strip()


def test_the_readme_lists_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in PROGRAMS if f"`{name}`" not in text] == []
