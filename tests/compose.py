"""The services of docker-compose.yml and the values that Compose would give them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: Any = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DEPLOY = ROOT / "deploy"


def interpolated(value: str, given: dict[str, str] | None = None) -> str:
    """A value of the file as Compose reads it; a required variable is its own name by default."""
    values = given or {}

    def replace(match: re.Match[str]) -> str:
        name, operator, word = match.groups()
        if operator == ":+":
            return word if values.get(name) else ""
        return values.get(name) or (name if operator == ":?" else word)

    return re.sub(r"\$\{(\w+)(:[-?+])([^}]*)\}", replace, value).replace("$$", "$")


def environment_of(name: str, given: dict[str, str] | None = None) -> dict[str, str]:
    environment = SERVICES[name]["environment"]
    return {key: interpolated(str(value), given) for key, value in environment.items()}


def demo_env() -> dict[str, str]:
    """The variables of deploy/demo.env as Compose reads them, and a secret."""
    values: dict[str, str] = {}
    for line in (DEPLOY / "demo.env").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            values[name] = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], value)
    return values | {"TEXTMILL_SECRET": "s" * 48}


def redis_script() -> str:
    """The script that the service of Redis runs."""
    shell, option, script = SERVICES["redis"]["command"]
    assert (shell, option) == ("sh", "-c")
    return str(script).replace("$$", "$")
