"""Stored requests as records of an evaluation dataset:
what was asked, and what was answered as the expectation."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from llm_runtime.db.database import Database
from llm_runtime.db.tables import inference_log
from llm_runtime.errors import ConfigInvalid, RegistryUnreachable
from llm_runtime.filters.finder import Finder
from llm_runtime.usage.rows import Outcome

Json = dict[str, Any]
MOST_LOOKED_AT = 50_000
"""Requests that are read at most to find the records."""
AT_ONCE = 500
"""Records in one request to MLflow."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Records, and what became of the requests that are none."""

    records: list[Json]
    looked_at: int
    reasons: dict[str, int]

    @property
    def left_out(self) -> str:
        """In words."""
        return (
            ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
            or "none"
        )


async def choose(
    database: Database,
    finder: Finder,
    model: str,
    *,
    version: str,
    since: datetime | None,
    limit: int,
) -> Chosen:
    """The newest requests that a model can be asked again, each question once.
    Raises `DatabaseAway`."""
    async with database.read() as connection:
        rows = (await connection.execute(_stored(model, version, since))).all()
    reasons = Counter[str]()
    records = dict[str, Json]()
    looked_at = 0
    for prompt, completion in rows:
        if len(records) == limit:
            break
        looked_at += 1
        inputs = _inputs(prompt)
        if inputs is None or not completion:
            reasons["that can't be asked again"] += 1
        elif finder.find(prompt.encode()) or finder.find(completion.encode()):
            # Left out, not masked: a mask in a question makes it another one,
            # and its answer no expectation.
            reasons["with personal data"] += 1
        elif prompt in records:
            reasons["asked more than once"] += 1
        else:
            records[prompt] = {"inputs": inputs, "expectations": {"expected_response": completion}}
    return Chosen(list(records.values()), looked_at, dict(reasons))


def _stored(model: str, version: str, since: datetime | None) -> sa.Select[Any]:
    """Whole answers of one choice, of the model itself, the newest first."""
    log = inference_log.c
    wanted = [
        log.model == model, log.adapter == "", log.choices == 1, log.outcome == Outcome.COMPLETED.value,
        log.finish_reasons == "stop", log.prompt.is_not(None), log.completion.is_not(None),
    ]  # fmt: skip
    if version:
        wanted.append(log.model_version == version)
    if since is not None:
        wanted.append(log.at >= since)
    return (
        sa.select(log.prompt, log.completion)
        .where(*wanted)
        .order_by(log.at.desc())
        .limit(MOST_LOOKED_AT)
    )


def _inputs(prompt: str) -> Json | None:
    """What was asked, from `generation._one_text`; None for token ids and several prompts."""
    try:
        found = json.loads(prompt)
    except (ValueError, RecursionError):
        return {"prompt": prompt}
    if not isinstance(found, list):
        return {"prompt": prompt}
    messages = bool(found) and all(isinstance(each, dict) and "role" in each for each in found)
    return {"messages": found} if messages else None


def publish(records: list[Json], name: str, tracking_uri: str) -> str:
    """Merge the records into MLflow's dataset of this name, and say what came of it.
    Raises errors.Fatal."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri, tracking_uri)
    quote = '"' if "'" in name else "'"
    try:
        found = client.search_datasets(filter_string=f"name = {quote}{name}{quote}")
        if len(found) > 1:
            ids = ", ".join(sorted(each.dataset_id for each in found))
            raise ConfigInvalid(
                f"{len(found)} datasets are called {name} ({ids}): choose another name"
            )
        made = found[0] if found else client.create_dataset(name, experiment_id=["0"])
        inserted = 0
        for start in range(0, len(records), AT_ONCE):
            some = records[start : start + AT_ONCE]
            # Datasets' own `merge_records` wants pandas, which a pod does not have.
            inserted += client._tracking_client.store.upsert_dataset_records(made.dataset_id, some)[
                "inserted"
            ]
    except MlflowException as error:
        raise RegistryUnreachable(
            f"MLflow at {tracking_uri} did not take the dataset: {error}"
        ) from error
    return f"{inserted} records are new, {len(records) - inserted} were there; its id is {made.dataset_id}"
