"""The adapters of the running pods: the list that they follow, and what the status says of it."""

from llm_operator.crds import AdapterStatus
from llm_operator.state import Connection, Fault, Observed, ResolvedAdapter
from llm_runtime import contract


def pinned(observed: Observed) -> tuple[AdapterStatus, ...]:
    """The version of each adapter that the pods are to have. One that never had any is left out."""
    known = {each.name: each for each in observed.status.adapters}
    return tuple(
        found for adapter in observed.adapters if (found := _pin(adapter, known.get(adapter.spec.name))) is not None
    )


def _pin(adapter: ResolvedAdapter, known: AdapterStatus | None) -> AdapterStatus | None:
    if adapter.resolution.fault is not None:
        return known
    model, asked = adapter.resolution.model, adapter.spec.mlflow
    assert model is not None
    return AdapterStatus(
        name=adapter.spec.name,
        model=model.name,
        version=model.version,
        alias=asked.alias,
        stage=asked.stage,
        connection=asked.connection,
        sub_path=asked.sub_path or None,
    )


def adapter_file(observed: Observed) -> str:
    """What the runtime follows, in the order of the specification, with the credentials to fetch it."""
    wanted = pinned(observed)
    used = sorted({each.connection for each in wanted} & observed.connections.keys())
    file = contract.AdapterFile(
        connections={name: _access(observed.connections[name]) for name in used},
        adapters=tuple(
            contract.PinnedAdapter(
                name=each.name,
                connection=each.connection,
                model=each.model,
                version=each.version,
                sub_path=each.sub_path or "",
            )
            for each in wanted
        ),
        default_adapter=observed.spec.default_adapter or "",
    )
    return file.model_dump_json(by_alias=True, exclude_defaults=True)


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
    first, known = faulty[0], {each.name: each for each in observed.status.adapters}
    found = first.resolution.fault
    assert found is not None
    kept = known.get(first.spec.name)
    keeps = f"; its version {kept.version} stays in the pods" if kept else ""
    others = f"; nor are {', '.join(each.spec.name for each in faulty[1:])}" if len(faulty) > 1 else ""
    return Fault(
        found.reason, f"adapter {first.spec.name} is not resolved: {found.message}{keeps}{others}", found.terminal
    )
