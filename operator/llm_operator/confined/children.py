"""Starts the processes that read and judge what tenants write, and takes what they say."""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

CPU_SECONDS = 2
WALL_SECONDS = 30.0
"""On a machine that is busy with something else; the child works for CPU_SECONDS at most."""
MEMORY_BYTES = 256 << 20
AT_ONCE = 2
READ_KEPT = 8
"""ConfigMaps whose prompts are remembered: every pod of every candidate is asked the same ones."""
TOO_MUCH = f"takes more than {CPU_SECONDS} s of computing or {MEMORY_BYTES >> 20} MiB of memory"


class Confined:
    """Starts the children, a few at a time."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._read = dict[str, dict[str, dict[str, Any]]]()
        """Prompts by the digest of what they were read from; the one longest known first."""

    async def prompts(self, data: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """What to ask by the name of the ConfigMap's entry.
        Raises ValueError with a sentence for its author."""
        digest = hashlib.sha256(json.dumps(dict(data), sort_keys=True).encode()).hexdigest()
        if (known := self._read.get(digest)) is not None:
            return known
        lines, whole = await self._run({"data": dict(data)})
        if lines and isinstance(lines[0], str):
            raise ValueError(lines[0])
        if not whole:
            raise ValueError(f"reading it {TOO_MUCH}: write fewer or simpler entries")
        self._read[digest] = dict(lines)
        if len(self._read) > READ_KEPT:
            del self._read[next(iter(self._read))]
        return self._read[digest]

    async def faults(self, data: Mapping[str, str], answers: Mapping[str, str]) -> list[str]:
        """One sentence for each of the answers, by the entry's name,
        that is not as the entry expects."""
        if not answers:
            return []
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
                sys.executable, "-P", "-m", __package__, str(CPU_SECONDS), str(MEMORY_BYTES),
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
