"""MLflow, as an evaluation asks it: reads a dataset's records,
and writes a run with what was judged. Plain REST."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from llm_operator.evaluation.records import Record, Unusable
from llm_operator.ports.proxies import bounded, proxy_for
from llm_operator.ports.registry.connections import auth_of, headers_of, tls_of
from llm_operator.state import Connection

TIMEOUT_SECONDS = 30.0
MOST_RECORDS = 20_000
PAGE_RECORDS = 500
MOST_BYTES = 64 << 20
"""Largest size of one answer, and of all records together."""
EXPERIMENT = "llm-operator evaluations"
"""For versions that no run has made."""
DIGEST_CHARACTERS = 36
"""MLflow keeps no longer digest of an input; the whole one is a tag."""
TAG_CHARACTERS = 5000
METRICS_AT_ONCE = 500


class Away(Exception):
    """Something that is needed does not answer, or refuses; it may do so later."""


@dataclass(frozen=True)
class Dataset:
    """An evaluation dataset, with all its records."""

    id: str
    name: str
    records: list[Record]


@dataclass(frozen=True)
class Run:
    """What is written down about an evaluation."""

    name: str
    made_by: str
    """The run that made the judged version, where there is one."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    dataset: Dataset
    digest: str
    """Digest of all the records."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Text by name."""


class Tracking:
    """One MLflow server."""

    def __init__(self, connection: Connection) -> None:
        self._server = connection.tracking_uri
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT_SECONDS,
            headers=headers_of(connection) | {"Accept-Encoding": "identity"},
            auth=auth_of(connection),
            verify=tls_of(connection),
            proxy=proxy_for(connection.tracking_uri),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def dataset(self, wanted: str) -> Dataset:
        """The dataset of this name or id.
        Raises Unusable where there is none, or more than one, and Away."""
        found = await self._named(wanted) or await self._with_id(wanted)
        records = list[Record]()
        size = 0
        token = ""
        while True:
            query = {"max_results": str(PAGE_RECORDS)} | ({"page_token": token} if token else {})
            page = await self._call(
                "GET", f"3.0/mlflow/datasets/{quote(found['dataset_id'])}/records", query
            )
            text = page.get("records") or "[]"
            size += len(text)
            records += [_record(each) for each in json.loads(text)]
            if len(records) > MOST_RECORDS or size > MOST_BYTES:
                raise Unusable(
                    f"dataset {wanted} has over {MOST_RECORDS} records or {MOST_BYTES >> 20} MiB:"
                    " make a smaller one"
                )
            token = page.get("next_page_token") or ""
            if not token:
                return Dataset(found["dataset_id"], found["name"], records)

    async def _named(self, name: str) -> dict[str, Any] | None:
        mark = '"' if "'" in name else "'"
        query = {"filter_string": f"name = {mark}{name}{mark}", "max_results": 10}
        found = (await self._call("POST", "3.0/mlflow/datasets/search", query)).get(
            "datasets"
        ) or []
        if len(found) > 1:
            ids = ", ".join(sorted(each["dataset_id"] for each in found))
            raise Unusable(
                f"{len(found)} datasets are called {name}: write the id of one as dataset: {ids}"
            )
        return dict(found[0]) if found else None

    async def _with_id(self, wanted: str) -> dict[str, Any]:
        try:
            return dict(
                (await self._call("GET", f"3.0/mlflow/datasets/{quote(wanted, safe='')}", {}))[
                    "dataset"
                ]
            )
        except _Missing:
            raise Unusable(
                f"there is no dataset {wanted} on {self._server}: create it, or correct the name"
            ) from None

    async def write(self, run: Run) -> tuple[str, str]:
        """The id of a new, finished run, and why its files are not in it (empty: they are).
        Raises Away."""
        experiment = await self._experiment(run.made_by)
        tags = {
            "mlflow.runName": run.name,
            **({"mlflow.parentRunId": run.made_by} if run.made_by else {}),
            **run.tags,
        }
        made = await self._call(
            "POST",
            "2.0/mlflow/runs/create",
            {
                "experiment_id": experiment,
                "run_name": run.name,
                "start_time": _now(),
                "tags": _pairs(tags),
            },
        )
        info = made["run"]["info"]
        run_id = str(info["run_id"])
        metrics = [
            {"key": name, "value": value, "timestamp": _now(), "step": 0}
            for name, value in run.metrics.items()
        ]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            some = metrics[start : start + METRICS_AT_ONCE]
            await self._call(
                "POST", "2.0/mlflow/runs/log-batch", {"run_id": run_id, "metrics": some}
            )
        await self._call(
            "POST", "2.0/mlflow/runs/log-batch", {"run_id": run_id, "params": _pairs(run.params)}
        )
        judged = {
            "name": run.dataset.name,
            "digest": run.digest.removeprefix("sha256:")[:DIGEST_CHARACTERS],
            "source_type": "mlflow_evaluation_dataset",
            "source": json.dumps({"dataset_id": run.dataset.id}),
        }
        inputs = {"run_id": run_id, "datasets": [{"dataset": judged, "tags": []}]}
        await self._call("POST", "2.0/mlflow/runs/log-inputs", inputs)
        trouble = await self._upload(str(info.get("artifact_uri") or ""), run.files)
        ended = {"run_id": run_id, "status": "FINISHED", "end_time": _now()}
        await self._call("POST", "2.0/mlflow/runs/update", ended)
        return run_id, trouble

    async def _experiment(self, made_by: str) -> str:
        """Experiment of the run that made the version, so that both are found together."""
        try:
            if made_by:
                found = await self._call("GET", "2.0/mlflow/runs/get", {"run_id": made_by})
                return str(found["run"]["info"]["experiment_id"])
            found = await self._call(
                "GET", "2.0/mlflow/experiments/get-by-name", {"experiment_name": EXPERIMENT}
            )
            return str(found["experiment"]["experiment_id"])
        except _Missing:
            pass
        made = await self._call("POST", "2.0/mlflow/experiments/create", {"name": EXPERIMENT})
        return str(made["experiment_id"])

    async def _upload(self, place: str, files: Mapping[str, str]) -> str:
        parts = urlsplit(place)
        if parts.scheme != "mlflow-artifacts":
            return (
                f"its artifacts lie at {parts.scheme or 'a folder'}, not behind the server"
                " (--artifacts-destination)"
            )
        for name, text in files.items():
            path = quote(f"{parts.path.strip('/')}/evaluation/{name}")
            await self._call("PUT", f"2.0/mlflow-artifacts/artifacts/{path}", text)
        return ""

    async def _call(self, method: str, path: str, said: dict[str, Any] | str) -> dict[str, Any]:
        url = f"{self._server}/api/{path}"
        if isinstance(said, str):
            more: dict[str, Any] = {"content": said.encode("utf-8", "replace")}
        else:
            more = {"params" if method == "GET" else "json": said}
        try:
            async with self._client.stream(method, url, **more) as answer:
                body = await bounded(answer, MOST_BYTES)
        except (httpx.HTTPError, ValueError) as error:
            raise Away(
                f"MLflow at {self._server} does not answer ({type(error).__name__}: {error})"
            ) from error
        if answer.status_code == 404:
            raise _Missing(f"{path}: 404: {body[:200].decode(errors='replace')}")
        if answer.status_code != 200:
            told = body[:300].decode(errors="replace")
            raise Away(f"MLflow at {self._server} answers {answer.status_code} on {path}: {told}")
        try:
            return dict(json.loads(body or b"{}"))
        except (ValueError, TypeError) as error:
            raise Away(
                f"{url} answered something that is not MLflow's JSON: is the tracking URI right?"
            ) from error


class _Missing(Away):
    """404: there is no such thing, or the server knows no such route."""


def _record(found: dict[str, Any]) -> Record:
    return Record(found.get("inputs") or {}, found.get("expectations") or {})


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    # Longer ones are cut by MLflow without a word, or refused.
    return [{"key": name, "value": value[:TAG_CHARACTERS]} for name, value in values.items()]


def _now() -> int:
    return int(time.time() * 1000)
