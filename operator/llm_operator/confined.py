"""Reads and judges what tenants write, in a process of its own that is bounded in time and memory.

The operator has one event loop for all: a schema,
a pattern or a YAML document that takes for ever takes itself alone.
"""

import asyncio
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from llm_operator.plans.evidence import smoke

CPU_SECONDS = 2
WALL_SECONDS = 30.0
"""On a machine that is busy with something else; the child works for CPU_SECONDS at most."""
MEMORY_BYTES = 256 << 20
AT_ONCE = 2
TOO_MUCH = f"takes more than {CPU_SECONDS} s of computing or {MEMORY_BYTES >> 20} MiB of memory"


class Confined:
    """Starts the children, a few at a time."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)

    async def prompts(self, data: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """What to ask by the name of the ConfigMap's entry.
        Raises ValueError with a sentence for its author."""
        lines, whole = await self._run({"data": dict(data)})
        if lines and isinstance(lines[0], str):
            raise ValueError(lines[0])
        if not whole:
            raise ValueError(f"reading it {TOO_MUCH}: write fewer or simpler entries")
        return dict(lines)

    async def faults(self, data: Mapping[str, str], answers: Mapping[str, str]) -> list[str]:
        """One sentence for each of the answers, by the entry's name,
        that is not as the entry expects."""
        lines, whole = await self._run({"data": dict(data), "answers": dict(answers)})
        found = [f"{name}: {wrong}" for name, wrong in lines if wrong]
        unjudged = list(answers)[len(lines) :]
        if not whole and unjudged:
            found.append(
                f"{unjudged[0]}: comparing its answer {TOO_MUCH}: write a simpler expectation"
            )
        return found

    async def _run(self, task: dict[str, Any]) -> tuple[list[Any], bool]:
        """The child's lines, and whether it came to its end."""
        async with self._places:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", __name__, str(CPU_SECONDS), str(MEMORY_BYTES),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
            try:
                async with asyncio.timeout(WALL_SECONDS):
                    output, _ = await child.communicate(json.dumps(task).encode())
            except TimeoutError:
                return [], False
            finally:
                if child.returncode is None:
                    with suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()
        # The last line may be cut off where the child was ended.
        lines = output.decode(errors="replace").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")], child.returncode == 0


def work(task: dict[str, Any]) -> Iterator[Any]:
    """The child's work: a line for each entry, or the sentence that the author is told."""
    try:
        found = smoke.read(task["data"])
    except ValueError as error:
        yield str(error)
        return
    for name, answer in (task.get("answers") or {}).items():
        yield name, smoke.fault(found[name].expect, answer)
    if "answers" not in task:
        for name, prompt in found.items():
            yield name, prompt.body()


def main() -> None:
    """Read a task, write its lines. The limits are this process's own: nothing sets them back."""
    for limit, most in zip(
        (resource.RLIMIT_CPU, resource.RLIMIT_AS), map(int, sys.argv[1:]), strict=True
    ):
        resource.setrlimit(limit, (most, most))
    os.nice(5)
    for line in work(json.load(sys.stdin)):
        sys.stdout.write(json.dumps(line, default=str) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
