"""Each role runs with only the packages of its lock."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from textmill.cli.exits import EXIT_CONFIGURATION

ROOT = Path(__file__).resolve().parents[2]
_OF_EXTRAS = "textmill.backend.oidc."
_IMPORT_ALL = f"""
import importlib, pkgutil, sys
for root in sys.argv[1:]:
    package = importlib.import_module("textmill." + root)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.startswith({_OF_EXTRAS!r}):
            continue
        if not module.name.endswith(("__main__", "migrations.env")):
            importlib.import_module(module.name)
"""


def locked_here(*locks: str) -> list[str]:
    """The names of the packages that these locks install on this machine."""
    text = "\n".join((ROOT / "locks" / f"{lock}.txt").read_text() for lock in locks)
    lines = re.findall(r"^[a-z0-9-]+==[^\\\n]+", text, re.M)
    found = [Requirement(line) for line in lines]
    return [r.name for r in found if r.marker is None or r.marker.evaluate()]


def environment_of(folder: Path, *locks: str) -> dict[str, str]:
    """Variables with which Python finds only Textmill and the packages of these locks."""
    for name in locked_here(*locks):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    path = os.pathsep.join([str(ROOT / "src"), str(folder)])
    return {"PYTHONPATH": path, "PATH": os.environ["PATH"], "TEXTMILL_HOME": str(folder / "home")}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python without its own site-packages."""
    return subprocess.run(
        [sys.executable, "-P", "-S", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("locks", "packages"),
    [
        (("web",), ["backend", "cli", "core", "migrations", "tokenizing"]),
        (("worker", "torch"), ["worker", "engine", "cli", "core", "migrations", "tokenizing"]),
    ],
    ids=["web", "worker"],
)
def test_a_role_imports_all_its_modules(
    tmp_path: Path, locks: tuple[str, ...], packages: list[str]
) -> None:
    done = run(environment_of(tmp_path, *locks), "-c", _IMPORT_ALL, *packages)
    assert done.returncode == 0, done.stderr


def test_the_web_role_has_no_pytorch(tmp_path: Path) -> None:
    done = run(environment_of(tmp_path, "web"), "-c", "import torch")
    assert "No module named 'torch'" in done.stderr


def test_the_web_role_migrates_and_starts(tmp_path: Path) -> None:
    environment = environment_of(tmp_path, "web")
    done = run(environment, "-m", "textmill", "migrate")
    assert done.returncode == 0, done.stderr
    done = run(environment, "-m", "textmill", "web", "--help")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["web", "up"])
def test_single_sign_on_without_its_extra_stops_the_start(tmp_path: Path, command: str) -> None:
    environment = environment_of(tmp_path, "web") | {
        "TEXTMILL_ACCESS": "team",
        "TEXTMILL_ALLOWED_HOSTS": "team.example.org",
        "TEXTMILL_OIDC_ISSUER": "https://login.example.org",
        "TEXTMILL_OIDC_CLIENT_ID": "textmill",
        "TEXTMILL_OIDC_CLIENT_SECRET": "not-to-be-shown",
    }
    done = run(environment, "-m", "textmill", command)
    assert done.returncode == EXIT_CONFIGURATION
    assert "pip install 'textmill[oidc]'" in done.stderr
    assert "not-to-be-shown" not in done.stderr + done.stdout


def test_the_doctor_of_a_web_machine_leaves_the_workers_checks_out(tmp_path: Path) -> None:
    done = run(environment_of(tmp_path, "web"), "-m", "textmill", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "n/a   model     concerns the role worker, not installed here" in done.stdout
