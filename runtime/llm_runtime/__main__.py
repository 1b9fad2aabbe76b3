"""The command line: `serve` a model, or `fetch` one first."""

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_runtime import errors, logs, settings
from llm_runtime.commands import db, keys, roles, usage
from llm_runtime.commands import settings as settings_commands
from llm_runtime.commands.convert import convert
from llm_runtime.commands.dataset import dataset
from llm_runtime.commands.fit import fit
from llm_runtime.commands.push import push
from llm_runtime.contract import (
    ADAPTERS_FLAG,
    CONFIG_FLAG,
    FETCHED_FLAG,
    KEYS_FLAG,
    MODELS_FLAG,
    FatalReport,
    PinnedAdapter,
    RegistryAccess,
    RuntimeConfig,
)
from llm_runtime.machine.steps import SLOW_SECONDS

if TYPE_CHECKING:
    from llm_runtime.api.serving import Start, WarmModel
    from llm_runtime.assembly import ModelSource
    from llm_runtime.engine.client import EngineClient
    from llm_runtime.engine.process import Spawned
    from llm_runtime.fetching.progress import Progress

log = logging.getLogger(__name__)

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None,
    typer.Option(CONFIG_FLAG, help="Configuration, JSON or YAML. None: the environment."),
]
Keys = Annotated[
    Path | None,
    typer.Option(
        KEYS_FLAG, help="Key file, and nothing else. None: the database, API_KEY, ADMIN_API_KEY."
    ),
]
Adapters = Annotated[
    Path | None,
    typer.Option(
        ADAPTERS_FLAG, help="List of LoRA adapters to follow. None: adapters.json beside KEYS."
    ),
]
Fetched = Annotated[
    Path | None,
    typer.Option(
        FETCHED_FLAG,
        help="Folder in which llm_runtime.fetcher tells of adapters. None: fetched here.",
    ),
]
Models = Annotated[Path, typer.Option(MODELS_FLAG, help="Folder that holds fetched models.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on; over API_HOST.")]
Metrics = Annotated[
    bool | None,
    typer.Option(
        "--metrics/--no-metrics", help="Answer /metrics meanwhile. Not said: unless on a terminal."
    ),
]
Port = Annotated[int | None, typer.Option(help="Port to listen on; over API_PORT.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llm-runtime {metadata.version('llm-operator')}")
        raise typer.Exit


@cli.callback()
def runtime(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Serve one language model over HTTP."""


@cli.command()
def serve(
    config: Config = None,
    keys: Keys = None,
    adapters: Adapters = None,
    fetched: Fetched = None,
    models: Models = Path("models"),
    host: Host = None,
    port: Port = None,
) -> None:
    """Load the model and answer requests until SIGTERM."""
    with _fatal_is_last_line():
        loaded = _settings(config, managed=keys is not None)
        address = host or loaded.host, loaded.port if port is None else port
        _refuse_taken(*address)
        # Before anything long is imported here: it imports meanwhile, and takes longer.
        spawned = _spawned(loaded.config)
        try:
            source = partial(_models, models, fetched, spawned)
            failure = _serve(loaded, keys, adapters, source, *address)
        finally:
            if spawned:  # Where this ends before it could be used, its lines must not be the last.
                spawned.end()
    if failure:
        logs.report_fatal(failure)
        raise typer.Exit(1)


@cli.command()
def fetch(
    config: Config = None,
    models: Models = Path("models"),
    host: Host = None,
    port: Port = None,
    metrics: Metrics = None,
) -> None:
    """Bring the model into the models folder, verified, and leave a link to it for `serve`."""
    with _fatal_is_last_line():
        loaded = _settings(config)
        wanted = not sys.stderr.isatty() if metrics is None else metrics
        address = (host or loaded.host, loaded.port if port is None else port) if wanted else None
        _fetch(loaded.config, models, address)


# Help lists them in this order: first what serves, then what is around it.
for command in (push, fit, convert, usage.usage, dataset):
    cli.command()(command)
for name, group in (
    ("keys", keys.cli),
    ("roles", roles.cli),
    ("db", db.cli),
    ("settings", settings_commands.cli),
):
    cli.add_typer(group, name=name)


def main() -> None:
    """Entry point of `llm-runtime`."""
    cli(prog_name="llm-runtime")


def _settings(config: Path | None, *, managed: bool = False) -> settings.Settings:
    """`managed`: with a key file an operator runs this server."""
    try:
        loaded = settings.load(config, managed=managed)
    except settings.SettingsInvalid as error:
        raise errors.ConfigInvalid(str(error)) from error
    logs.hide(settings.private_values())
    logs.configure(logs.format_of(loaded.config.server), loaded.log_level)
    if token := loaded.environment.huggingface_token:
        os.environ.setdefault("HF_TOKEN", token.get_secret_value())
    settings.forget_secrets()
    try:
        logs.add_file(loaded.config.server)
    except OSError as error:
        raise errors.ConfigInvalid(f"server.logFile can't be written: {error}") from error
    return loaded


def _serve(
    loaded: settings.Settings,
    keys: Path | None,
    adapters: Path | None,
    models: "Callable[[], ModelSource]",
    host: str,
    port: int,
) -> FatalReport | None:
    began = time.monotonic()
    # FastAPI takes a second to import, which `fetch` need not wait for.
    from prometheus_client import disable_created_metrics

    from llm_runtime.app import HttpServer, create_app
    from llm_runtime.assembly import assemble

    if (seconds := time.monotonic() - began) > SLOW_SECONDS:
        log.info("the HTTP side is imported", extra={"seconds": round(seconds, 1)})
    disable_created_metrics()  # type: ignore[no-untyped-call]
    server = assemble(loaded, models(), keys, adapters)
    try:
        HttpServer(create_app(server), host, port).run()
    except (
        SystemExit
    ) as error:  # Uvicorn's way of saying that the port, free a moment ago, can't be had.
        raise errors.ConfigInvalid(
            f"can't listen on {host}:{port}; uvicorn's lines in the log say why"
        ) from error
    if server.serving.loaded is None and server.serving.failure is None:
        # Told to stop while loading: ending under a thread that is deep in native code may crash,
        # and must not fail.
        sys.stdout.flush()
        os._exit(0)
    return server.serving.failure


def _refuse_taken(host: str, port: int) -> None:
    """Raise ConfigInvalid where the server could not listen, before anything long begins. In a pod
    the reason then stands in the status, where it is seen without the log."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        refused = [error for each in found if (error := _refusal(*each))]
    except OSError as error:
        raise errors.ConfigInvalid(f"can't listen on {host}:{port}: {error.strerror}") from error
    if any(error.errno == errno.EADDRINUSE for error in refused):
        raise errors.ConfigInvalid(
            f"can't listen on {host}:{port}: another program does; end it, or choose another port"
            " (API_PORT)"
        )
    if len(refused) == len(
        found
    ):  # Of a name's addresses, the server leaves out those that this machine has not.
        raise errors.ConfigInvalid(
            f"can't listen on {host}:{port}: {refused[0].strerror}"
        ) from refused[0]


def _refusal(
    family: int, kind: int, protocol: int, _: str, address: tuple[Any, ...]
) -> OSError | None:
    try:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind(address)
    except OSError as error:
        return error
    return None


def _spawned(config: RuntimeConfig) -> "Spawned | None":
    """The engine's process, before its model is known; None where the first request starts it."""
    from llm_runtime.engine.process import spawn_engine

    return None if config.server.lazy_load else spawn_engine(config)


def _models(
    models: Path, fetched: Path | None = None, spawned: "Spawned | None" = None
) -> "ModelSource":
    from llm_runtime.adapters import Delivered
    from llm_runtime.assembly import ModelSource
    from llm_runtime.common.aside import in_thread
    from llm_runtime.fetching.versions import Holder, claim

    hold = Holder()
    delivered = Delivered(fetched, models, claim) if fetched else None
    return ModelSource(
        find=lambda config: in_thread(lambda: hold(_folder(config, models)))(),
        fetch=lambda config, progress, hub_token: in_thread(
            lambda: hold(_fetch(config, models, tell=progress, hub_token=hub_token))
        )(),
        start=_starter(spawned),
        fetch_adapter=delivered
        or (lambda adapter, access: in_thread(lambda: _fetch_adapter(adapter, access, models))()),
        **({"adapter_news": delivered.news} if delivered else {}),
    )


def _fetch_adapter(adapter: PinnedAdapter, access: RegistryAccess, models: Path) -> Path:
    from llm_runtime.fetching.fetch_adapter import fetch_adapter

    return fetch_adapter(adapter, access, models)


def _starter(spawned: "Spawned | None") -> "Start":
    """Starts engines; the first one in the process that was spawned ahead."""
    ahead = [spawned] if spawned else []

    async def start(config: RuntimeConfig, folder: Path) -> "WarmModel":
        from llm_runtime.engine.process import start_engine

        engine = await start_engine(config, folder, spawned=ahead.pop() if ahead else None)
        return _loaded(engine, folder)

    return start


def _loaded(engine: "EngineClient", folder: Path) -> "WarmModel":
    from llm_runtime.api.serving import WarmModel
    from llm_runtime.files.origin import origin

    async def swap(config: RuntimeConfig, folder: Path) -> WarmModel:
        return _loaded(await engine.swap(config, folder), folder)

    return WarmModel(
        engine,
        engine.codec,
        on_gpu=engine.device != "cpu",
        swap=swap,
        origin=origin(folder),
        on_death=engine.on_death,
    )


def _folder(config: RuntimeConfig, models: Path) -> Path:
    """Where the model lies. In a pod `fetch` has run before, and the folder may be read-only;
    alone, fetch it now."""
    from llm_runtime.fetching.sources import fetched

    there = fetched(models, config.model.mlflow) if config.model.mlflow else None
    return there or _fetch(config, models)


def _fetch(
    config: RuntimeConfig,
    models: Path,
    address: tuple[str, int] | None = None,
    *,
    tell: "Progress | None" = None,
    hub_token: str = "",
) -> Path:
    """Fetch the model; its progress is told to `tell`, and can be asked for at `address`."""
    from llm_runtime.fetching.fetch import fetch as fetch_model
    from llm_runtime.fetching.figures import DownloadFigures, both, exposed
    from llm_runtime.fetching.progress import LogProgress, progress_bar

    with ExitStack() as stack:
        progress = (
            stack.enter_context(progress_bar("model")) if sys.stderr.isatty() else LogProgress()
        )
        if address:
            figures = DownloadFigures()
            stack.enter_context(exposed(figures, *address))
            progress = both(progress, figures)
        progress = both(progress, tell) if tell else progress
        return fetch_model(config.model, models, progress, config.model_cache_bytes, hub_token)


@contextmanager
def _fatal_is_last_line() -> Iterator[None]:
    """Whatever ends the process is told in its last line,
    which Kubernetes puts into the pod's status."""
    try:
        yield
    except errors.Fatal as fatal:
        logs.report_fatal(fatal.to_report())
        raise typer.Exit(1) from fatal
    except Exception as error:
        log.exception("Giving up")
        report = FatalReport(
            reason="InternalError", message=f"{type(error).__name__}: {error}; see the log above"
        )
        logs.report_fatal(report)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    main()
