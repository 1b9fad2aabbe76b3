"""The list of adapters that running pods follow, and the Secret that holds it."""

from collections.abc import Callable, Iterator

from llm_operator.crds import AdapterStatus
from llm_operator.plans import names
from llm_operator.plans.objects import keys
from llm_operator.state import Connection, Manifest, Observed
from llm_runtime import contract


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


def beside_keys(observed: Observed, fetching: frozenset[str]) -> str:
    """The list as pods without such a container mount it:
    with the credentials, as long as some know no other way. `fetching`: the revisions with one."""
    alone = any(each.wanted and name not in fetching for name, each in observed.revisions.items())
    if not (observed.adapters_beside_keys and alone):
        return _text(contract.AdapterFile())
    return _file(observed, _access)


def _file(observed: Observed, access: Callable[[Connection], contract.RegistryAccess]) -> str:
    file = contract.AdapterFile(
        connections=_used(observed, access),
        adapters=tuple(
            contract.PinnedAdapter(name=each.name, **_version(each))
            for each in observed.serving_adapters
        ),
        candidates=tuple(
            contract.CandidateAdapter(name=names.loaded_as(each), **_version(each))
            for each in observed.judged_adapters
        ),
        shadowed=tuple(_shadowed(observed)),
        default_adapter=observed.spec.default_adapter or "",
    )
    return _text(file)


def _shadowed(observed: Observed) -> Iterator[contract.ShadowedAdapter]:
    """Candidates that are sent copies, by the pods that are asked for them as well."""
    specs = {each.name: each.shadow for each in observed.spec.adapters or () if each.shadows}
    stable = observed.status.stable
    pods = names.child(observed.meta, stable.revision) if stable else observed.meta.name
    for each in observed.judged_adapters:
        spec = specs.get(each.name)
        if spec is not None and each.shadowed_since is not None:
            yield contract.ShadowedAdapter(
                candidate=names.loaded_as(each),
                pods=pods,
                percent=spec.percent,
                max_in_flight=spec.max_in_flight,
            )


def _version(adapter: AdapterStatus) -> dict[str, str]:
    return {
        "connection": adapter.connection,
        "model": adapter.model,
        "version": adapter.version,
        "sub_path": adapter.sub_path or "",
        "anew": adapter.anew or "",
    }


def _used(
    observed: Observed, access: Callable[[Connection], contract.RegistryAccess]
) -> dict[str, contract.RegistryAccess]:
    wanted = (*observed.serving_adapters, *observed.judged_adapters)
    used = sorted({each.connection for each in wanted} & observed.connections.keys())
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
