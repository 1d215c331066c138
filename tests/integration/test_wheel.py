"""The wheel: one top-level package, with everything that the product reads at run time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".git", ".venv", "tests", "docs", "benchmarks", "build", "dist", "node_modules"}

NOT_READ = {"jsconfig.json"}  # only for tsc


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the sources: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT,
        source,
        symlinks=True,
        ignore=lambda _, names: [n for n in names if n in LEFT_OUT or n.startswith(".")],
    )
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains only the installed wheel."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True)
    return folder


def test_it_installs_exactly_one_top_level_package(installed: Path) -> None:
    names = {path.name for path in installed.iterdir()}
    packages = {n for n in names if n != "bin" and not n.endswith(".dist-info")}
    assert packages == {"textmill"}
    assert not any(path.is_symlink() for path in installed.rglob("*"))


@pytest.mark.parametrize(
    "name",
    [
        "adapters/arxiv-abstracts/adapter_model.safetensors",
        "core/catalog/default_models.toml",
        "engine/kernels/interface.cpp",
        "engine/kernels/decoder.h",
        "engine/kernels/simd/avx512.h",
        "migrations/versions/v0001_jobs.py",
        "py.typed",
        "web/static/css/base.css",
        "web/static/js/job.js",
        "web/templates/base.html",
    ],
)
def test_it_has_what_the_product_reads(wheel: Path, name: str) -> None:
    assert f"textmill/{name}" in zipfile.ZipFile(wheel).namelist()


def test_it_has_every_file_of_the_packages(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for link in (ROOT / "src" / "textmill").iterdir():
        if not link.is_symlink():
            continue
        for path in (ROOT / link.name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.name not in NOT_READ:
                assert f"textmill/{path.relative_to(ROOT)}" in inside


def test_the_command_runs_from_it(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    code = "import textmill, textmill.backend.app, textmill.engine; print(textmill.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(installed / "textmill" / "__init__.py")
    command = [sys.executable, "-P", "-m", "textmill", "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "generate" in done.stdout
