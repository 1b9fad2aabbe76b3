"""Keys: both headers, every refusal, and a key file that changes under a running server."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from harness import EXPIRED, KEY, SUSPENDED, Harness, key_file, record
from llm_runtime import errors
from llm_runtime.api.server import make_server
from llm_runtime.api.serving import WarmModel
from llm_runtime.auth.callers import (
    CHECK_SECONDS,
    MAX_CALLERS,
    NO_ROLES,
    KeyChain,
    KeyRing,
    Roles,
    SingleKey,
    Tiers,
    authenticate,
)
from llm_runtime.contract import KeyRecord, RuntimeConfig, Tier, format_key

PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/resp_1/cancel",
    "/v1/generate",
    "/v1/stream",
    "/predict",
    "/v1/models",
]


def ring(path: Path) -> tuple[KeyRing, Callable[[], None]]:
    """A key ring and a way to let its next look be due."""
    now = [0.0]
    return KeyRing(path, clock=lambda: now[0]), lambda: now.__setitem__(0, now[0] + CHECK_SECONDS)


@pytest.mark.parametrize("path", PATHS)
async def test_no_key_and_an_unknown_one_are_401_before_the_body_is_looked_at(
    run: Any, path: str
) -> None:
    async with run(headers={}) as api:
        method = "GET" if path == "/v1/models" else "POST"
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"X-API-Key": format_key("web", "wrong")},
        ):
            response = await api.client.request(method, path, content=b"{not json", headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"X-API-Key": KEY},
        {"Authorization": "Bearer mesh-token", "x-api-key": KEY},
    ],
)
async def test_either_header_opens_every_dialect(run: Any, headers: dict[str, str]) -> None:
    async with run(headers=headers) as api:
        assert (await api.chat()).status_code == 200
        assert (await api.client.post("/predict", json={"prompt": "a"})).status_code == 200
        assert (await api.client.post("/v1/generate", json={"prompt": "a"})).status_code == 200


@pytest.mark.parametrize(("key", "code"), [(SUSPENDED, "key_suspended"), (EXPIRED, "key_expired")])
async def test_a_suspended_or_expired_key_is_a_403_that_says_so(
    api: Harness, key: str, code: str
) -> None:
    response = await api.client.get("/v1/models", headers={"X-API-Key": key})
    assert (response.status_code, response.json()["error"]["code"]) == (403, code)
    own = await api.client.post("/predict", json={"prompt": "a"}, headers={"X-API-Key": key})
    assert own.json()["error"] == "forbidden"


async def test_a_revoked_key_stops_within_two_seconds(api: Harness, keys_path: Path) -> None:
    assert (await api.chat()).status_code == 200
    swap(keys_path, key_file())
    async with asyncio.timeout(2):
        while (await api.chat()).status_code != 401:  # noqa: ASYNC110 - the file is read again at its time
            await asyncio.sleep(0.02)


def swap(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_the_kubelets_link_swap_is_noticed(tmp_path: Path) -> None:
    for name, text in (("..1", key_file(record(KEY))), ("..2", key_file())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.json").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    keys, wait = ring(tmp_path / "keys.json")
    assert keys.find(KEY)
    (tmp_path / "..fresh").symlink_to("..2")
    (tmp_path / "..fresh").replace(tmp_path / "..data")
    assert keys.find(KEY), "not yet looked at"
    wait()
    assert keys.find(KEY) is None


@pytest.mark.parametrize(
    "broken", ["", "{", '{"salt": 1}', "[]", '{"salt": "s", "keys": [{"id": "x"}]}']
)
def test_a_broken_key_file_leaves_the_last_good_keys_in_force(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(key_file(record(KEY)))
    keys, wait = ring(path)
    swap(path, broken)
    wait()
    assert keys.find(KEY)
    assert "not valid" in caplog.text
    swap(path, key_file())
    wait()
    assert keys.find(KEY) is None


def test_a_vanished_key_file_leaves_the_keys_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(key_file(record(KEY)))
    keys, wait = ring(path)
    path.unlink()
    for _ in range(3):
        wait()
        assert keys.find(KEY)
    assert caplog.text.count("can't be read") == 1


def test_a_key_file_may_appear_after_the_start(tmp_path: Path) -> None:
    keys, wait = ring(tmp_path / "keys.json")
    assert keys.find(KEY) is None
    swap(tmp_path / "keys.json", key_file(record(KEY)))
    wait()
    assert keys.find(KEY)


def test_fields_of_a_newer_operator_do_not_void_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    content = json.loads(key_file(record(KEY)))
    content["keys"][0]["tier"] = "gold"
    content["format"] = 2
    path.write_text(json.dumps(content))
    assert ring(path)[0].find(KEY)


def test_the_public_id_with_another_secret_is_not_the_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(key_file(record(KEY)))
    keys, _ = ring(path)
    assert keys.find(format_key("web", "x" * 42 + "y")) is None
    assert keys.find("llmk_web_") is None
    assert keys.find("") is None
    assert keys.find("\xff") is None


def test_an_expiry_without_a_time_zone_is_utc(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(key_file(record(KEY, expires_at=datetime(2026, 1, 1))))
    keys, _ = ring(path)
    assert authenticate(keys, [KEY], datetime(2025, 12, 31, tzinfo=UTC)).id == "web"
    with pytest.raises(errors.Forbidden):
        authenticate(keys, [KEY], datetime(2026, 1, 1, tzinfo=UTC))


def test_the_stand_alone_key_is_any_text() -> None:
    keys = SingleKey("s3cret")
    assert keys.find("s3cret")
    assert keys.find("S3cret") is None


def test_without_authentication_everybody_is_anonymous() -> None:
    async def never() -> WarmModel:
        raise AssertionError

    server = make_server(
        RuntimeConfig.model_validate({"model": {"name": "m", "path": "/m"}}), never, keys=None
    )
    connection = HTTPConnection({"type": "http", "headers": [], "client": ("10.0.0.7", 4711)})
    assert server.callers.identify(connection).id == "ip:10.0.0.7"


@pytest.mark.parametrize(
    ("host", "tenant"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_tenant_are_one_caller(host: str, tenant: str) -> None:
    assert Tiers().address(host).id == f"ip:{tenant}"


def test_callers_of_removed_keys_do_not_pile_up() -> None:
    tiers = Tiers()
    for number in range(MAX_CALLERS + 10):
        tiers.caller(KeyRecord(id=f"k{number}", digest="", name="web"))
        tiers.address(f"10.0.{number // 256}.{number % 256}")
    assert len(tiers._callers) <= MAX_CALLERS


def test_a_caller_is_one_object_until_its_key_or_a_role_changes() -> None:
    roles = [NO_ROLES]
    tiers = Tiers(roles=lambda: roles[0])
    record = KeyRecord(id="web", digest="", name="web", tier="gold")
    first = tiers.caller(record)
    assert tiers.caller(record) is first
    assert first.tier.name == "standard", "a role that is not known opens nothing"
    roles[0] = Roles({"gold": Tier(name="gold", priority=5)})
    assert tiers.caller(record).tier.priority == 5
    assert tiers.caller(record.model_copy()) is not first


def test_keys_of_several_sources_work_side_by_side() -> None:
    keys = KeyChain(SingleKey("boss", admin=True), SingleKey("s3cret"))
    boss = keys.find("boss")
    user = keys.find("s3cret")
    assert boss
    assert user
    assert (boss.admin, user.admin, keys.find("other")) == (True, False, None)
    assert [record.name for record in keys.records()] == ["ADMIN_API_KEY", "API_KEY"]


def test_of_two_offered_keys_the_first_known_one_counts() -> None:
    keys = KeyChain(SingleKey("boss", admin=True), SingleKey("s3cret"))
    now = datetime.now(UTC)
    assert authenticate(keys, ["mesh-token", "s3cret"], now).name == "API_KEY"
    assert authenticate(keys, ["boss", "s3cret"], now).admin
    with pytest.raises(errors.Unauthorized):
        authenticate(keys, ["x" * 1_000_000, "' OR 1=1 --"], now)
