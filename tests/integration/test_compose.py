"""The container files: real settings and commands, fixed versions, no root.

``compose-spec`` validates against the Compose specification; the other tests are about Textmill.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from textmill.cli.main import textmill
from textmill.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: Any = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ["migrate", "web", "worker"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# The instructions of each stage of the Dockerfile.
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S))
TARGETS = ["web", "worker"]


def test_the_file_follows_the_compose_specification() -> None:
    merged = json.dumps(COMPOSE)  # the validator does not support YAML's merge keys
    parsed = PyCompose.from_json(merged)
    parsed.validate()
    assert sorted(parsed.service_names()) == ["migrate", "postgres", "redis", "web", "worker"]


def interpolated(text: str) -> str:
    """A value of the file with the defaults of its variables; passwords are ``secret``."""
    text = re.sub(r"\$\{\w+:\?[^}]*\}", "secret", text)
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", SERVICES)
def test_memory_and_processes_of_every_service_are_bounded(name: str) -> None:
    assert re.fullmatch(r"[1-9][0-9]*[mg]", SERVICES[name]["mem_limit"])
    assert SERVICES[name]["pids_limit"] > 0


def test_redis_has_a_password_that_its_health_check_knows() -> None:
    redis = SERVICES["redis"]
    password = redis["command"][redis["command"].index("--requirepass") + 1]
    assert password.startswith("${REDIS_PASSWORD:?")
    assert redis["environment"]["REDISCLI_AUTH"] == password


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_made_of_real_settings(name: str) -> None:
    environment = {
        key: interpolated(str(value)) for key, value in SERVICES[name]["environment"].items()
    }
    settings = Settings.from_environment(environment)
    assert settings.database_url == "postgresql+psycopg://textmill:secret@postgres:5432/textmill"
    assert settings.redis_url == "redis://:secret@redis:6379/0"
    assert settings.access == "local"
    given = {"TEXTMILL_ACCESS": "demo", "TEXTMILL_ALLOWED_HOSTS": "demo.example.org"}
    demo = Settings.from_environment(environment | given)
    assert demo.is_open


@pytest.mark.parametrize("name", OURS)
def test_the_command_is_one_of_textmills(name: str) -> None:
    assert SERVICES[name]["command"][0] in textmill.commands
    assert len(SERVICES[name]["command"]) == 1


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_is_root_or_gains_rights(name: str) -> None:
    service = SERVICES[name]
    assert str(service["user"]).split(":")[0] not in {"", "0", "root"}
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]
    assert re.search(r"\d", tag)
    assert "latest" not in tag


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_that_stays_has_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    if name == "migrate":
        assert check == {"disable": True}
        assert SERVICES[name]["restart"] == "no"
    else:
        assert check["test"][0] == "CMD"
        assert SERVICES[name]["restart"] == "unless-stopped"


def test_services_wait_for_what_they_need() -> None:
    healthy, completed = "service_healthy", "service_completed_successfully"
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": healthy}}
    for name in ("web", "worker"):
        wanted = {"migrate": {"condition": completed}, "redis": {"condition": healthy}}
        assert SERVICES[name]["depends_on"] == wanted


def test_the_worker_can_be_scaled() -> None:
    assert SERVICES["worker"]["deploy"]["replicas"] == 1
    assert "container_name" not in SERVICES["worker"]
    assert "ports" not in SERVICES["worker"]  # a fixed port would be taken by the first


def test_redis_never_evicts_and_data_is_in_named_volumes() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {mount.split(":")[0] for mount in mounts} == set(COMPOSE["volumes"])


def test_the_worker_drains_before_it_would_be_killed() -> None:
    settings = Settings.from_environment(
        {"TEXTMILL_DRAIN_SECONDS": SERVICES["worker"]["environment"]["TEXTMILL_DRAIN_SECONDS"]}
    )
    assert settings.drain_seconds < int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_the_image_of_its_role(name: str) -> None:
    role = "worker" if name == "worker" else "web"
    assert SERVICES[name]["build"]["target"] == role
    assert SERVICES[name]["image"].startswith(f"textmill-{role}:")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_installs_the_lock_of_its_role_with_hashes(target: str) -> None:
    build = STAGES[f"build-{target}"]
    assert f"--require-hashes --no-deps --requirement locks/{target}.txt" in build
    assert ("torch" in build) is (target == "worker")
    assert f"COPY --from=build-{target} " in STAGES[target]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_its_role_as_an_unprivileged_user(target: str) -> None:
    assert re.findall(r"^USER (\S+)", STAGES[target], re.M) == [SERVICES[target]["user"]]
    (command,) = re.findall(r"^CMD (\[.*\])", STAGES[target], re.M)
    assert json.loads(command) == SERVICES[target]["command"]


def test_every_base_image_has_a_version() -> None:
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) - STAGES.keys()
    assert bases
    assert all(re.search(r":\S*\d", base) for base in bases)
    assert "latest" not in DOCKERFILE


def test_the_web_image_is_the_default_and_has_the_health_check_of_the_service() -> None:
    assert list(STAGES)[-1] == "web"
    command = re.search(r"^HEALTHCHECK[^\[]*(\[.*\])", STAGES["web"], re.M | re.S)
    assert command is not None
    check = ["CMD", *json.loads(command[1].splitlines()[0])]
    assert check == SERVICES["web"]["healthcheck"]["test"]


def test_the_settings_in_the_image_are_real() -> None:
    pairs = dict(re.findall(r"^\s+(TEXTMILL_\w+)=(\S+)", DOCKERFILE, re.M))
    assert set(pairs) == {
        "TEXTMILL_HOME",
        "TEXTMILL_HOST",
        "TEXTMILL_ALLOWED_HOSTS",
        "TEXTMILL_LOG_FORMAT",
    }
    Settings.from_environment(pairs)


def test_the_build_context_contains_what_the_image_is_built_from() -> None:
    allowed = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.M))
    folders = {path.name for path in (ROOT / "src" / "textmill").iterdir() if path.is_symlink()}
    assert folders | {"src", "locks", "pyproject.toml"} <= allowed
    copied = " ".join(re.findall(r"^COPY (locks/\S.*) \./locks/$", DOCKERFILE, re.M)).split()
    assert copied
    for path in (*allowed, *copied):
        assert (ROOT / path).exists(), path
