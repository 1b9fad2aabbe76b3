"""One run of lm-evaluation-harness, in a process that alone has the harness on its path.

What to ask comes as JSON by standard input. What it found goes to the file that is named there.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the tasks and write figures, and each sample's answers."""
    import lm_eval  # type: ignore[import-not-found]

    asked = json.load(sys.stdin)
    found: Any = lm_eval.simple_evaluate(
        model=asked["backend"],
        model_args=asked["arguments"],
        tasks=asked["tasks"],
        apply_chat_template=asked["chat"],
        batch_size=1,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
        verbosity="WARNING",
    )
    figures = {
        f"{task}: {name.partition(',')[0]}": value
        for task, results in found["results"].items()
        for name, value in results.items()
        if isinstance(value, float) and "stderr" not in name
    }
    answers = {
        f"{task} {sample['doc_id']}": sample["resps"]
        for task, samples in found["samples"].items()
        for sample in samples
    }
    Path(asked["out"]).write_text(json.dumps({"figures": figures, "answers": answers}))


if __name__ == "__main__":
    main()
