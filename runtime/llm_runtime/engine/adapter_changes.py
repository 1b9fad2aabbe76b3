"""Adapters that are loaded, replaced and dropped between two steps, while requests run."""

import logging
import threading
from collections.abc import Iterable
from functools import partial
from typing import Any

from llm_runtime.contract import FatalReport
from llm_runtime.engine.messages import Done, DropAdapter, Failed, LoadAdapter
from llm_runtime.engine.model import Post, Send, Served
from llm_runtime.engine.swap import Models
from llm_runtime.errors import Fatal

log = logging.getLogger(__name__)


class AdapterChanges:
    """Carries out `LoadAdapter` and `DropAdapter`,
    and gives memory back when an adapter's last request has ended."""

    def __init__(self, models: Models, send: Send, post: Post) -> None:
        self._models = models
        self._send = send
        self._post = post

    def load(self, command: LoadAdapter) -> None:
        """Begin to read an adapter, on a thread of its own: what runs need not wait for a disk."""
        threading.Thread(target=self._read, args=(command,), name="adapter", daemon=True).start()

    def drop(self, command: DropAdapter) -> None:
        """The client admits no more requests for it; the last one may still be running."""
        served = self._models.find(command.model)
        if served is None or command.name not in served.model.adapters.names:
            self._send(Done(command.call, served.model.adapters.names if served else ()))
            return
        table = served.model.adapters
        served.drops[table.key(command.name)] = command
        self._forget(served, table.drop(command.name))

    def release(self, served: Served, key: str) -> None:
        """A sequence that ran with the adapter `key` has ended."""
        self._forget(served, served.model.adapters.release(key))

    def _read(self, command: LoadAdapter) -> None:
        """On the reading thread."""
        try:
            adapter = self._models[command.model].model.runner.read_adapter(command.folder)
        except Exception as error:
            self._post(partial(self._fail, command, error))
        else:
            self._post(partial(self._install, command, adapter))

    def _install(self, command: LoadAdapter, adapter: Any) -> None:
        served = self._models.find(command.model)
        if served is None:
            self._fail(command, KeyError("the model has gone"))
            return
        table = served.model.adapters
        loading = None
        try:
            loading = table.load(command.name)
            self._forget(served, loading.leaving)
            served.model.runner.install_adapter(loading.key, adapter)
        except Exception as error:
            if loading:
                table.drop(command.name)
            self._fail(command, error, table.names)
        else:
            self._send(Done(command.call, table.names))

    def _fail(
        self, command: LoadAdapter, error: Exception, left: tuple[str, ...] | None = None
    ) -> None:
        self._send(Failed(command.call, _report(error, f"adapter {command.name}"), left))

    def _forget(self, served: Served, keys: Iterable[str]) -> None:
        for key in keys:
            served.model.runner.drop_adapter(key)
            if drop := served.drops.pop(key, None):
                self._send(Done(drop.call, served.model.adapters.names))


def _report(error: Exception, what: str) -> FatalReport:
    if isinstance(error, Fatal):
        return error.to_report()
    log.error("%s failed", what, exc_info=error)
    return FatalReport(reason="EngineFailed", message=f"{what}: {type(error).__name__}: {error}")
