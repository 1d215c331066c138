"""Runs the unit tests of the scripts with Node's test runner."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[2] / "web" / "static" / "js"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="Node.js is not on PATH")
@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("scripts/*.test.js")))
def test_the_scripts_pass_their_unit_tests(tmp_path: Path, name: str) -> None:
    # Node takes a .js file for a module only if a package.json says so.
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    shutil.copytree(SCRIPTS, tmp_path / "js")
    shutil.copytree(HERE / "scripts", tmp_path / "scripts")
    shutil.copytree(HERE / "cases", tmp_path / "cases")
    done = subprocess.run(
        [str(NODE), "--test", f"scripts/{name}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
