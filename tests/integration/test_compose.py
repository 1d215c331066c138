"""The container files: real settings and commands, fixed versions, few rights.

``compose-spec`` validates against the Compose specification; the other tests are about Textmill.
"""

from __future__ import annotations

import json
import re

import pytest
from compose_spec import PyCompose

from tests.compose import (
    COMPOSE,
    DEPLOY,
    ROOT,
    SERVICES,
    demo_env,
    environment_of,
    interpolated,
    redis_script,
)
from textmill.cli.main import textmill
from textmill.core.settings import Settings

OURS = ["migrate", "web", "worker"]
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# The instructions of each stage of the Dockerfile.
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S))
TARGETS = ["web", "worker"]


def test_the_file_follows_the_compose_specification() -> None:
    # The validator supports neither YAML's merge keys nor variables in the names of images.
    merged = interpolated(json.dumps(COMPOSE))
    parsed = PyCompose.from_json(merged)
    parsed.validate()
    assert sorted(parsed.service_names()) == [
        "caddy",
        "migrate",
        "postgres",
        "redis",
        "web",
        "worker",
    ]


def test_every_variable_of_the_file_is_documented() -> None:
    variables = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert {"POSTGRES_IMAGE", "REDIS_IMAGE", "CADDY_IMAGE", "PYTHON_IMAGE"} <= variables
    documented = set(re.findall(r"^\| `(\w+)` \|", DEPLOYMENT, re.M))
    assert variables == documented & variables
    assert demo_env().keys() <= variables


@pytest.mark.parametrize("name", SERVICES)
def test_memory_and_processes_of_every_service_are_bounded(name: str) -> None:
    assert re.fullmatch(r"[1-9][0-9]*[mg]", interpolated(SERVICES[name]["mem_limit"]))
    assert SERVICES[name]["pids_limit"] > 0


def test_redis_has_a_password_that_its_health_check_knows() -> None:
    assert environment_of("redis") == {"REDISCLI_AUTH": "REDIS_PASSWORD"}
    assert "\nrequirepass $REDISCLI_AUTH\n" in redis_script()
    assert SERVICES["redis"]["healthcheck"]["test"] == ["CMD", "redis-cli", "-e", "ping"]


def test_the_database_has_a_superuser_of_another_name_and_password() -> None:
    environment = environment_of("postgres")
    assert environment == {
        "POSTGRES_USER": "postgres",
        "POSTGRES_PASSWORD": "POSTGRES_PASSWORD",
        "DATABASE_PASSWORD": "DATABASE_PASSWORD",
    }
    mounts = SERVICES["postgres"]["volumes"]
    assert "./deploy/postgres:/docker-entrypoint-initdb.d:ro" in mounts
    assert [path.name for path in (DEPLOY / "postgres").iterdir()] == ["role.sql"]
    # The server that runs these files listens on a socket alone and must not count as healthy.
    assert "--host=127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"]


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_made_of_real_settings(name: str) -> None:
    settings = Settings.from_environment(environment_of(name))
    assert (
        settings.database_url
        == "postgresql+psycopg://textmill:DATABASE_PASSWORD@postgres:5432/textmill"
    )
    assert settings.redis_url == "redis://:REDIS_PASSWORD@redis:6379/0"
    assert settings.access == "local"
    assert settings.trusted_proxies == 0


@pytest.mark.parametrize("name", OURS)
def test_demo_env_opens_every_service_to_strangers_behind_one_proxy(name: str) -> None:
    settings = Settings.from_environment(environment_of(name, demo_env()))
    assert settings.access == "demo"
    assert settings.allowed_hosts == ("demo.example.org",)
    assert settings.trusted_proxies == 1
    assert settings.secret == "s" * 48


def test_only_the_proxy_needs_the_profile_and_only_web_is_reached_by_it() -> None:
    assert {name: SERVICES[name].get("profiles") for name in SERVICES} == {
        name: ["demo"] if name == "caddy" else None for name in SERVICES
    }
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "web": ["127.0.0.1:8000:8000"],
        "caddy": ["80:80", "443:443", "443:443/udp"],
    }
    assert SERVICES["caddy"]["networks"] == ["front"]
    assert {name for name in SERVICES if "front" in SERVICES[name].get("networks", [])} == {
        "caddy",
        "web",
    }


def test_the_proxy_passes_requests_on_to_web_without_buffering() -> None:
    caddyfile = (DEPLOY / "Caddyfile").read_text()
    directives = re.sub(r"^\s*#.*$", "", caddyfile, flags=re.M)
    assert re.search(r"^\{\$TEXTMILL_DOMAIN\} \{$", directives, re.M)
    port = SERVICES["web"]["environment"]["TEXTMILL_PORT"]
    assert re.findall(r"reverse_proxy (\S+) \{", directives) == [f"web:{port}"]
    # Caddy flushes event streams by itself. With flush_interval -1 it would keep streams open that
    # their clients have left; compression would delay events.
    assert not re.search(r"flush_interval|encode|response_buffers", directives)
    assert "respond /metrics 404" in directives
    mounted = [mount.split(":")[0] for mount in SERVICES["caddy"]["volumes"]]
    assert [(ROOT / path).is_file() for path in mounted if path.startswith("./")] == [True, True]


@pytest.mark.parametrize("name", OURS)
def test_the_command_is_one_of_textmills(name: str) -> None:
    assert SERVICES[name]["command"][0] in textmill.commands
    assert len(SERVICES[name]["command"]) == 1


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_few_rights_and_gains_none(name: str) -> None:
    service = SERVICES[name]
    # Caddy's volumes belong to root, which has no other capability there.
    if name == "caddy":
        assert service["cap_add"] == ["NET_BIND_SERVICE"]
        assert service["read_only"]
    else:
        assert str(service["user"]).split(":")[0] not in {"", "0", "root"}
        assert "cap_add" not in service
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name: str) -> None:
    tag = interpolated(SERVICES[name]["image"]).partition(":")[2]
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
    assert {"maxmemory-policy noeviction", "appendonly yes"} <= set(redis_script().splitlines())
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith("./")}
    assert named == set(COMPOSE["volumes"])
    assert all(mount.endswith(":ro") for mount in mounts if mount.startswith("./"))


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


def test_the_image_of_web_can_sign_people_in() -> None:
    assert "--require-hashes --no-deps --requirement locks/oidc.txt" in STAGES["build-web"]


@pytest.mark.parametrize("name", ["web", "worker"])
def test_a_service_takes_further_settings_from_a_file_that_may_be_absent(name: str) -> None:
    assert SERVICES[name]["env_file"] == [{"path": "textmill.env", "required": False}]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_its_role_as_an_unprivileged_user(target: str) -> None:
    assert re.findall(r"^USER (\S+)", STAGES[target], re.M) == [SERVICES[target]["user"]]
    (command,) = re.findall(r"^CMD (\[.*\])", STAGES[target], re.M)
    assert json.loads(command) == SERVICES[target]["command"]


def test_every_base_image_has_a_version() -> None:
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.M))
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    bases = {re.sub(r"^\$\{(\w+)\}$", lambda m: defaults[m[1]], base) for base in stages}
    bases -= STAGES.keys()
    assert bases == {interpolated(SERVICES["web"]["build"]["args"]["PYTHON_IMAGE"])}
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
