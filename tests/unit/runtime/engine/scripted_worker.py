"""The engine's process around a scripted model:
`python scripted_worker.py LOG_FORMAT LOG_LEVEL STEP_TRACE SOCKET`.

The folder to load says what to do: `missing` fails as a fetched model can, `broken` as only a bug
would, `dies` ends the process while it loads; any other name is what the model answers, a character
every STEP_SECONDS.
"""

import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[4]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "tests")]

from llm_runtime import worker  # noqa: E402
from llm_runtime.contract import RuntimeConfig  # noqa: E402
from llm_runtime.engine.model import Model, TellCodec  # noqa: E402
from llm_runtime.engine.scheduler import Batch  # noqa: E402
from llm_runtime.engine.sequence import Sampled, Sequence  # noqa: E402
from llm_runtime.errors import ModelNotFound  # noqa: E402
from unit.runtime.engine.fakes import EOS, ScriptedRunner, model  # noqa: E402

STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.005"))


class FolderRunner(ScriptedRunner):
    """Says its folder's name over and over to whoever asks for "forever", else once."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, batch: Batch) -> list[Sampled]:
        time.sleep(STEP_SECONDS)
        return super().forward(batch)

    def _next(self, of: Sequence) -> Sampled:
        index = of.output_length
        if index >= len(self.name) and "forever" not in bytes(of.request.prompt_token_ids).decode():
            return Sampled(EOS)
        return Sampled(ord(self.name[index % len(self.name)]))


def build(config: RuntimeConfig, folder: Path, tell: TellCodec) -> Model:
    match folder.name:
        case "missing":
            raise ModelNotFound("no such model")
        case "broken":
            raise ValueError("odd")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
    made = model(FolderRunner(folder.name), slots=config.engine.max_batch_size)
    tell(made.codec)
    return made


if __name__ == "__main__":
    worker.run(build)
