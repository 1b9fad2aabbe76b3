"""Configuration: a file, `.env` over it, the environment over both; and no slip goes unnoticed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_runtime.contract import ENV_FREE_SETTINGS, RuntimeConfig
from llm_runtime.settings import Environment, SettingsInvalid, load

ROOT = Path(__file__).parents[3]
MLFLOW = {"trackingUri": "http://mlflow", "name": "m", "version": "1"}
FULL = {
    "model": {"name": "m", "mlflow": MLFLOW},
    "engine": {"maxModelLength": 100},
    "server": {"drainSeconds": 3},
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's environment nor a `.env` in the working folder may matter."""
    monkeypatch.chdir(tmp_path)
    for name in Environment.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_the_operator_writes_is_what_the_runtime_reads(tmp_path: Path) -> None:
    config = RuntimeConfig.model_validate(FULL)
    assert load(file(tmp_path, config.model_dump_json(by_alias=True))).config == config


def test_environment_goes_over_dotenv_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "ENGINE__MAX_MODEL_LENGTH=200\nSERVER__DRAIN_SECONDS=4\nLOG_LEVEL=debug\n"
    )
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


@pytest.mark.parametrize(
    "text",
    ["{{ messages[0].content }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "[INST] Be kind", '["a"]', "[]",
     '{"a": 1}', "{# x #}", " {", "null", "5", "true", '"quoted"', "a, b"],
)  # fmt: skip
def test_a_field_of_text_takes_any_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    for name in (
        "MODEL__CHAT_TEMPLATE",
        "MODEL__SYSTEM_PROMPT",
        "MODEL__SUB_PATH",
        "SERVER__LOG_FILE",
    ):
        monkeypatch.setenv(name, text)
    model = load(file(tmp_path, FULL)).config
    assert (model.model.chat_template, model.model.system_prompt, model.model.sub_path) == (
        text,
        text,
        text,
    )
    assert model.server.log_file == text


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("[::1]", ("::1",)),
        ('["a", "b"]', ("a", "b")),
        ("a, b", ("a", "b")),
        ("[a, 'b']", ("a", "b")),
        ("", ()),
    ],
)
def test_a_list_of_texts_may_be_json_or_have_commas(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, hosts: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SERVER__TRUSTED_HOSTS", text)
    assert load(file(tmp_path, FULL)).config.server.trusted_hosts == hosts


def test_short_names_make_a_whole_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODEL_NAME": "bot",
        "MODEL_VERSION": "7",
        "MLFLOW_TRACKING_URI": "http://x",
        "API_KEY": "0123456789abcdef",
        "API_PORT": "9",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load(None)
    assert settings.config.model.mlflow
    assert (settings.config.model.name, settings.config.model.mlflow.version) == ("bot", "7")
    assert (settings.api_key, settings.port, settings.host) == ("0123456789abcdef", 9, "0.0.0.0")


def test_a_path_is_enough_to_start_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PATH", "/models/tiny")
    model = load(None).config.model
    assert (model.name, model.path, model.mlflow) == ("tiny", "/models/tiny", None)


def test_a_services_link_is_not_taken_for_a_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
        ("ENGINE__FOO", "1", "ENGINE__FOO: unknown name"),
        ("ENGINE__MAX_MODEL_LENGHT", "1", "did you mean ENGINE__MAX_MODEL_LENGTH?"),
        ("SERVER__COMPLETION_CACHE__SIZE", "1", "SERVER__COMPLETION_CACHE__SIZE: unknown name"),
        (
            "ENGINE__MAX_MODEL_LENGTH",
            "many",
            "ENGINE__MAX_MODEL_LENGTH: Input should be a valid integer",
        ),
        ("API_PORT", "x", "API_PORT"),
        ("API_PORT", "70000", "API_PORT"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: must be one of"),
        ("DEBUG", "perhaps", "DEBUG"),
        ("AUTHENTICATION", "off", "AUTHENTICATION"),
        ("ENGINE", "1", "ENGINE"),
        ("ENGINE", "{", "ENGINE: not JSON"),
        ("TIERS", '[{"name": "free", "requestsPerMinute": 0}]', "TIERS"),
        ("DEFAULT_TIER", "gold", "defaultTier is 'gold'; the tiers are standard"),
        ("SECURITY__API_KEY", "k", "SECURITY__API_KEY is now API_KEY"),
        ("SECURITY__MAX_PROMPT_CHARS", "1", "is now server.maxPromptCharacters"),
        ("RATE_LIMIT__REQUESTS_PER_MINUTE", "1", "is now tiers[].requestsPerMinute"),
        ("RATE_LIMIT__BURST_SIZE", "1", "is now tiers[].requestsPerMinute"),
        ("RATE_LIMIT__ENABLED", "true", "is now tiers[].requestsPerMinute"),
        ("CACHE__ENABLED", "true", "is now server.completionCache.enabled"),
        ("CACHE__ODD", "1", "docs/reference.md has what replaces `cache`"),
        ("CHAT_HISTORY__TTL_SECONDS", "1", "is now server.sessions.ttlSeconds"),
        ("MODEL__DEVICE", "cpu", "MODEL__DEVICE is now engine.device"),
        ("MODEL__MAX_TOKENS", "1", "is now engine.maxModelLength"),
        ("MODEL__SOURCE", "hub", "is now model.path"),
        ("MODEL__TEMPERATURE", "1", "a field of each request"),
        ("APP__PORT", "1", "is now API_PORT"),
        ("API_WORKERS", "4", "run more replicas"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_slip_in_the_environment_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv(name, value)
    else:
        (tmp_path / ".env").write_text(f"# A comment\nAPI_KEY=kkkkkkkkkkkkkkkk\n{name}='{value}'\n")
    with pytest.raises(SettingsInvalid) as caught:
        load(file(tmp_path, FULL))
    assert named in str(caught.value)
    assert name == "DEFAULT_TIER" or (
        "environment: " if place == "environment" else ".env line 3: "
    ) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("API_PORT", "abc"), ("LOG_LEVEL", "loud"), ("DEBUG", "perhaps")]
)
def test_a_slip_in_one_variable_makes_no_other_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("MODEL_PATH", str(tmp_path))
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as caught:
        load(None, None)
    assert str(caught.value).startswith(f"environment: {name}: ")
    assert ";" not in str(caught.value), "one fault, told once"


def test_one_worker_is_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_WORKERS", "1")
    assert load(file(tmp_path, FULL))


def test_all_faults_come_at_once_each_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER__DRAIN", "1")
    text = """model:
  name: m
  path: /m
engine:
  maxModelLenght: 5
  dtype: int4
  dtype: int3
tiers:
  - name: free
    requestPerMinute: 5
cache: {size: 3}
"""
    with pytest.raises(SettingsInvalid) as caught:
        load(file(tmp_path, text))
    name = tmp_path / "config.json"
    for fault in (
        f"{name} line 5: engine.maxModelLenght: unknown key; did you mean maxModelLength?",
        f"{name} line 7: engine.dtype: stands there twice",
        f"{name} line 7: engine.dtype: Input should be",
        f"{name} line 10: tiers.0.requestPerMinute: unknown key; did you mean requestsPerMinute?",
        f"{name} line 11: cache.size: is now server.completionCache.entries",
        "environment: SERVER__DRAIN: unknown name; did you mean SERVER__DRAIN_SECONDS?",
    ):
        assert fault in str(caught.value)


SEED_000 = """
api: {host: 0.0.0.0, port: 8000, workers: 1}
model: {max_tokens: 2048, default_max_length: 100, batch_size: 4}
mlflow: {tracking_uri: "http://localhost:5000", model_name: custom-llm, model_stage: Production}
"""
SEED_002 = """
app: {name: LLM FastAPI Service, host: 0.0.0.0, port: 8000}
model: {name: gemma, source: hub, device: cpu, max_tokens: 512, temperature: 0.7}
security: {api_key: change-me-in-env, max_prompt_chars: 4000}
rate_limit: {enabled: true, requests_per_minute: 10}
cache: {enabled: true, size: 100, ttl_seconds: 3600}
chat_history: {enabled: true, ttl_seconds: 7200}
"""


@pytest.mark.parametrize(("text", "keys"), [(SEED_000, 9), (SEED_002, 16)])
def test_a_file_of_another_server_is_told_every_new_name(
    tmp_path: Path, text: str, keys: int
) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load(file(tmp_path, text))
    message = str(caught.value)
    assert message.count("is now") == keys
    assert "change-me-in-env" not in message
    assert "unknown key" not in message
    assert "exactly one of `mlflow`, `path` and `uri`" in message


def test_tiers_come_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIERS", '[{"name": "free", "requestsPerMinute": 10}]')
    monkeypatch.setenv("DEFAULT_TIER", "free")
    monkeypatch.setenv("SERVER__COMPLETION_CACHE__ENTRIES", "5")
    config = load(file(tmp_path, FULL)).config
    assert (config.tiers[0].requests_per_minute, config.default_tier) == (10, "free")
    assert config.server.completion_cache.entries == 5


def test_secrets_are_there_and_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = (
        "API_KEY",
        "ADMIN_API_KEY",
        "DATABASE_URL",
        "REDIS_URL",
        "KEY_PEPPER",
        "HUGGINGFACE_TOKEN",
    )
    for name in names:
        monkeypatch.setenv(name, f"hush-hush-hush-{name}")
    settings = load(file(tmp_path, FULL))
    assert (settings.api_key, settings.admin_key) == (
        "hush-hush-hush-API_KEY",
        "hush-hush-hush-ADMIN_API_KEY",
    )
    assert (settings.storage.url, settings.redis_url) == (
        "hush-hush-hush-DATABASE_URL",
        "hush-hush-hush-REDIS_URL",
    )
    assert settings.storage.key_pepper == "hush-hush-hush-KEY_PEPPER"
    assert "hush" not in repr(settings)


def test_the_files_database_counts_where_the_environment_names_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = file(tmp_path, {**FULL, "database": {"url": "sqlite:///x.db"}})
    assert load(path).storage.url == "sqlite:///x.db"
    monkeypatch.setenv("DATABASE_URL", "none")
    assert load(path).storage.url == "none"
    assert load(file(tmp_path, FULL)).redis_url is None


def test_debug_is_a_log_level(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEBUG", "true")
    assert load(file(tmp_path, FULL)).log_level == "DEBUG"


def test_the_examples_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(ROOT / "config.example.yaml").config.model.name == "support-bot"
    settings = load(None, env_file=ROOT / ".env.example")
    assert (settings.config.model.name, settings.api_key) == ("support-bot", None)


def test_every_commented_line_of_the_example_is_the_default(tmp_path: Path) -> None:
    text = (ROOT / "config.example.yaml").read_text()
    every = re.sub(r"^( *)# (?=[a-zA-Z]+:)", r"\1", text, flags=re.M)
    assert load(file(tmp_path, every)).config == load(ROOT / "config.example.yaml").config


def test_every_variable_is_in_the_example() -> None:
    text = (ROOT / ".env.example").read_text()
    assert {name.upper() for name in Environment.model_fields} <= set(
        re.findall(r"^(?:# )?([A-Z_]+)=", text, re.M)
    )


def test_a_uri_takes_its_server_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    model = load(file(tmp_path, "model: {name: bot, uri: 'models:/bot@champion'}")).config.model
    assert (model.uri, model.tracking_uri, model.mlflow) == (
        "models:/bot@champion",
        "http://mlflow",
        None,
    )
    with pytest.raises(SettingsInvalid, match="exactly one of"):
        load(file(tmp_path, "model: {name: bot, path: /x, uri: 'models:/bot@champion'}"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AUTHENTICATION", "Disabled"),
        ("MODEL_NAME", "hush-hush"),
        ("MODEL_VERSION", "7"),
        ("model_path", "/hush-hush"),
        ("SERVER__FILTERS__PII", "Disabled"),
        ("server__log_file", "/hush-hush"),
        ("API_KEY", "hush-hush-hush-hush"),
        ("ENGINE__NO_SUCH_FIELD", "hush-hush"),
    ],
)
def test_in_an_operators_pod_the_file_decides(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    plain = load(file(tmp_path, FULL), managed=True)
    monkeypatch.setenv(name, value)
    settings = load(file(tmp_path, FULL), managed=True)
    assert (settings.config, settings.api_key) == (plain.config, None)
    assert name.upper() in caplog.text
    assert "hush" not in caplog.text


@pytest.mark.parametrize("name", sorted({*ENV_FREE_SETTINGS} - {"LOG_LEVEL", "DEBUG"}))
def test_an_operators_pod_takes_the_settings_that_no_field_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    section, _, key = name.lower().partition("__")
    value = getattr(getattr(load(file(tmp_path, FULL), managed=True).config, section), key)
    another = f"{value}x" if isinstance(value, str) else value is False or value * 2
    monkeypatch.setenv(name, json.dumps(another).strip('"'))
    config = load(file(tmp_path, FULL), managed=True).config
    assert getattr(getattr(config, section), key) == another


def test_a_setting_that_no_field_has_is_told_by_its_name_where_it_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENGINE__MAX_QUEUE_LENGTH", "hush-hush")
    with pytest.raises(SettingsInvalid, match="ENGINE__MAX_QUEUE_LENGTH") as told:
        load(file(tmp_path, FULL), managed=True)
    assert "hush" not in str(told.value)


def test_an_operators_pod_takes_secrets_and_the_operators_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("AUTHENTICATION=Disabled\n")
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "REDIS_URL", "KEY_PEPPER", "MODEL_PATH"):
        monkeypatch.setenv(name, f"from-{name}")
    settings = load(file(tmp_path, FULL), managed=True)
    assert (settings.storage.url, settings.redis_url) == ("from-DATABASE_URL", "from-REDIS_URL")
    assert settings.config.model.path == "from-MODEL_PATH"
    assert settings.config.authentication == "Required"


def test_secrets_leave_the_environment_and_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from pathlib import Path; import os; from llm_runtime.settings import forget_secrets; forget_secrets();"
        "print(os.environ.get('DATABASE_URL'), Path('/proc/self/environ').read_bytes())"
    )
    environment = {
        **os.environ,
        "DATABASE_URL": "hush-hush",
        "ADMIN_API_KEY": "hush-hush-too",
        "OTHER": "stays",
    }
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("None")
    assert "stays" in shown.stdout
    assert "hush" not in shown.stdout


@pytest.mark.parametrize(
    "key",
    [
        "short",
        "x" * 15,
        "x" * 20,
        "change-me",
        "change-me-change-me",
        "CHANGE_ME_CHANGE_ME",
        "Change me, change me",
    ],
)
@pytest.mark.parametrize("name", ["API_KEY", "ADMIN_API_KEY"])
def test_a_key_that_can_be_guessed_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    monkeypatch.setenv("MODEL_PATH", "/models/tiny")
    monkeypatch.setenv(name, key)
    with pytest.raises(
        SettingsInvalid, match=f"{name}: must have at least 16 characters"
    ) as caught:
        load(None)
    assert key not in str(caught.value)
