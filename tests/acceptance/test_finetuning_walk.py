"""The commands of docs/finetuning.md, run verbatim against a running product."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.up import FIRST_START_SECONDS, Up, up_environment
from tests.servers import RedisServer
from tests.tiny_models import build_tiny_llama

ROOT = Path(__file__).parents[2]
SHOWN_URL = "http://127.0.0.1:8000"
SHOWN_COMMAND = ".venv/bin/textmill"
_SNIPPET = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)


@pytest.mark.timeout(300)
def test_the_commands_of_the_document_make_a_served_model_from_a_csv(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    home = tmp_path / "home"
    build_tiny_llama(home / "tiny", context_length=1024)
    # A tiny model under the name that the document uses.
    (home / "models.toml").write_text(
        '[[models]]\nname = "smollm2-135m"\nsource = "./tiny"\n', encoding="utf-8"
    )
    up = Up(up_environment(home, TEXTMILL_REDIS_URL=own_redis.url))
    assert up.process.stdout is not None
    try:
        up.await_ready(FIRST_START_SECONDS)
        output = run_snippets(tmp_path, up)
    finally:
        up.process.send_signal(signal.SIGTERM)
        up.finish()
        up.process.stdout.close()
    assert "--- example" in output
    assert re.search(r"^Bits per byte .*\d", output, re.MULTILINE), output
    assert re.search(r"^smollm2-135m ['\"]", output, re.MULTILINE), output
    assert re.search(r"^faq ['\"]", output, re.MULTILINE), output
    assert (tmp_path / "models" / "faq" / "loss.svg").is_file()


def run_snippets(folder: Path, up: Up) -> str:
    snippets = _SNIPPET.findall((ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8"))
    assert len(snippets) == 5
    script = "set -euo pipefail\n" + "\n".join(snippets)
    assert SHOWN_URL in script
    assert SHOWN_COMMAND in script
    script = script.replace(SHOWN_URL, f"http://127.0.0.1:{up.port}")
    script = script.replace(SHOWN_COMMAND, str(Path(sys.executable).with_name("textmill")))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,  # faq.csv, models/faq and run.json are written here
        capture_output=True,
        text=True,
        timeout=240,
        env=up.environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
