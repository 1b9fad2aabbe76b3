"""The adapters of the running pods: the list that they follow, and what the status says of it."""

from collections.abc import Callable

from llm_operator.crds import AdapterStatus
from llm_operator.plans import names
from llm_operator.plans.objects import keys, revision, workload
from llm_operator.state import Connection, Fault, Manifest, Observed, ResolvedAdapter
from llm_runtime import contract


def pinned(observed: Observed) -> tuple[AdapterStatus, ...]:
    """The version of each adapter that the pods are to have. One that never had any is left out."""
    known = {each.name: each for each in observed.status.adapters}
    return tuple(
        found
        for adapter in observed.adapters
        if (found := _pin(adapter, known.get(adapter.spec.name))) is not None
    )


def _pin(adapter: ResolvedAdapter, known: AdapterStatus | None) -> AdapterStatus | None:
    if adapter.resolution.fault is not None:
        return known
    model = adapter.resolution.model
    asked = adapter.spec.mlflow
    assert model is not None
    made = model.registered_at or None
    before = (
        known
        if known and _numbered(known) == (asked.connection, model.name, model.version)
        else None
    )
    return AdapterStatus(
        name=adapter.spec.name,
        model=model.name,
        version=model.version,
        alias=asked.alias,
        stage=asked.stage,
        connection=asked.connection,
        sub_path=asked.sub_path or None,
        registered_at=made or (before.registered_at if before else None),
        anew=_anew(before, made) if before else None,
    )


def _numbered(adapter: AdapterStatus) -> tuple[str, str, str]:
    return adapter.connection, adapter.model, adapter.version


def _anew(before: AdapterStatus, made: str | None) -> str | None:
    """What an operator before this one did not note says nothing."""
    if made is None or before.registered_at in (None, made):
        return before.anew
    return revision.mark(made)


def secret(observed: Observed) -> Manifest:
    """What pods with a container that fetches adapters mount:
    the server the list, that container both."""
    listed = _file(observed, _address)
    registries = contract.RegistriesFile(connections=_used(observed, _access))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(observed.meta, names.adapters_secret(observed.meta)),
        "type": "Opaque",
        "data": keys.encode(
            {contract.ADAPTERS_FILE: listed, contract.REGISTRIES_FILE: _text(registries)}
        ),
    }


def beside_keys(observed: Observed) -> str:
    """The list as pods without such a container mount it:
    with the credentials, as long as some know no other way."""
    fetching = observed.adapters_beside_keys and any(
        each.wanted and not workload.fetches_adapters(revision.template(each))
        for each in observed.revisions.values()
    )
    return _file(observed, _access) if fetching else _text(contract.AdapterFile())


def _file(observed: Observed, access: Callable[[Connection], contract.RegistryAccess]) -> str:
    file = contract.AdapterFile(
        connections=_used(observed, access),
        adapters=tuple(
            contract.PinnedAdapter(
                name=each.name,
                connection=each.connection,
                model=each.model,
                version=each.version,
                sub_path=each.sub_path or "",
                anew=each.anew or "",
            )
            for each in pinned(observed)
        ),
        default_adapter=observed.spec.default_adapter or "",
    )
    return _text(file)


def _used(
    observed: Observed, access: Callable[[Connection], contract.RegistryAccess]
) -> dict[str, contract.RegistryAccess]:
    used = sorted({each.connection for each in pinned(observed)} & observed.connections.keys())
    return {name: access(observed.connections[name]) for name in used}


def _text(file: contract.AdapterFile | contract.RegistriesFile) -> str:
    return file.model_dump_json(by_alias=True, exclude_defaults=True)


def _address(connection: Connection) -> contract.RegistryAccess:
    """What the server knows of it: which version of which registry answers."""
    return contract.RegistryAccess(
        tracking_uri=connection.tracking_uri, workspace=connection.workspace
    )


def _access(connection: Connection) -> contract.RegistryAccess:
    account = connection.for_pods
    return contract.RegistryAccess(
        tracking_uri=connection.tracking_uri,
        workspace=connection.workspace,
        username=account.username,
        password=account.password,
        token=account.token,
        ca=connection.ca,
        artifact_hosts=connection.artifact_hosts,
    )


def fault(observed: Observed) -> Fault | None:
    """The first adapter that stands for no version now, and how many more do not."""
    faulty = [adapter for adapter in observed.adapters if adapter.resolution.fault is not None]
    if not faulty:
        return None
    first = faulty[0]
    known = {each.name: each for each in observed.status.adapters}
    found = first.resolution.fault
    assert found is not None
    kept = known.get(first.spec.name)
    keeps = f"; its version {kept.version} stays in the pods" if kept else ""
    others = (
        f"; nor are {', '.join(each.spec.name for each in faulty[1:])}" if len(faulty) > 1 else ""
    )
    return Fault(
        found.reason,
        f"adapter {first.spec.name} is not resolved: {found.message}{keeps}{others}",
        found.terminal,
    )
