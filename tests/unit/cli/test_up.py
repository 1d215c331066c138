from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from textmill.cli import up
from textmill.cli.embedded_redis import EmbeddedRedis
from textmill.cli.supervisor import End
from textmill.core.settings import Settings


def settings(tmp_path: Path, **extra: str) -> Settings:
    return Settings.from_environment(
        {"TEXTMILL_HOME": str(tmp_path), **{f"TEXTMILL_{name}": extra[name] for name in extra}}
    )


def test_the_plan_has_redis_the_migration_web_and_each_worker(tmp_path: Path) -> None:
    redis = EmbeddedRedis(("redis-server", "redis.conf"), 7000, "secret")
    wanted = settings(tmp_path, WORKERS="2", PORT="9000", WORKER_METRICS_PORT="9100")
    plan = up.draw_plan(wanted, {"PATH": "/bin"}, redis)
    assert [spec.name for spec, _ in plan.prerequisites] == ["redis"]
    assert [spec.name for spec in plan.preparations] == ["migrate"]
    assert [spec.name for spec in plan.services] == ["web", "worker-1", "worker-2"]
    assert plan.ready_line == "Textmill is ready: http://127.0.0.1:9000"
    for spec in plan.services:
        assert spec.environment["TEXTMILL_REDIS_URL"] == redis.url
        assert spec.environment["TEXTMILL_HOME"] == str(tmp_path)
        assert spec.environment["PATH"] == "/bin"
    ports = [spec.environment["TEXTMILL_WORKER_METRICS_PORT"] for spec in plan.services[1:]]
    assert ports == ["9100", "9101"]


def test_a_redis_that_is_given_is_not_started(tmp_path: Path) -> None:
    plan = up.draw_plan(settings(tmp_path, REDIS_URL="redis://there:1/0"), {}, None)
    assert plan.prerequisites == ()
    assert plan.services[0].environment["TEXTMILL_REDIS_URL"] == "redis://there:1/0"


def test_a_long_drain_is_cut_to_fit_the_promised_end(tmp_path: Path) -> None:
    plan = up.draw_plan(settings(tmp_path, DRAIN_SECONDS="600"), {}, None)
    assert plan.services[0].environment["TEXTMILL_DRAIN_SECONDS"] == "20.0"


@pytest.mark.parametrize(
    ("host", "line"),
    [("0.0.0.0", "http://0.0.0.0:8000"), ("::1", "http://[::1]:8000")],
)
def test_the_ready_line_shows_the_host_as_it_was_set(tmp_path: Path, host: str, line: str) -> None:
    hosts = "127.0.0.1,localhost"
    plan = up.draw_plan(settings(tmp_path, HOST=host, ALLOWED_HOSTS=hosts), {}, None)
    assert plan.ready_line == f"Textmill is ready: {line}"


def test_the_children_can_read_every_setting_that_they_are_given(tmp_path: Path) -> None:
    plan = up.draw_plan(settings(tmp_path, SERVE="smollm2-135m", SLOTS="4"), {}, None)
    for spec in (*plan.preparations, *plan.services):
        Settings.from_environment(spec.environment)


def test_a_worker_that_ended_has_its_jobs_taken_back_and_web_has_none(tmp_path: Path) -> None:
    plan = up.draw_plan(settings(tmp_path, WORKERS="1"), {}, None)
    web, worker = plan.services
    assert plan.after_end(End(web, 7, "was ended by SIGKILL.", 1.0)) is None
    spec = plan.after_end(End(worker, 7, "was ended by SIGKILL.", 1.5))
    assert spec is not None
    command = ("recover-worker", "--", "worker-1", "7", "was ended by SIGKILL.", "1.5")
    assert spec.command[-6:] == command
    Settings.from_environment(spec.environment)


def test_the_inputs_change_with_the_models_file_and_with_a_models_own_files(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    (tmp_path / "m").mkdir()
    chosen = settings(tmp_path, MODELS=str(models))
    inputs = up.draw_plan(chosen, {}, None).inputs
    seen = [inputs()]
    for change in (
        lambda: models.write_text('[[models]]\nname = "m"\nsource = "./m"\n'),
        lambda: (tmp_path / "m" / "config.json").write_text("{}"),
        lambda: (tmp_path / "m" / "model.safetensors").write_bytes(b"x"),
        lambda: models.write_text("[[models]"),
        models.unlink,
        models.mkdir,
    ):
        change()
        seen.append(inputs())
        assert seen[-1] == inputs()
    assert all(one != other for one, other in itertools.pairwise(seen))
