"""The models in the loop: one is loaded beside another, takes over between two steps,
and the old one is freed."""

import logging
import threading
from collections.abc import Iterator
from functools import partial

from llm_runtime.contract import FatalReport
from llm_runtime.engine.messages import CodecRead, Failed, Load, Ready
from llm_runtime.engine.model import Build, Model, ModelCodec, Post, Send, Served
from llm_runtime.engine.recovery import CarefulRunner
from llm_runtime.errors import Fatal
from llm_runtime.machine.memory import MIB, resident_bytes

log = logging.getLogger(__name__)


class Models:
    """One model; during a swap two, until the last request of the old one has ended."""

    def __init__(self, build: Build, send: Send, post: Post) -> None:
        self._build = build
        self._send = send
        self._post = post
        self._by_number: dict[int, Served] = {}
        self._seen = 0
        self.freed_prompt_tokens = 0
        """Prompt tokens of models that are gone, because counters must not fall."""
        self.freed_cached_tokens = 0
        """Prompt tokens of such models that came out of the prefix cache."""
        self.freed_guessed_tokens = self.freed_right_tokens = 0
        """Guessed tokens of such models, and how many of these were right."""

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._by_number.values()))

    def __getitem__(self, number: int) -> Served:
        return self._by_number[number]

    def find(self, number: int) -> Served | None:
        """None for one that has gone."""
        return self._by_number.get(number)

    def adopt(self, model: Model, call: int = 0, *, told: bool = False) -> Ready:
        """Serve `model` from now on. `told`: the client has its codec."""
        self._seen += 1
        self._by_number[self._seen] = Served(model, CarefulRunner(model.runner))
        capacity = model.scheduler.max_batch_size + model.scheduler.max_queue_length
        return Ready(
            call, self._seen, model.limits, capacity, None if told else model.codec, model.device, model.kind,
            model.adapters.names, model.load_seconds, model.load_peak_bytes,
        )  # fmt: skip

    def load(self, command: Load) -> None:
        """Begin to load a model.
        What is loaded serves on, and has the processor while the other reads files."""
        threading.Thread(target=self._load, args=(command,), name="load", daemon=True).start()

    def retire(self, number: int) -> None:
        """Free a model once its last request has ended."""
        if served := self.find(number):
            served.retired = True

    def free_retired(self) -> None:
        """Not during a step, whose variables would keep the model in memory."""
        if len(self._by_number) > 1:
            for number in [number for number, served in self._by_number.items() if served.done]:
                self._free(number)

    def _load(self, command: Load) -> None:
        """On the loading thread."""
        told: list[ModelCodec] = []

        def tell(codec: ModelCodec) -> None:
            told.append(codec)
            self._post(partial(self._send, CodecRead(command.call, codec)))

        try:
            model = self._build(command.config, command.folder, tell)
        except Exception as error:
            self._post(partial(self._send, Failed(command.call, _report(error))))
        else:
            self._post(partial(self._take, command, model, told=bool(told)))

    def _take(self, command: Load, model: Model, *, told: bool) -> None:
        log.info(
            "A model is in memory",
            extra={"folder": str(command.folder), "resident_mib": _resident_mib()},
        )
        self._send(self.adopt(model, command.call, told=told))

    def _free(self, number: int) -> None:
        model = self._by_number.pop(number).model
        self.freed_prompt_tokens += model.scheduler.prompt_tokens
        self.freed_cached_tokens += model.scheduler.cached_prompt_tokens
        self.freed_guessed_tokens += model.scheduler.guessed_tokens
        self.freed_right_tokens += model.scheduler.right_tokens
        free = model.free
        del model
        before = _resident_mib()
        free()
        log.info(
            "The old model is gone",
            extra={"resident_mib_before": before, "resident_mib": _resident_mib()},
        )


def _report(error: Exception) -> FatalReport:
    if isinstance(error, Fatal):
        return error.to_report()
    log.error("Loading the model failed", exc_info=error)
    return FatalReport(reason="LoadFailed", message=f"{type(error).__name__}: {error}")


def _resident_mib() -> int:
    return resident_bytes() // MIB
