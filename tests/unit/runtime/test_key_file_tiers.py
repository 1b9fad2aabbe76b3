"""Tiers that come with the key file: an operator changes limits without new pods."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from fakes import ScriptedEngine
from harness import KEY, SALT, config, record
from llm_runtime.api.server import Server, make_server
from llm_runtime.api.serving import WarmModel
from llm_runtime.auth.callers import CHECK_SECONDS, KeyRing
from llm_runtime.common.aside import in_thread
from llm_runtime.contract import KeyFile, RuntimeConfig, Tier
from llm_runtime.request import Caller

Later = Callable[[], None]


def written(path: Path, **more: Any) -> None:
    entry = record(KEY, **more.pop("key", {})).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    path.write_text(json.dumps({"salt": SALT, "keys": [entry], **more}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def served(file: Path, settings: RuntimeConfig) -> tuple[Server, Later]:
    now = [0.0]
    engine = ScriptedEngine()
    ring = KeyRing(file, clock=lambda: now[0])
    made = make_server(settings, in_thread(lambda: WarmModel(engine, engine.codec)), ring)

    def later() -> None:
        now[0] += CHECK_SECONDS
        ring.refresh()

    return made, later


def asked(made: Server, *headers: tuple[bytes, bytes]) -> Caller:
    return made.callers.identify(
        HTTPConnection({"type": "http", "headers": list(headers), "client": ("10.0.0.9", 1)})
    )


HOLDER = (b"x-api-key", KEY.encode())


def test_the_key_files_tiers_win_over_the_configurations(file: Path) -> None:
    written(
        file,
        key={"tier": "gold"},
        tiers=[{"name": "gold", "requestsPerMinute": 600}],
        defaultTier="gold",
    )
    settings = config().model_copy(update={"tiers": (Tier(name="gold", requests_per_minute=1),)})
    made, _ = served(file, settings)
    assert asked(made, HOLDER).tier.requests_per_minute == 600


def test_a_key_file_without_a_default_tier_leaves_the_configurations_in_force(file: Path) -> None:
    written(file, key={"tier": "gold"})
    settings = config().model_copy(update={"tiers": (Tier(name="gold", requests_per_minute=1),)})
    made, _ = served(file, settings)
    assert asked(made, HOLDER).tier.requests_per_minute == 1


def test_a_changed_tier_holds_for_the_next_request_of_the_same_key(file: Path) -> None:
    written(file, tiers=[{"name": "free", "maxConcurrent": 1}], defaultTier="free")
    made, later = served(file, config())
    assert asked(made, HOLDER).tier.max_concurrent == 1
    written(
        file,
        tiers=[{"name": "free", "maxConcurrent": 20, "tokensPerMinute": 9}],
        defaultTier="free",
    )
    later()
    assert (
        asked(made, HOLDER).tier.max_concurrent,
        asked(made, HOLDER).tier.tokens_per_minute,
    ) == (20, 9)


def test_callers_without_a_key_have_the_key_files_default_tier(file: Path) -> None:
    written(file, tiers=[{"name": "visitor", "requestsPerMinute": 3}], defaultTier="visitor")
    made, _ = served(file, config().model_copy(update={"authentication": "Disabled"}))
    caller = asked(made)
    assert (caller.id, caller.tier.requests_per_minute) == ("ip:10.0.0.9", 3)


def test_a_newer_operators_tier_is_read_without_what_is_not_known_here(file: Path) -> None:
    written(
        file,
        tiers=[{"name": "free", "requestsPerMinute": 3, "dollarsPerDay": 5}],
        defaultTier="free",
    )
    assert KeyFile.model_validate_json(file.read_bytes()).tiers[0].requests_per_minute == 3


def test_a_default_tier_that_the_file_lacks_is_the_standard_one(file: Path) -> None:
    written(file, tiers=[{"name": "free", "requestsPerMinute": 3}], defaultTier="gone")
    made, _ = served(file, config())
    assert asked(made, HOLDER).tier.name == "standard"
