"""One evaluation: read the dataset, ask both sides the same records, score, compare,
and write a run."""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_operator.crds.rollout import ScorerSpec
from llm_operator.evaluation import intervals, scorers
from llm_operator.evaluation.judge import JudgeModel
from llm_operator.evaluation.records import Record, Unusable, digest, ordered
from llm_operator.evaluation.task import Side, Task
from llm_operator.evaluation.tracking import Away, Dataset, Run, Tracking
from llm_operator.ports.pods import HttpPods
from llm_operator.state import Connection, Estimate, EvaluationOutcome, Pods

log = logging.getLogger(__name__)
AT_ONCE = 4
"""Records that are asked at the same time."""
PATIENCE_SECONDS = 120.0
"""How long a side's pods may be busy, or away, before it counts as not answering.
A kubelet takes up to a minute or so to bring the addresses of new ones."""
PAUSE_SECONDS = 1.0
NOT_YET = (0, 401, 403, 404, 429, 503)
"""Answers of a pod that is not to blame: it has not read its key file or its list of adapters yet,
is busy, or is gone and somebody else has its address."""
TIMED_OUT = "TimeoutError"
"""How the text of an answer begins that did not come in time: that is the model's fault."""
TOO_BAD = 0.01
"""Largest probability that a bound fails a good candidate, over all checks of the gate."""
TOO_GOOD = 0.05
"""Largest probability that a bound passes a bad candidate, over all checks of the gate."""
BROKEN = 0.1
"""Share of records without an answer from which on stable is no measure."""


@dataclass(frozen=True)
class Answer:
    """A side's answer to a record, and its score."""

    text: str
    trouble: str
    """Why there is none."""
    scores: tuple[float, ...]
    """By scorer."""

    @property
    def score(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Judged:
    """A record with the answers of both sides."""

    record: Record
    candidate: Answer
    stable: Answer | None


async def evaluate(
    task: Task, connection: Connection, pods: Callable[[], Pods]
) -> EvaluationOutcome:
    """What became of the evaluation. Whatever keeps it from being made is told in `waiting`.
    `pods`: those to ask, as they are now."""
    tracking = Tracking(connection)
    try:
        dataset = await tracking.dataset(task.spec.dataset)
        known = digest(dataset.records)
        sample = _sample(task, dataset, known)
        judged, broken = await _Asking(task, pods).all(sample)
        found = _outcome(task, judged, len(sample), broken)
        notes = [
            f"{len(judged)} of {len(dataset.records)} records of dataset {dataset.name}, {known}",
            found.message,
        ]
        notes.append(await _written(task, tracking, dataset, known, judged, found))
        return EvaluationOutcome(
            found.score, found.drop, found.samples, "; ".join(filter(None, notes))
        )
    except (Unusable, Away) as fault:
        return EvaluationOutcome(waiting=str(fault))
    finally:
        await tracking.close()


def _sample(task: Task, dataset: Dataset, known: str) -> list[Record]:
    if not dataset.records:
        raise Unusable(f"dataset {dataset.name} has no records: add some")
    if task.spec.digest not in (None, known):
        raise Unusable(
            f"dataset {dataset.name} was changed: its records have the digest {known}, the gate"
            f" asks for {task.spec.digest}: correct the dataset or the gate"
        )
    sample = ordered(dataset.records)[: task.spec.sample]
    for record in sample:
        _ = record.asked  # Raises before anybody was asked anything.
        for spec in task.spec.scorers:
            if spec.type != "Judge":
                scorers.score(spec, record, "")
    return sample


class _Asking:
    """Asks records of both sides until the deadline."""

    def __init__(self, task: Task, pods: Callable[[], Pods]) -> None:
        self._task = task
        self._now = pods
        self._http = HttpPods()
        judges = iter(task.judges)
        self._judges = {
            index: JudgeModel(next(judges), spec.judge.criteria if spec.judge else None)
            for index, spec in enumerate(task.spec.scorers)
            if spec.type == "Judge"
        }
        self._turns = itertools.count()
        self._broken = ""

    async def all(self, sample: Sequence[Record]) -> tuple[list[Judged], str]:
        """The records that both sides answered in time, in their order,
        and why stable is no measure (empty: it is)."""
        found: dict[int, Judged] = {}
        left = iter(enumerate(sample))

        async def work() -> None:
            for index, record in left:
                found[index] = await self._judged(record)

        try:
            async with (
                asyncio.timeout(self._task.spec.deadline_seconds),
                asyncio.TaskGroup() as group,
            ):
                for _ in range(AT_ONCE):
                    group.create_task(work())
        except TimeoutError:
            log.warning(
                "%d of %d records were answered before the deadline", len(found), len(sample)
            )
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from None
        finally:
            await self._http.close()
            for judge in self._judges.values():
                await judge.close()
        # A later record may be answered where an earlier one was not:
        # those behind a gap would be the quick ones.
        whole = list(itertools.takewhile(lambda index: index in found, range(len(sample))))
        return [found[index] for index in whole], self._broken

    async def _judged(self, record: Record) -> Judged:
        said = await self._ask(self._task.candidate, lambda: self._now().candidate, record)
        candidate = await self._scored(record, *said)
        stable = None
        if self._task.stable is not None and not self._broken:
            try:
                said = await self._ask(self._task.stable, lambda: self._now().stable, record)
            except Away as away:
                self._broken = str(away)
            else:
                stable = await self._scored(record, *said)
        return Judged(record, candidate, stable)

    async def _scored(self, record: Record, text: str, trouble: str) -> Answer:
        specs = self._task.spec.scorers
        if trouble:
            return Answer("", trouble, (0.0,) * len(specs))
        return Answer(
            text,
            "",
            tuple([await self._score(n, spec, record, text) for n, spec in enumerate(specs)]),
        )

    async def _score(self, index: int, spec: ScorerSpec, record: Record, text: str) -> float:
        if spec.type == "Judge":
            return await self._judges[index].score(record, text[: scorers.MOST_CHARACTERS])
        return scorers.score(spec, record, text)

    async def _ask(
        self, side: Side, addresses: Callable[[], tuple[str, ...]], record: Record
    ) -> tuple[str, str]:
        """The text of an answer, or what the model did wrong.
        Raises Away where no pod of the side answers."""
        asked = {
            **record.asked,
            "model": side.model,
            "max_tokens": self._task.spec.max_tokens,
            "temperature": 0,
        }
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            said = "no pod is ready"
            # Read anew each time: pods come and go while their records are asked.
            if there := addresses():
                pod = {"status": {"podIP": there[next(self._turns) % len(there)]}}
                answer = await self._http.ask(pod, self._task.key, asked)
                if answer.status == 200:
                    return answer.text, ""
                if answer.status not in NOT_YET or answer.text.startswith(TIMED_OUT):
                    return "", f"{answer.status or 'no answer'}: {answer.text[:200]}"
                said = f"{answer.status or ''} {answer.text[:200]}".strip()
            if time.monotonic() > until:
                raise Away(f"the pods of {side.name} do not answer: {said}")
            await asyncio.sleep(PAUSE_SECONDS)


def _outcome(task: Task, judged: Sequence[Judged], asked: int, broken: str) -> EvaluationOutcome:
    if not judged:
        raise Away(f"no record was answered within {task.spec.deadline_seconds} s")
    checks = sum(each is not None for each in (task.spec.min_score, task.spec.max_drop_vs_stable))
    bad = TOO_BAD / checks
    good = TOO_GOOD / checks
    scores = [each.candidate.score for each in judged]
    mean = sum(scores) / len(scores)
    score = Estimate(mean, intervals.lower(scores, good), intervals.upper(scores, bad))
    notes = [f"{asked - len(judged)} more were not answered in time" if len(judged) < asked else ""]
    drop = None
    pairs = [(each.candidate, each.stable) for each in judged if each.stable is not None]
    failed = sum(bool(stable.trouble) for _, stable in pairs)
    if task.stable is None:
        notes.append("there is no stable version to compare with")
    elif broken or len(pairs) < len(judged) or failed > BROKEN * len(pairs):
        told = broken or f"{failed} of {len(pairs)} records have no answer of it"
        notes.append(f"not compared with stable, which is broken itself: {told}")
    else:
        # Scores of 0 to 1, record by record: what is hard for both has no effect.
        differences = [stable.score - candidate.score for candidate, stable in pairs]
        drop = Estimate(
            sum(differences) / len(differences),
            intervals.lower_difference(differences, bad),
            intervals.upper_difference(differences, good),
        )
    return EvaluationOutcome(score, drop, len(judged), "; ".join(filter(None, notes)))


async def _written(
    task: Task,
    tracking: Tracking,
    dataset: Dataset,
    known: str,
    judged: Sequence[Judged],
    found: EvaluationOutcome,
) -> str:
    """What is to be told of the run. The verdict does not wait for it."""
    if not task.write:
        return "no run is written, as writeVerdicts says"
    run = _run(task, dataset, known, judged, found)
    try:
        run_id, trouble = await tracking.write(run)
    except Away as away:
        return f"the run is not written: {away}"
    return f"run {run_id}" + (f" without its records, as {trouble}" if trouble else "")


def _run(
    task: Task, dataset: Dataset, known: str, judged: Sequence[Judged], found: EvaluationOutcome
) -> Run:
    lines = "".join(json.dumps(_told(task, each), ensure_ascii=False) + "\n" for each in judged)
    of_judged = digest(each.record for each in judged)
    metrics = {"records": float(len(judged))}
    for name, estimate in (("score", found.score), ("drop", found.drop)):
        if estimate is not None:
            metrics |= {
                name: estimate.figure,
                f"{name}.low": estimate.low,
                f"{name}.high": estimate.high,
            }
    for index, spec in enumerate(task.spec.scorers):
        metrics[f"candidate.{index + 1}.{spec.type}"] = sum(
            e.candidate.scores[index] for e in judged
        ) / len(judged)
        of_stable = [each.stable.scores[index] for each in judged if each.stable is not None]
        if of_stable:
            metrics[f"stable.{index + 1}.{spec.type}"] = sum(of_stable) / len(of_stable)
    return Run(
        name=f"evaluation of {task.model or task.name} version {task.candidate.version}",
        made_by=task.made_by,
        tags={
            "llm-operator.deployment": f"{task.namespace}/{task.name}",
            "llm-operator.model": task.model,
            "llm-operator.version": task.candidate.version,
            "llm-operator.candidate": task.candidate.name,
            "llm-operator.stable-version": task.stable.version if task.stable else "none",
            "llm-operator.dataset-digest": known,
            "llm-operator.judged-digest": of_judged,
        },
        params={
            "dataset": dataset.name,
            "dataset_id": dataset.id,
            **{name: str(value) for name, value in task.spec.model_dump(include=_PARAMS).items()},
        },
        metrics=metrics,
        dataset=dataset,
        digest=known,
        files={"records.jsonl": lines},
    )


_PARAMS = {"sample", "max_tokens", "min_score", "max_drop_vs_stable", "deadline_seconds"}


def _told(task: Task, judged: Judged) -> dict[str, object]:
    def side(answer: Answer | None) -> dict[str, object] | None:
        if answer is None:
            return None
        scores = {
            f"{n + 1}.{spec.type}": answer.scores[n] for n, spec in enumerate(task.spec.scorers)
        }
        return {"answer": answer.text, "trouble": answer.trouble, "scores": scores}

    record = {
        "id": judged.record.id,
        "inputs": judged.record.inputs,
        "expectations": judged.record.expectations,
    }
    return {**record, "candidate": side(judged.candidate), "stable": side(judged.stable)}
