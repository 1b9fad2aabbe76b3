"""The model's life: which state follows which, and what is not let go of."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from fakes import ScriptedEngine
from harness import config
from llm_runtime import errors
from llm_runtime.api.server import make_server
from llm_runtime.api.serving import TRANSITIONS, Serving, State, WarmModel
from llm_runtime.contract import RuntimeConfig, ServerConfig
from waiting import until

ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"


class Model:
    """A model whose load waits until it is let go, and then fails where it shall."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.fault: Exception | None = None

    async def start(self, *_: Any) -> WarmModel:
        await self.gate.wait()
        if self.fault:
            raise self.fault
        engine = ScriptedEngine()
        return WarmModel(engine, engine.codec)


def serving(model: Model, *, lazy: bool = False) -> tuple[RuntimeConfig, Serving]:
    chosen = config(ServerConfig(lazy_load=lazy))
    return chosen, make_server(chosen, model.start).serving


def test_the_states_that_are_drawn_are_those_of_the_table() -> None:
    picture = ARCHITECTURE.read_text().split("stateDiagram-v2")[1].split("```")[0]
    drawn = re.findall(r"^ +(\w+) --> (\w+)", picture, re.MULTILINE)
    assert sorted(drawn) == sorted(
        (one.name, other.name) for one, after in TRANSITIONS.items() for other in after
    )


async def test_a_load_that_ends_while_the_server_drains_leaves_it_draining() -> None:
    model = Model()
    _, life = serving(model)
    async with life:
        life.begin_drain()
        model.gate.set()
        await until(lambda: life.loaded is not None)
        assert life.state is State.DRAINING
        await life.unload()
        assert life.state is State.DRAINING


@pytest.mark.parametrize("unloaded", [False, True])
async def test_a_load_that_fails_goes_back_to_where_it_began(unloaded: bool) -> None:
    model = Model()
    model.gate.set()
    chosen, life = serving(model, lazy=True)
    async with life:
        if unloaded:
            await life.wake()
            await life.unload()
        before = life.state
        assert before is (State.UNLOADED if unloaded else State.IDLE)
        model.fault = errors.ModelCorrupt("short")
        model.gate.clear()
        load = asyncio.create_task(life.load(chosen, Path("next"), model.start))
        await until(lambda: life.state is State.LOADING)
        model.gate.set()
        with pytest.raises(errors.ModelCorrupt):
            await load
        assert life.state is before


async def test_an_engine_whose_model_can_not_be_served_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its memory is wanted for the next one."""
    model = Model()
    model.gate.set()
    chosen, life = serving(model, lazy=True)
    engine = ScriptedEngine()

    def unreadable(*_: str) -> None:
        raise errors.ModelCorrupt("the chat template")

    async def start(*_: Any) -> WarmModel:
        return WarmModel(engine, engine.codec)

    async with life:
        await life.wake()
        await life.unload()
        monkeypatch.setattr("llm_runtime.api.serving.abilities", unreadable)
        with pytest.raises(errors.ModelCorrupt):
            await life.load(chosen, Path("next"), start)
        assert (life.state, life.loaded, engine.closed) == (State.UNLOADED, None, True)


async def test_what_has_failed_neither_drains_nor_loads_and_its_first_failure_is_the_cause() -> (
    None
):
    model = Model()
    _, life = serving(model, lazy=True)
    ended: list[bool] = []
    life.on_failure = lambda: ended.append(True)
    life.give_up(errors.ModelCorrupt("first"))
    life.give_up(errors.ModelCorrupt("second"))
    life.begin_drain()
    with pytest.raises(errors.ServiceUnavailable, match="ModelCorrupt"):
        await life.wake()
    assert (life.state, ended, life.failure and life.failure.message) == (
        State.FAILED,
        [True],
        "first",
    )
