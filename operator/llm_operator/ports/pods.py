"""All I/O to runtime pods: reads their metrics, asks them prompts, runs load probes. Silence is
a hint, never a reason to stop a reconcile."""

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from llm_operator.ports.proxies import bounded
from llm_operator.state import Download, Figures, Load, Manifest, Shadowed
from llm_runtime import contract
from llm_runtime.contract import LoadFigures

TIMEOUT_SECONDS = 2.0
MAX_BYTES = 4 << 20
MAX_FIGURES_BYTES = 512 << 10
"""Eight adapters whose candidates are sent copies have up to 460 KiB.

A bound on the lines that are read,
because the author of a pod's image chooses what it says of itself."""
AT_ONCE = 32
"""Pods asked at the same time, over all reconciles."""
SERVER_ERROR = "5"


ANSWER_SECONDS = 60.0
PROBE_LATE_SECONDS = 40.0
"""What a load probe may take longer than it was asked to: requests under way are answered."""


@dataclass(frozen=True)
class Answer:
    """What a pod answered to a prompt. Status 0: it did not answer, `text` says why."""

    status: int
    text: str


class Pods(Protocol):
    """The operator's questions to running pods. A test's stand-in has these methods too."""

    async def figures(self, pod: Manifest) -> Figures | None:
        """What the pod says of itself; None when it does not answer."""
        ...

    async def ask(self, pod: Manifest, key: str, body: dict[str, Any]) -> Answer:
        """The answer to an OpenAI request; `key` may be empty.

        A `prompt` is sent as a user's message, as people would write it. Only a model without a
        chat template gets it as a text to continue.
        """
        ...

    async def probe(self, pod: Manifest, key: str, body: dict[str, Any]) -> LoadFigures | Answer:
        """Figures of a load probe; an answer where there are none."""
        ...


class HttpPods:
    """The real ones, at the addresses in their status."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False)
        self._places = asyncio.Semaphore(AT_ONCE)
        self._prompts = asyncio.Semaphore(AT_ONCE)
        """Places for prompts, apart from those for figures: an answer takes up to a minute, and the
        loop waits for figures."""

    async def figures(self, pod: Manifest) -> Figures | None:
        root = _root(pod)
        if root is None:
            return None
        try:
            async with self._places, asyncio.timeout(TIMEOUT_SECONDS):
                status, text = await self._text("GET", root + contract.METRICS_PATH)
                return read(text) if status == 200 else None
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, LookupError):
            return None  # LookupError: a metric without its labels.

    async def ask(self, pod: Manifest, key: str, body: dict[str, Any]) -> Answer:
        root = _root(pod)
        if root is None:
            return Answer(0, "the pod has no address yet")
        if "prompt" in body:
            message = {"messages": [{"role": "user", "content": body["prompt"]}]}
            chat = {**message, **{name: value for name, value in body.items() if name != "prompt"}}
            answer = await self._ask(f"{root}/v1/chat/completions", key, chat)
            if answer.status != 400 or contract.NO_CHAT_TEMPLATE not in answer.text:
                return answer
        path = contract.CHAT_PATH if "messages" in body else contract.COMPLETIONS_PATH
        return await self._ask(root + path, key, body)

    async def probe(self, pod: Manifest, key: str, body: dict[str, Any]) -> LoadFigures | Answer:
        root = _root(pod)
        if root is None:
            return Answer(0, "the pod has no address yet")
        headers = {"Authorization": f"Bearer {key}"}
        most = body["seconds"] + PROBE_LATE_SECONDS
        try:
            async with asyncio.timeout(most):
                url = root + contract.LOAD_PROBE_PATH
                status, text = await self._text(
                    "POST", url, json=body, headers=headers, timeout=most
                )
            return (
                LoadFigures.model_validate_json(text)
                if status == 200
                else Answer(status, text[:500])
            )
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            return Answer(0, f"{type(error).__name__}: {error}")

    async def _ask(self, url: str, key: str, body: dict[str, Any]) -> Answer:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            async with self._prompts, asyncio.timeout(ANSWER_SECONDS):
                status, text = await self._text(
                    "POST", url, json=body, headers=headers, timeout=ANSWER_SECONDS
                )
            return Answer(status, _generated(text) if status == 200 else text[:500])
        # TypeError, RecursionError: a prompt that is no JSON.
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            TimeoutError,
            ValueError,
            TypeError,
            RecursionError,
        ) as error:
            return Answer(0, f"{type(error).__name__}: {error}")

    async def _text(self, method: str, url: str, **more: Any) -> tuple[int, str]:
        headers = {"Accept-Encoding": "identity", **more.pop("headers", {})}
        async with self._client.stream(method, url, headers=headers, **more) as answer:
            return answer.status_code, (await bounded(answer, MAX_BYTES)).decode()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def _root(pod: Manifest) -> str | None:
    address = (pod.get("status") or {}).get("podIP")
    if not address:
        return None
    return (
        f"http://[{address}]:{contract.PORT}"
        if ":" in address
        else f"http://{address}:{contract.PORT}"
    )


def _generated(text: str) -> str:
    """The text of an OpenAI answer. Raises ValueError for anything else."""
    try:
        choice = json.loads(text)["choices"][0]
        return str(choice["message"]["content"] or "" if "message" in choice else choice["text"])
    except (KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError(f"not an answer of the OpenAI API: {text[:200]}") from error


_WANTED = (
    contract.METRIC_DOWNLOAD_SIZE_BYTES, contract.METRIC_DOWNLOADED_BYTES, contract.METRIC_DOWNLOAD_RATE,
    contract.METRIC_ADAPTER_LOADED, contract.METRIC_ADAPTER_FAILED, contract.METRIC_API_REQUESTS,
    contract.METRIC_FIRST_TOKEN, contract.METRIC_INTER_TOKEN,
    contract.METRIC_FIRST_TOKEN_FINE, contract.METRIC_INTER_TOKEN_FINE,
    contract.METRIC_SHADOW_COPIES, contract.METRIC_SHADOW_COMPARED, contract.METRIC_SHADOW_DIFFERENCE,
    contract.METRIC_SHADOW_FINE,
    contract.METRIC_ANSWER_TOKENS_FINE, contract.METRIC_GPU_MEMORY, contract.METRIC_MEMORY,
    contract.METRIC_REQUESTS_RUNNING, contract.METRIC_REQUESTS_WAITING,
    contract.METRIC_TOKENS_PER_SECOND, contract.METRIC_KV_CACHE_USAGE,
)  # fmt: skip
_STARTS = tuple(f"{before}{name}" for name in _WANTED for before in ("", "# TYPE "))
MAX_LINE_CHARACTERS = 1000
MAX_FIGURE = 1e15
"""A runtime's counts and measurements are below it, and calculations with them stay finite."""


def _wanted(text: str) -> str:
    """The lines that are read. Raises ValueError for more than a runtime has of them."""
    lines = [line for line in text.split("\n") if line.startswith(_STARTS)]
    if text.strip() and not lines:
        raise ValueError("no figures of a runtime")
    if sum(map(len, lines)) > MAX_FIGURES_BYTES or any(
        len(line) > MAX_LINE_CHARACTERS for line in lines
    ):
        raise ValueError(
            f"figures of more than {MAX_FIGURES_BYTES} bytes, or {MAX_LINE_CHARACTERS} in a line"
        )
    return "\n".join(lines) + "\n"


def read(text: str) -> Figures:
    """Figures from the Prometheus text format. Raises ValueError for anything else."""
    samples = {
        family.name: family.samples for family in text_string_to_metric_families(_wanted(text))
    }
    if not all(0 <= sample.value <= MAX_FIGURE for family in samples.values() for sample in family):
        raise ValueError("a figure that nothing was counted or measured by")

    def value(name: str) -> float | None:
        return next((sample.value for sample in samples.get(name, ())), None)

    total = value(contract.METRIC_DOWNLOAD_SIZE_BYTES)
    done = value(contract.METRIC_DOWNLOADED_BYTES)
    rate = value(contract.METRIC_DOWNLOAD_RATE)
    memory = value(contract.METRIC_GPU_MEMORY)
    requests = [
        s for s in samples.get(contract.METRIC_API_REQUESTS, ()) if s.name.endswith("_total")
    ]
    return Figures(
        download=Download(done or 0, total, rate or 0) if total else None,
        adapters={
            sample.labels["adapter"]: sample.labels["version"]
            for sample in samples.get(contract.METRIC_ADAPTER_LOADED, ())
            if sample.value
        },
        adapter_failures={
            sample.labels["adapter"]: sample.labels["reason"]
            for sample in samples.get(contract.METRIC_ADAPTER_FAILED, ())
            if sample.value
        },
        requests=sum(sample.value for sample in requests),
        errors=sum(
            s.value for s in requests if s.labels.get("status", "").startswith(SERVER_ERROR)
        ),
        first_token=_fine(samples.get(contract.METRIC_FIRST_TOKEN_FINE, ()))
        or _histogram(samples.get(contract.METRIC_FIRST_TOKEN, ())),
        inter_token=_fine(samples.get(contract.METRIC_INTER_TOKEN_FINE, ()))
        or _histogram(samples.get(contract.METRIC_INTER_TOKEN, ())),
        token_gap=_fine_if_known(
            samples.get(contract.METRIC_INTER_TOKEN_FINE), contract.FINE_BOUNDS_SECONDS
        ),
        answer_tokens=_fine_if_known(
            samples.get(contract.METRIC_ANSWER_TOKENS_FINE), contract.FINE_BOUNDS_TOKENS
        ),
        memory_bytes=value(contract.METRIC_MEMORY) if memory is None else memory,
        shadowed=_shadowed(samples),
        load=_load(value),
    )


def _load(value: Callable[[str], float | None]) -> Load | None:
    names = (
        contract.METRIC_REQUESTS_RUNNING,
        contract.METRIC_REQUESTS_WAITING,
        contract.METRIC_TOKENS_PER_SECOND,
        contract.METRIC_KV_CACHE_USAGE,
    )
    found = [figure for figure in map(value, names) if figure is not None]
    return Load(*found) if len(found) == len(names) else None


def _shadowed(samples: Mapping[str, list[Sample]]) -> dict[str, Shadowed]:
    copies = samples.get(contract.METRIC_SHADOW_COPIES, ())
    candidates = dict.fromkeys(s.labels["candidate"] for s in copies)
    return {each: _shadowed_of(each, samples) for each in candidates}


def _shadowed_of(candidate: str, samples: Mapping[str, list[Sample]]) -> Shadowed:
    def mine(name: str) -> list[Sample]:
        return [s for s in samples.get(name, ()) if s.labels["candidate"] == candidate]

    def totals(name: str, label: str) -> dict[str, float]:
        return {s.labels[label]: s.value for s in mine(name) if s.name.endswith("_total")}

    fine = mine(contract.METRIC_SHADOW_FINE)
    kinds = sorted({(s.labels["side"], s.labels["what"]) for s in fine})
    return Shadowed(
        results=totals(contract.METRIC_SHADOW_COPIES, "result"),
        compared=totals(contract.METRIC_SHADOW_COMPARED, "what"),
        difference=totals(contract.METRIC_SHADOW_DIFFERENCE, "what"),
        fine={
            kind: _fine(s for s in fine if (s.labels["side"], s.labels["what"]) == kind)
            for kind in kinds
        },
    )


def _fine_if_known(
    samples: Iterable[Sample] | None, bounds: tuple[float, ...]
) -> dict[float, float] | None:
    """Counts as `_fine` has them; None for a runtime that does not know the metric."""
    return None if samples is None else _fine(samples, bounds)


def _fine(
    samples: Iterable[Sample], finite: tuple[float, ...] = contract.FINE_BOUNDS_SECONDS
) -> dict[float, float]:
    """Counts up to each bound, from those of each bucket alone. Empty where there are none."""
    counts = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_total")}
    if not counts:
        return {}
    bounds = (*finite, math.inf)
    return dict(zip(bounds, accumulate(counts.get(bound, 0.0) for bound in bounds), strict=True))


def _histogram(samples: Iterable[Sample]) -> dict[float, float]:
    bounds = [(s.labels["le"], s.value) for s in samples if s.name.endswith("_bucket")]
    return {math.inf if bound == "+Inf" else float(bound): count for bound, count in bounds}
