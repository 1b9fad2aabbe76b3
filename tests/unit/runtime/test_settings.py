"""Configuration: a file, `.env` over it, the environment over both; and no slip goes unnoticed."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.contract import RuntimeConfig
from llm_runtime.settings import SettingsInvalid, load

ROOT = Path(__file__).parents[3]
MLFLOW = {"trackingUri": "http://mlflow", "name": "m", "version": "1"}
FULL = {"model": {"name": "m", "mlflow": MLFLOW}, "engine": {"maxModelLength": 100}, "server": {"drainSeconds": 3}}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's environment nor a `.env` in the working folder may matter."""
    monkeypatch.chdir(tmp_path)
    for name in ("API_KEY", "API_HOST", "API_PORT", "LOG_LEVEL", "MODEL_NAME", "MODEL_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_the_operator_writes_is_what_the_runtime_reads(tmp_path: Path) -> None:
    config = RuntimeConfig.model_validate(FULL)
    assert load(file(tmp_path, config.model_dump_json(by_alias=True))).config == config


def test_environment_goes_over_dotenv_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("ENGINE__MAX_MODEL_LENGTH=200\nSERVER__DRAIN_SECONDS=4\nLOG_LEVEL=debug\n")
    monkeypatch.setenv("ENGINE__MAX_MODEL_LENGTH", "300")
    settings = load(file(tmp_path, {**FULL, "authentication": "Disabled"}))
    assert settings.config.engine.max_model_length == 300
    assert settings.config.server.drain_seconds == 4
    assert settings.config.authentication == "Disabled"
    assert settings.log_level == "DEBUG"


def test_lists_are_written_with_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text in ("https://a, https://b", '["https://a", "https://b"]'):
        monkeypatch.setenv("SERVER__CORS_ORIGINS", text)
        assert load(file(tmp_path, FULL)).config.server.cors_origins == ("https://a", "https://b")


def test_short_names_make_a_whole_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODEL_NAME": "bot",
        "MODEL_VERSION": "7",
        "MLFLOW_TRACKING_URI": "http://x",
        "API_KEY": "k",
        "API_PORT": "9",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load(None)
    assert settings.config.model.mlflow
    assert (settings.config.model.name, settings.config.model.mlflow.version) == ("bot", "7")
    assert (settings.api_key, settings.port, settings.host) == ("k", 9, "0.0.0.0")


def test_a_path_is_enough_to_start_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PATH", "/models/tiny")
    model = load(None).config.model
    assert (model.name, model.path, model.mlflow) == ("tiny", "/models/tiny", None)


def test_a_services_link_is_not_taken_for_a_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_PORT", "tcp://10.0.0.1:80")
    assert load(file(tmp_path, FULL)).port == 8000


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({**FULL, "engin": {}}, "engin: unknown key"),
        ({**FULL, "engine": {"maxModelLength": "many"}}, "engine.maxModelLength"),
        ({**FULL, "engine": {"dtype": "int4"}}, "engine.dtype"),
        ({**FULL, "server": {"drainSeconds": -1}}, "server.drainSeconds"),
        ({**FULL, "model": {"name": "m"}}, "exactly one of"),
        ({**FULL, "model": {"name": "m", "path": "/m", "mlflow": MLFLOW}}, "exactly one of"),
        ({**FULL, "model": "m"}, "exactly one of"),
        ({"engine": {}}, "exactly one of"),
        ("model: [", "can't be read"),
        ("", "must hold an object"),
        ("- 1", "must hold an object"),
    ],
)
def test_a_slip_is_named(tmp_path: Path, content: Any, named: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"config\.json") as caught:
        load(file(tmp_path, content))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("ENGINE__FOO", "1", "foo: unknown key"),
        ("API_PORT", "x", "apiPort"),
        ("API_PORT", "70000", "apiPort"),
        ("LOG_LEVEL", "loud", "logLevel"),
        ("AUTHENTICATION", "off", "authentication"),
        ("ENGINE", "1", "engine"),
        ("ENGINE", "{", "engine"),
    ],
)
def test_a_slip_in_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=named):
        load(file(tmp_path, FULL))


def test_the_examples_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(ROOT / "config.example.yaml").config.model.name == "support-bot"
    settings = load(None, env_file=ROOT / ".env.example")
    assert (settings.config.model.name, settings.api_key) == ("support-bot", "change-me")


def test_every_commented_line_of_the_example_is_the_default() -> None:
    text = (ROOT / "config.example.yaml").read_text()
    defaults = RuntimeConfig.model_validate(FULL).model_dump(mode="json", by_alias=True)
    defaults |= {"engine": {**defaults["engine"], "maxModelLength": 4096}}
    defaults |= {"server": {**defaults["server"], "drainSeconds": 120.0}}
    import yaml

    section = ""
    for line in text.splitlines():
        section = line.split(":")[0] if line[:1].isalpha() else section
        if line.startswith("  # ") and section in ("engine", "server"):
            [(name, value)] = yaml.safe_load(line.removeprefix("  # ")).items()
            assert defaults[section][name] == value, line
