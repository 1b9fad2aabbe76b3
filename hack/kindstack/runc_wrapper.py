"""runc for a machine without CAP_SYS_RESOURCE: runc_wrapper.py RUNC ARGUMENT...

A privileged container asks for every capability, a negative OOM score and raised limits, and runc
fails where the machine itself lacks them. This leaves them out of the container's configuration and
becomes runc.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

MISSING = "CAP_SYS_RESOURCE"


def main() -> None:
    """Rewrite what the arguments point to, then run the real runtime in this process's place."""
    runc = sys.argv[1]
    arguments = sys.argv[2:]
    if "create" in arguments or "run" in arguments:
        file = Path(option(arguments, "--bundle", "-b") or ".") / "config.json"
        config = json.loads(file.read_text())
        lessen(config["process"])
        file.write_text(json.dumps(config))
    elif "exec" in arguments and (given := option(arguments, "--process", "-p")):
        file = Path(given)
        process = json.loads(file.read_text())
        lessen(process)
        file.write_text(json.dumps(process))
    os.execv(runc, [runc, *arguments])


def option(arguments: list[str], *names: str) -> str | None:
    """The value of an option, in either form: `--name value` or `--name=value`."""
    for index, word in enumerate(arguments):
        if word in names and index + 1 < len(arguments):
            return arguments[index + 1]
        for name in names:
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
    return None


def lessen(process: dict[str, Any]) -> None:
    """Take out of a process what the machine can't give."""
    for kind, names in (process.get("capabilities") or {}).items():
        process["capabilities"][kind] = [name for name in names if name != MISSING]
    if (process.get("oomScoreAdj") or 0) < 0:
        process["oomScoreAdj"] = 0
    process.pop("rlimits", None)


if __name__ == "__main__":
    main()
