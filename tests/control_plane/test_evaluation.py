"""`llm-operator evaluate` with a real MLflow server, and two versions that answer over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.genai.datasets import create_dataset, delete_dataset
from typer.testing import CliRunner

from llm_operator.__main__ import main
from llm_operator.crds.rollout import GateSpec
from llm_operator.evaluation import evaluate, task
from llm_operator.evaluation.records import Record, digest
from llm_operator.plans.evidence import gates
from llm_operator.state import EvaluationOutcome, Evidence, Pods
from llm_runtime import contract
from llm_runtime.__main__ import cli
from llm_runtime.contract import DatabaseConfig
from llm_runtime.metrics import Metrics
from llm_runtime.usage.writer import DatabaseUsage
from mlflow_fixtures import mlflow_server
from usage_rows import empty, row

__all__ = ["mlflow_server"]
CANDIDATE = "127.77.1.1"
STABLE = "127.77.1.2"
NOBODY = "127.77.1.3"
RECORDS = 200
Says = Callable[[str], tuple[int, str]]


@contextmanager
def answering(address: str, says: Says, asked: list[Any] | None = None) -> Iterator[None]:
    """A pod at this address that answers each question as `says` does: with a status and a text."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked is not None:
                asked.append((self.headers.get("Authorization"), body))
            status, text = says(body["messages"][-1]["content"])
            sent = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((address, contract.PORT), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def right(question: str) -> tuple[int, str]:
    return 200, str(int(question) ** 2)


def wrong_on_a_tenth(question: str) -> tuple[int, str]:
    return (200, "no idea") if int(question) % 10 == 0 else right(question)


@pytest.fixture
def dataset(mlflow_server: str) -> Iterator[str]:
    mlflow.set_tracking_uri(mlflow_server)
    made = create_dataset(name=f"golden-{uuid.uuid4().hex[:8]}", experiment_id="0")
    made.merge_records(
        [
            {
                "inputs": {"question": str(number)},
                "expectations": {"expected_response": str(number**2)},
            }
            for number in range(RECORDS)
        ]
    )
    yield made.name
    delete_dataset(dataset_id=made.dataset_id)


class Evaluation:
    """One gate, judged by the command as the Job runs it."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        connections = {"default": {"trackingUri": uri}}
        self.config.write_text(
            yaml.safe_dump({"runtimeImage": "runtime:1", "connections": connections})
        )

    def run(
        self, stable: str | None = STABLE, judge: task.Judge | None = None, **spec: Any
    ) -> EvaluationOutcome:
        self.gate = GateSpec.model_validate(
            {"evaluation": {"scorers": [{"type": "Exact"}], **spec}}
        )
        assert self.gate.evaluation is not None
        given = task.Task(
            spec=self.gate.evaluation,
            namespace="team",
            name="bot",
            connection="default",
            candidate=task.Side("revision cand", "2", "bot"),
            stable=None if stable is None else task.Side("revision stab", "1", "bot"),
            model="bot",
            key="the-key",
            judges=(judge,) if judge else (),
        )
        asked = self.folder / "task.json"
        asked.write_text(task.to_json(given))
        self.tell(Pods((CANDIDATE,), tuple(filter(None, [stable]))))
        report = self.folder / "report"
        main([f"--config={self.config}", "evaluate", f"--task={asked}", f"--report={report}"])
        assert len(report.read_bytes()) <= task.REPORT_BYTES
        self.outcome = task.outcome(report.read_text())
        return self.outcome

    def tell(self, pods: Pods) -> None:
        """Whom to ask, as the operator tells a Job that runs."""
        (self.folder / "pods.json").write_text(task.pods_to_json(pods))

    @property
    def state(self) -> str:
        evidence = Evidence(evaluations={gates.key(self.gate): self.outcome})
        return gates.judge([self.gate], evidence)[0].state


@pytest.fixture
def evaluation(mlflow_server: str, tmp_path: Path) -> Evaluation:
    return Evaluation(mlflow_server, tmp_path)


def test_a_version_that_is_wrong_on_a_tenth_fails_and_the_run_keeps_what_was_judged(
    evaluation: Evaluation, dataset: str, tmp_path: Path
) -> None:
    asked = list[Any]()
    with answering(CANDIDATE, wrong_on_a_tenth, asked), answering(STABLE, right):
        found = evaluation.run(dataset=dataset, maxDropVsStable=0.02, minScore=0.5)
    assert evaluation.state == "Failed"
    assert found.score is not None
    assert found.drop is not None
    assert found.score.figure == pytest.approx(0.9)
    assert found.drop.low > 0.02
    assert len(asked) == found.samples == RECORDS
    key, body = asked[0]
    assert key == "Bearer the-key"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("bot", 256, 0)
    run = mlflow.get_run(found.message.rpartition("run ")[2])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["drop"] == pytest.approx(0.1)
    assert run.data.tags["llm-operator.version"] == "2"
    [lines] = [
        Path(
            mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id, artifact_path=path, dst_path=str(tmp_path)
            )
        )
        for path in ("evaluation/records.jsonl",)
    ]
    judged = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sum(each["candidate"]["scores"]["1.Exact"] for each in judged) == RECORDS * 0.9
    records = [Record(each["inputs"], each["expectations"]) for each in judged]
    assert run.data.tags["llm-operator.judged-digest"] == digest(records) in found.message


def test_a_version_that_is_as_good_passes(evaluation: Evaluation, dataset: str) -> None:
    with answering(CANDIDATE, right), answering(STABLE, right):
        evaluation.run(dataset=dataset, maxDropVsStable=0.02, minScore=0.95)
    assert evaluation.state == "Passed"


def test_a_first_version_is_judged_by_its_score_alone(evaluation: Evaluation, dataset: str) -> None:
    with answering(CANDIDATE, wrong_on_a_tenth):
        found = evaluation.run(
            stable=None, dataset=dataset, maxDropVsStable=0.02, minScore=0.97, sample=RECORDS
        )
    assert found.drop is None
    assert "no stable version to compare with" in found.message
    assert evaluation.state == "Failed"


def test_a_stable_that_is_broken_is_no_measure(evaluation: Evaluation, dataset: str) -> None:
    with answering(CANDIDATE, right), answering(STABLE, lambda _: (500, "broken")):
        found = evaluation.run(dataset=dataset, maxDropVsStable=0.02, sample=40)
    assert "not compared with stable, which is broken itself: 40 of 40" in found.message
    assert evaluation.state == "Inconclusive"


def test_a_stable_without_pods_is_no_measure_and_the_score_alone_decides(
    evaluation: Evaluation, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "PATIENCE_SECONDS", 2.0)
    with answering(CANDIDATE, right):
        found = evaluation.run(
            stable="", dataset=dataset, maxDropVsStable=0.02, minScore=0.9, sample=80
        )
    assert (
        "not compared with stable, which is broken itself: the pods of revision stab do not"
        " answer: no pod is ready" in found.message
    )
    assert evaluation.state == "Passed"


def test_a_pod_that_is_replaced_while_it_is_asked_costs_no_record(
    evaluation: Evaluation, dataset: str
) -> None:
    """Its address becomes another deployment's, which does not know the model."""
    moved = []

    def leaves(question: str) -> tuple[int, str]:
        if not moved:
            moved.append(question)
            evaluation.tell(Pods((NOBODY,)))
        return 404, "no such model"

    with answering(CANDIDATE, leaves), answering(NOBODY, right):
        found = evaluation.run(stable=None, dataset=dataset, minScore=0.9, sample=40)
    assert found.score is not None
    assert (found.score.figure, found.samples) == (1.0, 40)


def test_records_that_were_answered_before_the_deadline_are_judged(
    evaluation: Evaluation, dataset: str
) -> None:
    def slow(question: str) -> tuple[int, str]:
        time.sleep(0.5)
        return right(question)

    with answering(CANDIDATE, slow):
        found = evaluation.run(stable=None, dataset=dataset, minScore=0.5, deadlineSeconds=10)
    assert 0 < found.samples < RECORDS
    assert "more were not answered in time" in found.message


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"dataset": "nobody's"}, "there is no dataset nobody's"),
        ({"digest": "sha256:" + "0" * 64}, "was changed: its records have the digest sha256:"),
        ({"scorers": [{"type": "Contains"}, {"type": "Regex"}]}, "no usable expectation pattern"),
    ],
)
def test_what_keeps_an_evaluation_from_being_made_is_told_before_anybody_is_asked(
    evaluation: Evaluation, dataset: str, spec: dict[str, Any], told: str
) -> None:
    found = evaluation.run(**{"dataset": dataset, "minScore": 0.5, **spec})
    assert told in found.waiting
    assert evaluation.state == "Waiting"


def test_an_empty_dataset_and_two_of_one_name_are_told(
    evaluation: Evaluation, mlflow_server: str
) -> None:
    mlflow.set_tracking_uri(mlflow_server)
    name = f"empty-{uuid.uuid4().hex[:8]}"
    create_dataset(name=name, experiment_id="0")
    assert "has no records" in evaluation.run(dataset=name, minScore=0.5).waiting
    second = create_dataset(name=name, experiment_id="0")
    assert "2 datasets are called" in evaluation.run(dataset=name, minScore=0.5).waiting
    assert "has no records" in evaluation.run(dataset=second.dataset_id, minScore=0.5).waiting


@pytest.mark.parametrize(("mark", "state"), [(5, "Passed"), (1, "Failed"), ("a poem", "Waiting")])
def test_a_judge_gives_marks_and_one_that_gives_none_is_told(
    evaluation: Evaluation, dataset: str, mark: Any, state: str
) -> None:
    judge = task.Judge(f"http://{NOBODY}:{contract.PORT}/v1", "judge")
    scorers = [{"type": "Judge", "judge": {"url": judge.url, "model": "judge"}}]
    said = json.dumps({"reason": "so", "mark": mark})
    with answering(CANDIDATE, right), answering(NOBODY, lambda _: (200, said)):
        evaluation.run(
            stable=None, judge=judge, dataset=dataset, scorers=scorers, minScore=0.9, sample=60
        )
    assert evaluation.state == state


def test_a_judge_whose_reason_has_no_end_is_asked_for_the_mark_alone(
    evaluation: Evaluation, dataset: str
) -> None:
    judge = task.Judge(f"http://{NOBODY}:{contract.PORT}/v1", "judge")
    scorers = [{"type": "Judge", "judge": {"url": judge.url, "model": "judge"}}]
    asked = list[Any]()

    def rambles(_: str) -> tuple[int, str]:
        [*_, (_, body)] = asked
        wanted = body["response_format"]["json_schema"]["schema"]["required"]
        return 200, '{"mark": 5}' if wanted == ["mark"] else '{"reason": "and so on and so on'

    with answering(CANDIDATE, right), answering(NOBODY, rambles, asked):
        found = evaluation.run(
            stable=None, judge=judge, dataset=dataset, scorers=scorers, minScore=0.5, sample=4
        )
    assert found.score is not None
    assert found.score.figure == 1
    assert len(asked) == 8


def test_an_mlflow_that_is_away_is_told(tmp_path: Path) -> None:
    evaluation = Evaluation("http://127.77.1.9:1", tmp_path)
    assert "does not answer" in evaluation.run(dataset="golden", minScore=0.5).waiting


def test_recorded_requests_become_a_dataset_that_can_be_evaluated(
    evaluation: Evaluation, mlflow_server: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'usage.db'}"

    async def fill() -> None:
        database = await empty(url)
        async with DatabaseUsage(
            database, DatabaseConfig(flush_seconds=0.02, store_prompts=True), Metrics()
        ) as usage:
            for number in range(60):
                usage.write(
                    row(request_id=f"r{number}", prompt=str(number), completion=str(number**2))
                )
        await database.close()

    asyncio.run(fill())
    name = f"recorded-{uuid.uuid4().hex[:8]}"
    words = [
        "dataset",
        name,
        "--model",
        "bot",
        "--database-url",
        url,
        "--tracking-uri",
        mlflow_server,
    ]
    assert "60 records are new" in CliRunner().invoke(cli, words).output
    assert "0 records are new, 60 were there" in CliRunner().invoke(cli, words).output
    with answering(CANDIDATE, wrong_on_a_tenth), answering(STABLE, right):
        found = evaluation.run(dataset=name, maxDropVsStable=0.02)
    assert found.samples == 60
    assert found.drop is not None
    assert found.drop.figure == pytest.approx(0.1)
