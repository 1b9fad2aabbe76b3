"""All I/O to runtime pods: their figures. What they say of themselves is a hint, never a reason to stop a reconcile."""

import asyncio
import math
from collections.abc import Iterable
from typing import Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from llm_operator.state import Download, Figures, Manifest
from llm_runtime import contract

TIMEOUT_SECONDS = 2.0
MAX_BYTES = 4 << 20
AT_ONCE = 32
"""Pods asked at the same time, over all reconciles."""
SERVER_ERROR = "5"


class Pods(Protocol):
    """What the operator asks of running pods; a test's stand-in has this method too."""

    async def figures(self, pod: Manifest) -> Figures | None:
        """What the pod says of itself; None when it does not answer."""
        ...


class HttpPods:
    """The real ones, at the addresses in their status."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False)
        self._places = asyncio.Semaphore(AT_ONCE)

    async def figures(self, pod: Manifest) -> Figures | None:
        address = (pod.get("status") or {}).get("podIP")
        if not address:
            return None
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._places, asyncio.timeout(TIMEOUT_SECONDS):
                return read(await self._text(f"http://{host}:{contract.PORT}{contract.METRICS_PATH}"))
        except (httpx.HTTPError, TimeoutError, ValueError):
            return None

    async def _text(self, url: str) -> str:
        async with self._client.stream("GET", url) as answer:
            answer.raise_for_status()
            found = b""
            async for chunk in answer.aiter_bytes():
                found += chunk
                if len(found) > MAX_BYTES:
                    raise ValueError(f"{url} sent more than {MAX_BYTES} bytes")
        return found.decode()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def read(text: str) -> Figures:
    """Figures from the Prometheus text format. Raises ValueError for anything else."""
    samples = {family.name: family.samples for family in text_string_to_metric_families(text)}

    def value(name: str) -> float | None:
        return next((sample.value for sample in samples.get(name, ())), None)

    total = value(contract.METRIC_DOWNLOAD_SIZE_BYTES)
    done, rate = value(contract.METRIC_DOWNLOADED_BYTES), value(contract.METRIC_DOWNLOAD_RATE)
    requests = [s for s in samples.get(contract.METRIC_API_REQUESTS, ()) if s.name.endswith("_total")]
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
        errors=sum(s.value for s in requests if s.labels.get("status", "").startswith(SERVER_ERROR)),
        first_token=_histogram(samples.get(contract.METRIC_FIRST_TOKEN, ())),
        inter_token=_histogram(samples.get(contract.METRIC_INTER_TOKEN, ())),
    )


def _histogram(samples: Iterable[Sample]) -> dict[float, float]:
    bounds = [(s.labels["le"], s.value) for s in samples if s.name.endswith("_bucket")]
    return {math.inf if bound == "+Inf" else float(bound): count for bound, count in bounds}
