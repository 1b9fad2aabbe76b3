"""The step trace: a line for each step, never more than two files, never a reason to fail."""

import json
from pathlib import Path

from llm_runtime.engine.trace import StepRecord, StepTrace
from unit.runtime.engine.fakes import ScriptedRunner, collect, engine, request
from waiting import until


async def test_each_step_is_a_line(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    running = engine(ScriptedRunner({"a": "hello"}), trace=StepTrace(file))
    await collect(running, request(name="a", max_tokens=20))
    running.close()
    steps = [json.loads(line) for line in file.read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step["prefill_tokens"] for step in steps] == [3, 0, 0, 0, 0, 0]
    assert [step["decode_tokens"] for step in steps] == [0, 1, 1, 1, 1, 1]
    assert all(
        min(step[part] for part in ("schedule", "forward", "advance", "send")) >= 0
        for step in steps
    )


async def test_an_idle_engine_has_written_everything(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    running = engine(ScriptedRunner({"a": "hi"}), trace=StepTrace(file))
    await collect(running, request(name="a"))
    await until(lambda: len(file.read_text().splitlines()) == 3)
    running.close()


def test_a_full_file_makes_room(tmp_path: Path) -> None:
    trace = StepTrace(tmp_path / "steps.jsonl", max_bytes=2000)
    for step in range(100):
        trace.write(StepRecord(step, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 0, 1, 1, 0))
    trace.close()
    assert {path.name for path in tmp_path.iterdir()} == {"steps.jsonl", "steps.jsonl.1"}
    assert all(path.stat().st_size < 2500 for path in tmp_path.iterdir())


async def test_a_file_that_can_not_be_written_stops_nobody(tmp_path: Path) -> None:
    running = engine(
        ScriptedRunner({"a": "hi"}), trace=StepTrace(tmp_path / "missing" / "steps.jsonl")
    )
    assert len(await collect(running, request(name="a"))) == 3
    running.close()
