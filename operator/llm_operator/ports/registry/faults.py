"""What can go wrong with a question to MLflow, and what its answers mean.

RegistryFault
├── NothingThere
│   ├── ModelNotFound   404: no registered model of this name
│   ├── AliasNotFound   400 INVALID_PARAMETER_VALUE: MLflow's answer to an unknown alias
│   └── VersionNotFound 404 on a version, or no version in the stage
├── RegistryDenied      401, or 403 on the list of models
│   └── ModelDenied     403 on one model: MLflow's permissions
├── HostNotAllowed      403 in plain text: MLflow's own Host header check
├── ConnectionUnknown   no such connection in the operator's configuration
├── ConnectionNotPermitted  it is there, and not for this namespace
└── RegistryUnreachable everything else: refused, timeout, 5xx, an answer that makes no sense
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar
from urllib.parse import urlsplit

import httpx

from llm_operator.ports.registry.nouns import Choices, Reference
from llm_operator.state import Connection, Fault


class RegistryFault(Exception):
    """The registry gave no version. `terminal`: asking again will not help."""

    terminal: ClassVar[bool] = True
    about_server: ClassVar[bool] = False
    """Whether every question to this server would fail like this."""
    keeps_version: ClassVar[bool] = False
    """Whether the last known version stays in force:
    only an answer about the model can take it away."""

    @property
    def fault(self) -> Fault:
        return Fault(type(self).__name__, str(self), self.terminal)


class NothingThere(RegistryFault):
    """The reference stands for nothing."""


class ModelNotFound(NothingThere):
    """No registered model of this name."""


class AliasNotFound(NothingThere):
    """The model has no such alias."""


class VersionNotFound(NothingThere):
    """The model has no such version."""


class RegistryDenied(RegistryFault):
    """The server refused the operator's credentials."""

    about_server = keeps_version = True


class ModelDenied(RegistryDenied):
    """The operator's user has no right to this model; that says nothing of others."""

    about_server = False


class HostNotAllowed(RegistryFault):
    """The server refuses the Host header."""

    about_server = keeps_version = True


class ConnectionUnknown(RegistryFault):
    """The operator's configuration has no such connection."""

    keeps_version = True


class ConnectionNotPermitted(RegistryFault):
    """The operator's configuration keeps the connection from this namespace."""

    keeps_version = True


class RegistryUnreachable(RegistryFault):
    """No sensible answer."""

    terminal = False
    about_server = True
    keeps_version = True

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered
        """There was an answer, which costs no time-out and may be about one model only."""


def explain(
    answer: httpx.Response, connection: Connection, reference: Reference | None
) -> RegistryFault:
    """The fault that an answer other than 200 stands for."""
    uri = connection.tracking_uri
    status = answer.status_code
    try:
        body = answer.json()
    except ValueError:
        body = {}
    code, detail = (
        (body.get("error_code", ""), body.get("message", ""))
        if isinstance(body, dict)
        else ("", "")
    )
    if status == 403 and "host header" in answer.text.lower():
        host = urlsplit(uri).netloc
        return HostNotAllowed(
            f"MLflow at {uri} refuses the Host header {host!r}: start it with --allowed-hosts"
            f" '{host}' (MLFLOW_SERVER_ALLOWED_HOSTS)"
        )
    if status == 403 and reference is not None:
        return ModelDenied(
            f"MLflow at {uri} refuses the operator's user on model {reference.name!r}"
            f" (403{detail and f': {detail}'}): give that user the permission READ there, and EDIT"
            f" where verdicts are written, or correct {reference.field}.name; the user is the one"
            f" in the Secret behind connection {connection.name!r}"
        )
    if status in (401, 403):
        return RegistryDenied(
            f"MLflow at {uri} answered {status} to the operator: check username and password (or"
            f" token) in the Secret behind connection {connection.name!r}"
        )
    if (
        reference is None
        or status >= 500
        or code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    ):
        about = f" on {reference}" if reference else ""
        return RegistryUnreachable(
            f"MLflow at {uri} answered {status}{about}: {detail or answer.text[:200]}",
            answered=True,
        )
    return _not_found(reference, uri, detail)


def _not_found(reference: Reference, uri: str, message: str) -> RegistryFault:
    if "registered model with name" in message.lower() and "alias" not in message.lower():
        return ModelNotFound(
            f"MLflow at {uri} has no registered model {reference.name!r}: register it (llm-runtime"
            f" push FOLDER --name {reference.name}), or correct {reference.field}.name"
        )
    if reference.alias and "alias" in message.lower():
        return AliasNotFound(
            f"model {reference.name!r} on {uri} has no alias {reference.alias!r}: set it"
            f" (MlflowClient().set_registered_model_alias({reference.name!r}, {reference.alias!r},"
            f" VERSION)), or correct {reference.field}.alias"
        )
    return VersionNotFound(
        f"MLflow at {uri} has no {reference}: correct {reference.field} (MLflow said:"
        f" {message or 'nothing'})"
    )


SHOWN = 10
"""Choices in a message."""


def listed(choices: Choices, reference: Reference, *, model: bool) -> str:
    """The names that exist, those most like the written one first."""
    if not choices.names:
        push = f": llm-runtime push FOLDER --name {reference.name} registers one"
        return f"there is none{push if reference.version or model else ''}"
    wanted = (
        reference.name if model else reference.alias or reference.version or reference.stage or ""
    )
    order = (
        _versions_near(choices.names, wanted)
        if reference.version and not model
        else _near(choices.names, wanted)
    )
    shown = [
        f"{name} (version {at})" if (at := choices.names[name]) else name for name in order[:SHOWN]
    ]
    more = len(order) - len(shown)
    rest = f" and {'more than ' if choices.more else ''}{more} more" if more else ""
    return f"there is: {', '.join(shown)}{rest}"


def _near(names: Iterable[str], wanted: str) -> list[str]:
    by_case = {name.lower(): name for name in sorted(names, reverse=True)}
    near = [by_case[each] for each in difflib.get_close_matches(wanted.lower(), by_case, n=SHOWN)]
    return [*near, *sorted(set(names) - set(near))]


def _versions_near(versions: Iterable[str], wanted: str) -> list[str]:
    """Numbers of the versions, the nearest to the wanted one first. For a number that is too high
    these are the newest."""
    return sorted(versions, key=lambda version: (abs(int(version) - int(wanted)), -int(version)))
