"""From a name in a specification to a server with its credentials."""

from pathlib import Path

from llm_operator.registry.faults import ConnectionUnknown
from llm_operator.settings import ConnectionSettings
from llm_operator.state import Connection


def read_connection(name: str, known: dict[str, ConnectionSettings], field: str = "spec.model.mlflow") -> Connection:
    """The connection with its credentials as the mounted files hold them now. Raises ConnectionUnknown."""
    settings = known.get(name)
    if settings is None:
        have = ", ".join(sorted(known)) or "none"
        raise ConnectionUnknown(
            f"the operator has no connection {name!r} (it has: {have}): add it under `connections` in the operator's "
            f"configuration, or write another {field}.connection"
        )

    return Connection(
        name=name,
        tracking_uri=settings.tracking_uri.rstrip("/"),
        workspace=settings.workspace,
        username=_secret(settings, "username"),
        password=_secret(settings, "password"),
        token=_secret(settings, "token"),
        ca=settings.ca_file.read_text() if settings.ca_file and settings.ca_file.is_file() else "",
    )


def webhook_secrets(settings: ConnectionSettings) -> tuple[str, ...]:
    """What signs the server's webhooks: one line, or two while one takes the place of the other."""
    return tuple(line.strip() for line in _secret(settings, "webhookSecret").splitlines() if line.strip())


def _secret(settings: ConnectionSettings, name: str) -> str:
    path: Path | None = settings.credentials_folder / name if settings.credentials_folder else None
    return path.read_text().strip() if path and path.is_file() else ""
