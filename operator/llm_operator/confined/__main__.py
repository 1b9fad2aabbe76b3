"""The process that `children` starts: a task comes in, a line for each entry goes out."""

import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

from llm_operator.confined import smoke


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
