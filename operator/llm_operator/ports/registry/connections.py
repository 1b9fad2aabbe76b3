"""Reads a connection: from its name in a specification to a server with its credentials."""

import re
import ssl
from pathlib import Path

import httpx

from llm_operator.ports.registry.faults import ConnectionUnknown, RegistryUnreachable
from llm_operator.settings import ConnectionSettings
from llm_operator.state import Account, Connection

ACCOUNT = ("username", "password", "token")


def read_connection(
    name: str, known: dict[str, ConnectionSettings], field: str = "spec.model.mlflow"
) -> Connection:
    """The connection with its credentials as the mounted files hold them now.

    Raises ConnectionUnknown, and RegistryUnreachable for a file that can't be used.
    """
    settings = known.get(name)
    if settings is None:
        have = ", ".join(sorted(known)) or "none"
        raise ConnectionUnknown(
            f"the operator has no connection {name!r} (it has: {have}): add it under `connections`"
            f" in the operator's configuration, or write another {field}.connection"
        )
    try:
        return _read(name, settings)
    except (OSError, ValueError) as error:
        raise RegistryUnreachable(
            f"a file of connection {name!r} can't be used ({error}): correct it in the operator's"
            " configuration",
            answered=True,
        ) from error


def _read(name: str, settings: ConnectionSettings) -> Connection:
    folder = settings.credentials_folder
    of_pods = settings.pod_credentials_folder
    return Connection(
        name=name,
        tracking_uri=settings.tracking_uri.rstrip("/"),
        workspace=settings.workspace,
        **{field: _secret(folder, field) for field in ACCOUNT},
        ca=(
            _certificates(settings.ca_file)
            if settings.ca_file and settings.ca_file.is_file()
            else ""
        ),
        pods=Account(**{field: _secret(of_pods, field) for field in ACCOUNT}) if of_pods else None,
        artifact_hosts=settings.artifact_hosts,
    )


def headers_of(connection: Connection) -> dict[str, str]:
    """Headers of every request to the server."""
    headers = {"X-MLFLOW-WORKSPACE": connection.workspace} if connection.workspace else {}
    return headers | ({"Authorization": f"Bearer {connection.token}"} if connection.token else {})


def auth_of(connection: Connection) -> httpx.BasicAuth | None:
    """The account, where it has a name."""
    return (
        httpx.BasicAuth(connection.username, connection.password) if connection.username else None
    )


def tls_of(connection: Connection) -> ssl.SSLContext | bool:
    """How the server's certificate is verified."""
    return ssl.create_default_context(cadata=connection.ca) if connection.ca else True


_CERTIFICATE = re.compile(
    rb"-----BEGIN (TRUSTED |X509 )?CERTIFICATE-----.+?-----END \1?CERTIFICATE-----", re.DOTALL
)


def _certificates(file: Path) -> str:
    """The certificates alone: the comments of a bundle may have any letters,
    and TLS takes ASCII only.

    Raises ValueError where there is none.
    """
    found = [match[0].decode("ascii") for match in _CERTIFICATE.finditer(file.read_bytes())]
    if not found:
        raise ValueError(f"{file} has no certificate in PEM form")
    return "\n".join(found) + "\n"


def webhook_secrets(settings: ConnectionSettings) -> tuple[str, ...]:
    """Secrets that sign the server's webhooks: one line, or two while one replaces the other."""
    return tuple(
        line.strip()
        for line in _secret(settings.credentials_folder, "webhookSecret").splitlines()
        if line.strip()
    )


def _secret(folder: Path | None, name: str) -> str:
    path = folder / name if folder else None
    try:
        return path.read_text().strip() if path and path.is_file() else ""
    except UnicodeDecodeError:
        # The message must not have a byte of what is in the file.
        raise ValueError(f"{path} is not text in UTF-8") from None
