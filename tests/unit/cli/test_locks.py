"""The lock files hold what pyproject asks for, exactly, on every machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    found = [
        re.fullmatch(r"([a-z0-9-]+)==([\w.]+)( ; .+)?", line) for line in lines if line[0] != "#"
    ]
    assert None not in found, f"{name} has a line that is no exact pin"
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_an_exact_pin_without_a_local_version(name: str) -> None:
    assert pins(name)


@pytest.mark.parametrize(
    ("requirements", "locks"),
    [
        (PROJECT["dependencies"], ["requirements.lock"]),
        (PROJECT["optional-dependencies"]["dev"], ["requirements.lock", "requirements-dev.lock"]),
    ],
    ids=["run", "dev"],
)
def test_the_locks_hold_what_the_project_asks_for(
    requirements: list[str], locks: list[str]
) -> None:
    locked = {package: version for lock in locks for package, version in pins(lock).items()}
    for requirement in map(Requirement, requirements):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not locked: run make lock"
        assert requirement.specifier.contains(version), f"{requirement}: run make lock"


def test_no_package_is_in_two_locks() -> None:
    everywhere = [package for lock in LOCKS for package in pins(lock)]
    assert len(everywhere) == len(set(everywhere))
