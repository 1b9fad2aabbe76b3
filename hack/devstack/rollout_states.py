"""docs/rollouts.md with the diagram of llm_operator.plans.rollout.states:
`rollout_states FILE` writes it to stdout."""

import re
import sys
from pathlib import Path

from llm_operator.plans.rollout.states import mermaid


def main() -> None:
    text = Path(sys.argv[1]).read_text()
    drawn, found = re.subn(
        r"(?<=```mermaid\n)stateDiagram-v2\n.*?(?=\n```)",
        lambda _: mermaid(),
        text,
        flags=re.DOTALL,
    )
    if found != 1:
        sys.exit(
            f"{sys.argv[1]} has {found} mermaid blocks that begin with stateDiagram-v2: write"
            " exactly one"
        )
    sys.stdout.write(drawn)


if __name__ == "__main__":
    main()
