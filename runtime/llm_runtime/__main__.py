"""The command line: `serve` a model, or `fetch` one first."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_runtime import errors, logs, settings
from llm_runtime.contract import CONFIG_FLAG, KEYS_FLAG, MODEL_FOLDER, MODELS_FLAG, FatalReport, RuntimeConfig

if TYPE_CHECKING:
    from llm_runtime import auth
    from llm_runtime.api.services import Loaded
    from llm_runtime.engine.client import EngineClient

log = logging.getLogger(__name__)

cli = typer.Typer(
    help="Serve one language model over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path | None, typer.Option(CONFIG_FLAG, help="Configuration, JSON or YAML. None: the environment.")]
Keys = Annotated[Path | None, typer.Option(KEYS_FLAG, help="Key file. None: the one key in API_KEY.")]
Models = Annotated[Path, typer.Option(MODELS_FLAG, help="Folder that holds fetched models.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on; over API_HOST.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; over API_PORT.")]


@cli.command()
def serve(
    config: Config = None, keys: Keys = None, models: Models = Path("models"), host: Host = None, port: Port = None
) -> None:
    """Load the model and answer requests until SIGTERM."""
    with _fatal_is_last_line():
        loaded = _settings(config)
        failure = _serve(loaded, keys, models, host or loaded.host, loaded.port if port is None else port)
    if failure:
        logs.report_fatal(failure)
        raise typer.Exit(1)


@cli.command()
def fetch(config: Config = None, models: Models = Path("models")) -> None:
    """Bring the model into the models folder, verified, and leave a link to it for `serve`."""
    with _fatal_is_last_line():
        _fetch(_settings(config).config, models)


def main() -> None:
    """Entry point of `llm-runtime`."""
    cli(prog_name="llm-runtime")


def _settings(config: Path | None) -> settings.Settings:
    try:
        loaded = settings.load(config)
    except settings.SettingsInvalid as error:
        raise errors.ConfigInvalid(str(error)) from error
    logs.configure(loaded.config.server.log_format, loaded.log_level)
    if token := loaded.environment.huggingface_token:
        os.environ.setdefault("HF_TOKEN", token.get_secret_value())
    try:
        logs.add_file(loaded.config.server)
    except OSError as error:
        raise errors.ConfigInvalid(f"server.logFile can't be written: {error}") from error
    return loaded


def _serve(loaded: settings.Settings, keys: Path | None, models: Path, host: str, port: int) -> FatalReport | None:
    # FastAPI takes a second to import, which `fetch` need not wait for.
    from prometheus_client import disable_created_metrics

    from llm_runtime import tracing
    from llm_runtime.api.services import Services
    from llm_runtime.app import Server, create_app

    disable_created_metrics()  # type: ignore[no-untyped-call]
    services = Services(loaded.config, lambda: _load(loaded.config, models), _keys(loaded, keys))
    if found := tracing.from_environment():
        services.trace(found)
    try:
        Server(create_app(services), host, port).run()
    except SystemExit as error:  # Uvicorn's way of saying that the port can't be had.
        raise errors.ConfigInvalid(f"can't listen on {host}:{port}; the lines above say why") from error
    if services.loaded is None and services.failure is None:
        # Told to stop while loading: ending under a thread that is deep in native code may crash, and must not fail.
        sys.stdout.flush()
        os._exit(0)
    return services.failure


def _keys(loaded: settings.Settings, file: Path | None) -> "auth.Keys | None":
    from llm_runtime.auth import KeyRing, SingleKey

    if loaded.config.authentication == "Disabled":
        return None
    if file:
        return KeyRing(file)
    if loaded.api_key:
        return SingleKey(loaded.api_key)
    message = f"authentication is Required: pass {KEYS_FLAG}, set API_KEY, or set AUTHENTICATION=Disabled"
    raise errors.ConfigInvalid(message)


async def _load(config: RuntimeConfig, models: Path) -> "Loaded":
    from llm_runtime.api.services import in_thread
    from llm_runtime.engine.process import start_engine

    folder = await in_thread(lambda: _folder(config, models))()
    return _loaded(await start_engine(config, folder))


def _loaded(engine: "EngineClient") -> "Loaded":
    from llm_runtime.api.services import Loaded

    async def swap(config: RuntimeConfig, folder: Path) -> Loaded:
        return _loaded(await engine.swap(config, folder))

    return Loaded(engine, engine.codec, on_gpu=engine.device != "cpu", swap=swap)


def _folder(config: RuntimeConfig, models: Path) -> Path:
    """Where the model lies. In a pod `fetch` has run before, and the folder may be read-only; alone, fetch it now."""
    from llm_runtime.models.fetch import folder_name

    # Resolved at once: on a shared volume another deployment's `fetch` may turn the link at any moment.
    current, version = (models / MODEL_FOLDER).resolve(), config.model.mlflow
    # Without the digest at the end: it also covers the workspace, which only the fetching container need know.
    if version and current.name.rpartition("-")[0] == folder_name(version).rpartition("-")[0]:
        return current
    return _fetch(config, models)


def _fetch(config: RuntimeConfig, models: Path) -> Path:
    from llm_runtime.models.fetch import fetch as fetch_model

    if not sys.stdout.isatty():
        return fetch_model(config.model, models)
    with _progress_bar() as progress:
        return fetch_model(config.model, models, progress)


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress("model", BarColumn(), DownloadColumn(), TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("model")
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _fatal_is_last_line() -> Iterator[None]:
    """Whatever ends the process is told in its last line, which Kubernetes puts into the pod's status."""
    try:
        yield
    except errors.Fatal as fatal:
        logs.report_fatal(FatalReport(reason=fatal.reason, message=str(fatal)))
        raise typer.Exit(1) from fatal
    except Exception as error:
        log.exception("Giving up")
        report = FatalReport(reason="InternalError", message=f"{type(error).__name__}: {error}; see the log above")
        logs.report_fatal(report)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    main()
