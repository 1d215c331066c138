"""Ask pip-audit for known vulnerabilities of the packages that the images install.

Usage: ``python scripts/audit_packages.py [OPTION …]`` in the development environment; the options
are passed on to pip-audit. The exit status is 1 if a package has a known vulnerability. It is 0 if
the service of vulnerabilities cannot be asked: the output then begins with ``pip-audit: not run``.

A mirror of PyPI may answer without knowing any vulnerability, which pip-audit reports as a success.
So the script first asks for a version whose vulnerabilities are published.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# pip-audit does not read locks with hashes and without in one call.
LOCKS = (("locks/web.txt", "locks/worker.txt"), ("locks/torch.txt",))
KNOWN_BAD = "jinja2==2.10"  # CVE-2019-10906 and later ones
LIMIT_SECONDS = 60.0  # for all calls together, so that CI never waits long for a service
REQUEST_SECONDS = 10


class NotRun(Exception):
    """The service did not answer; the message says why."""


class BadLocks(Exception):
    """pip-audit cannot read the locks; the message is its own."""


@dataclass(frozen=True)
class Report:
    """What pip-audit found, in any order.

    Attributes:
        packages: the names of all packages.
        vulnerabilities: a line of text for each.
        unknown: the names of the packages that the service does not know.
    """

    packages: set[str] = field(default_factory=set)
    vulnerabilities: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def __or__(self, other: Report) -> Report:
        """Both reports in one."""
        return Report(
            self.packages | other.packages,
            self.vulnerabilities | other.vulnerabilities,
            self.unknown | other.unknown,
        )


def main(options: Sequence[str]) -> int:
    """Audit the locks and print one line for each vulnerability."""
    deadline = time.monotonic() + LIMIT_SECONDS
    report = Report()
    try:
        _check_locks(deadline)
        _check_service(options, deadline)
        for locks in LOCKS:
            report |= _audit([*_requirements(locks), *options], deadline)
    except NotRun as reason:
        _say(f"not run: {reason}")
        if not report.vulnerabilities:
            return 0
    except BadLocks as error:
        _say(f"the locks cannot be read: {error}")
        return 2
    for line in sorted(report.vulnerabilities):
        _say(line)
    if report.unknown:
        _say(f"not known to the service: {', '.join(sorted(report.unknown))}")
    _say(f"{len(report.vulnerabilities)} vulnerabilities in {len(report.packages)} packages")
    return 1 if report.vulnerabilities else 0


def _requirements(locks: Sequence[str]) -> list[str]:
    return [f"--requirement={ROOT / lock}" for lock in locks]


def _check_locks(deadline: float) -> None:
    """Read the locks without a network, so that later failures are the service's."""
    for locks in LOCKS:
        done = _run([*_requirements(locks), "--dry-run"], deadline)
        if done.returncode != 0:
            raise BadLocks(_last_line(done.stderr))


def _check_service(options: Sequence[str], deadline: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known-bad.txt"
        path.write_text(KNOWN_BAD + "\n")
        report = _audit([f"--requirement={path}", *options], deadline)
    if not report.vulnerabilities:
        raise NotRun(f"the service does not know the vulnerabilities of {KNOWN_BAD}")


def _audit(options: Sequence[str], deadline: float) -> Report:
    done = _run(options, deadline)
    try:
        return _read(done.stdout)
    except (ValueError, KeyError, TypeError):  # it ended before it wrote its report
        raise NotRun(_last_line(done.stderr)) from None


def _run(options: Sequence[str], deadline: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format=json"]
    command += ["--progress-spinner=off", f"--timeout={REQUEST_SECONDS}", *options]
    remaining = max(deadline - time.monotonic(), 0.1)
    try:
        return subprocess.run(  # noqa: S603 - a fixed program with this file's options
            command, capture_output=True, text=True, timeout=remaining, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotRun(f"no complete answer within {LIMIT_SECONDS:.0f} s") from None


def _read(text: str) -> Report:
    packages = {package["name"]: package for package in json.loads(text)["dependencies"]}
    return Report(
        packages=set(packages),
        vulnerabilities={
            f"{name} {package['version']}: {found['id']}, {_mended(found['fix_versions'])}"
            for name, package in packages.items()
            for found in package.get("vulns", [])
        },
        unknown={name for name, package in packages.items() if "skip_reason" in package},
    )


def _mended(versions: Sequence[str]) -> str:
    return f"fixed in {', '.join(versions)}" if versions else "not fixed in any version"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "pip-audit wrote nothing"


def _say(text: str) -> None:
    sys.stdout.write(f"pip-audit: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
