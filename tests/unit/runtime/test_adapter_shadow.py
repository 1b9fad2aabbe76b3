"""Shadow traffic for a version of an adapter: the pod that answers copies to the candidate
that it has loaded beside, and only the tally remains."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes import ScriptedEngine, ScriptedStream
from harness import KEY, Harness, chat_body
from llm_runtime.adapters import AdapterList, Adapters
from llm_runtime.contract import SHADOW_HEADER
from llm_runtime.request import EngineStats, GenerationRequest
from llm_runtime.shadow import Orders
from unit.runtime.test_hot_adapters import BESIDE, CANDIDATE, Shelf, write
from waiting import until

POD = "bot-1111111111-abc-1"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 10}
ORDER: dict[str, Any] = {"candidate": CANDIDATE, "pods": "bot-1111111111"}
LEGAL = "support-bot:legal"


@dataclass
class Adapted(ScriptedEngine):
    """Each adapter has a script of its own."""

    scripts: dict[str, Sequence[str]] = field(default_factory=dict)

    def generate(self, request: GenerationRequest) -> ScriptedStream:
        self.script = self.scripts.get(request.adapter, ("Hello", " there", "!"))
        return super().generate(request)


class Pod:
    """A pod with an adapter `legal` and a candidate of it."""

    def __init__(self, harness: Harness, file: Path) -> None:
        self.harness = harness
        self.file = file

    @property
    def engine(self) -> Adapted:
        assert isinstance(self.harness.engine, Adapted)
        return self.harness.engine

    async def ordered(self, **order: Any) -> None:
        """The list says so, and the pod has read it."""
        write(self.file, ("legal", "1"), **BESIDE, shadowed=[{**ORDER, **order}])
        adapters = self.harness.server.adapters
        assert adapters is not None
        wanted = order.get("percent", 100)
        await until(lambda: any(each.percent == wanted for each in adapters.shadowed))

    async def asked(self, model: str = LEGAL, **fields: Any) -> Any:
        answer = await self.harness.chat(**{"model": model, **GREEDY, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    def tally(self) -> dict[str, float]:
        """By candidate, what and label."""
        found = dict[str, float]()
        for family in self.harness.server.metrics.registry.collect():
            for sample in family.samples:
                if family.name.startswith("llm_shadow_") and sample.name.endswith("_total"):
                    assert sample.labels["candidate"] == CANDIDATE
                    label = list(sample.labels.values())[-1]
                    found[f"{family.name.removeprefix('llm_shadow_')} {label}"] = sample.value
        return found

    async def settled(self, copies: int) -> dict[str, float]:
        await until(
            lambda: sum(v for k, v in self.tally().items() if k.startswith("copies")) >= copies
        )
        return self.tally()

    def adapters_asked(self) -> list[str]:
        return [request.adapter for request in self.engine.requests]


@pytest.fixture
def pod(request: pytest.FixtureRequest, live: Any, tmp_path: Path) -> Iterator[Pod]:
    file = tmp_path / "adapters.json"
    write(file, ("legal", "1"), **BESIDE)
    adapters = Adapters(AdapterList(file), Shelf(), 4)
    orders = Orders(tmp_path / "shadow.json", POD, lambda: adapters.shadowed)
    engine = Adapted(**getattr(request, "param", {}))
    with live(engine, shadow=orders, adapters=adapters) as harness:
        yield Pod(harness, file)


async def test_a_request_for_the_adapter_is_copied_to_its_candidate_and_compared(pod: Pod) -> None:
    await pod.ordered()
    assert await pod.asked() == "Hello there!"
    found = await pod.settled(1)
    assert (found["copies compared"], found["difference exact"]) == (1, 0)
    assert pod.adapters_asked() == ["legal", CANDIDATE]
    stable, copy = pod.engine.requests
    assert (copy.prompt_token_ids, copy.sampling) == (stable.prompt_token_ids, stable.sampling)
    assert copy.priority < stable.priority


@pytest.mark.parametrize("pod", [{"scripts": {CANDIDATE: ("Bad", " day")}}], indirect=True)
async def test_the_client_has_the_answer_of_the_version_that_serves(pod: Pod) -> None:
    await pod.ordered()
    assert await pod.asked() == "Hello there!"
    found = await pod.settled(1)
    assert (found["compared exact"], found["difference exact"]) == (1, 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a b"}),
        ("/v1/generate", {"prompt": "a b"}),
        ("/v1/stream", {"prompt": "a b"}),
        ("/v1/chat", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
async def test_every_dialect_is_copied(pod: Pod, path: str, body: dict[str, Any]) -> None:
    await pod.ordered()
    body = {"model": LEGAL, **GREEDY, **body}
    assert (await pod.harness.client.post(path, json=body)).status_code == 200
    assert (await pod.settled(1))["copies compared"] == 1


async def test_a_copy_leaves_no_trace_but_the_tally(pod: Pod) -> None:
    await pod.ordered()
    for number in range(3):
        await pod.asked(user=f"me {number}")
    await pod.settled(3)
    assert [row.adapter for row in pod.harness.rows] == ["legal"] * 3
    text = pod.harness.server.metrics.render().decode()
    assert 'api_requests_total{endpoint="/v1/chat/completions",status="200"} 3.0' in text
    assert "llm_time_to_first_token_seconds_count 3.0" in text


async def test_other_models_and_other_pods_copy_nothing(pod: Pod) -> None:
    await pod.ordered()
    await pod.asked(model="support-bot")
    await pod.ordered(pods="bot-2222222222", percent=99)
    await pod.asked()
    await pod.ordered(percent=0)
    await pod.asked()
    await asyncio.sleep(0.1)
    assert pod.adapters_asked() == ["", "legal", "legal"]
    assert pod.tally() == {}
    assert copier_of(pod).held_bytes == 0


async def test_the_default_adapter_s_requests_by_the_bare_name_are_copied(pod: Pod) -> None:
    write(pod.file, ("legal", "1"), **BESIDE, shadowed=[ORDER], defaultAdapter="legal")
    await until(lambda: pod.harness.server.default_adapter == "legal")
    await pod.asked(model="support-bot")
    assert (await pod.settled(1))["copies compared"] == 1
    assert pod.adapters_asked() == ["legal", CANDIDATE]


async def test_one_that_is_not_loaded_is_sent_nothing(pod: Pod) -> None:
    write(pod.file, ("legal", "1"), shadowed=[ORDER])
    adapters = pod.harness.server.adapters
    assert adapters is not None
    await until(lambda: CANDIDATE not in pod.engine.adapters)
    await pod.asked()
    assert pod.tally() == {}


@pytest.mark.parametrize(("running", "waiting"), [(32, 0), (0, 1)])
async def test_the_places_that_are_left_are_the_clients_and_a_copy_is_refused(
    pod: Pod, running: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 64: half of it stays free."""
    await pod.ordered()
    stats = EngineStats(running, waiting, 0.0, 0, alive=True)
    monkeypatch.setattr(pod.engine, "stats", lambda: stats)
    await pod.asked()
    assert await pod.settled(1) == {"copies refused": 1}
    assert pod.adapters_asked() == ["legal"]


@pytest.mark.parametrize("pod", [{"token_seconds": 0.5}], indirect=True)
async def test_copies_beyond_the_bound_are_dropped_and_their_bodies_let_go(pod: Pod) -> None:
    await pod.ordered(maxInFlight=2)
    await asyncio.gather(*(pod.asked(messages=said(f"a {n}")) for n in range(6)))
    found = await pod.settled(6)
    assert (found["copies dropped"], found["copies compared"]) == (4, 2)
    await until(lambda: copier_of(pod).held_bytes == 0)


async def test_a_candidate_that_goes_while_copies_come_counts_for_nothing(pod: Pod) -> None:
    await pod.ordered()
    adapters = pod.harness.server.adapters
    assert adapters is not None
    # As if the list had changed just after a copy was sent.
    stale = adapters.shadowed
    copier_of(pod).orders = Orders(pod.file.with_name("shadow.json"), POD, lambda: stale)
    write(pod.file, ("legal", "1"))
    await until(lambda: CANDIDATE not in pod.engine.adapters)
    await pod.asked()
    assert await pod.settled(1) == {"copies refused": 1}


async def test_no_client_reaches_a_candidate_by_the_header(pod: Pod) -> None:
    await pod.ordered()
    for token in ("", "x" * 43, KEY):
        answer = await pod.harness.client.post(
            "/v1/chat/completions",
            json=chat_body(model=f"support-bot:{CANDIDATE}"),
            headers={SHADOW_HEADER: token},
        )
        assert answer.status_code == 401
    assert pod.engine.requests == []
    [order] = copier_of(pod).orders.copying
    assert order.token not in repr(order)


def copier_of(pod: Pod) -> Any:
    assert pod.harness.server.copier is not None
    return pod.harness.server.copier


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
