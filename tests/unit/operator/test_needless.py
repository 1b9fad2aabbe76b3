"""What server-side apply would leave alone is told from the object; what it would change never is."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from llm_operator.ports.cluster import MANAGER
from llm_operator.reconcile.needless import as_applied, needless, to_create

Json = dict[str, Any]

MANIFEST: Json = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "bot", "namespace": "team", "labels": {"version": "1.0"}},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "bot"}},
        "template": {
            "spec": {
                "nodeSelector": None,
                "containers": [
                    {
                        "name": "runtime",
                        "args": ["serve", "--quiet"],
                        "env": [{"name": "A", "value": ""}, {"name": "B", "value": "2"}],
                        "ports": [{"containerPort": 8000}],
                        "resources": {"requests": {"cpu": "1000m"}},
                    }
                ],
            }
        },
    },
}
CONTAINER = {
    ".": {},
    "f:name": {},
    "f:args": {},
    "f:env": {
        'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}},
        'k:{"name":"B"}': {".": {}, "f:name": {}, "f:value": {}},
    },
    "f:ports": {'k:{"containerPort":8000,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
    "f:resources": {"f:requests": {"f:cpu": {}}},
}
FIELDS = {
    "f:metadata": {"f:labels": {"f:version": {}}},
    "f:spec": {
        "f:replicas": {},
        "f:selector": {},
        "f:template": {"f:spec": {"f:containers": {'k:{"name":"runtime"}': CONTAINER}}},
    },
}
LIVE: Json = {
    **deepcopy(MANIFEST),
    "metadata": {
        **MANIFEST["metadata"],
        "uid": "1",
        "resourceVersion": "7",
        "managedFields": [
            {
                "manager": "kube-controller-manager",
                "operation": "Update",
                "apiVersion": "apps/v1",
                "subresource": "status",
                "fieldsV1": {"f:status": {}},
            },
            {
                "manager": MANAGER,
                "operation": "Apply",
                "apiVersion": "apps/v1",
                "fieldsV1": FIELDS,
            },
        ],
    },
    "status": {"replicas": 2},
}


def container(live: Json) -> Json:
    found: Json = live["spec"]["template"]["spec"]["containers"][0]
    return found


def as_served(live: Json) -> None:
    """As the API server writes it: defaults added, amounts its own way, nothing that is empty."""
    live["spec"]["strategy"] = {"type": "RollingUpdate"}
    live["metadata"]["labels"]["somebody.example/else"] = "x"
    del live["spec"]["template"]["spec"]["nodeSelector"]
    runtime = container(live)
    runtime["imagePullPolicy"] = "IfNotPresent"
    runtime["ports"][0]["protocol"] = "TCP"
    runtime["resources"]["requests"]["cpu"] = "1"
    del runtime["env"][0]["value"]
    runtime["env"].insert(1, {"name": "SOMEBODY", "value": "else"})


def test_what_the_api_server_adds_and_writes_its_own_way_is_no_change() -> None:
    live = deepcopy(LIVE)
    as_served(live)
    assert needless(MANIFEST, live)


def drift(live: Json) -> None:
    live["spec"]["replicas"] = 3


def more_in_a_field_that_is_one(live: Json) -> None:
    live["spec"]["selector"]["matchLabels"]["also"] = "this"


def another_order(live: Json) -> None:
    container(live)["env"].reverse()


def more_arguments(live: Json) -> None:
    container(live)["args"].append("--verbose")


def a_number_that_is_no_amount(live: Json) -> None:
    live["metadata"]["labels"]["version"] = "1"


def an_amount_is_gone(live: Json) -> None:
    container(live)["resources"]["requests"]["cpu"] = None


def an_item_is_gone(live: Json) -> None:
    del container(live)["env"][1]


def nobody_knows_whose(live: Json) -> None:
    live["metadata"]["managedFields"] = []


def of_another_version(live: Json) -> None:
    live["metadata"]["managedFields"][1]["apiVersion"] = "apps/v1beta1"


def not_ours(live: Json) -> None:
    live["metadata"]["managedFields"][1]["operation"] = "Update"


def once_more_was_applied(live: Json) -> None:
    live["metadata"]["managedFields"][1]["fieldsV1"] = {
        **FIELDS,
        "f:spec": {**FIELDS["f:spec"], "f:paused": {}},
    }


def less_is_owned(live: Json) -> None:
    spec = {name: each for name, each in FIELDS["f:spec"].items() if name != "f:replicas"}
    live["metadata"]["managedFields"][1]["fieldsV1"] = {**FIELDS, "f:spec": spec}


@pytest.mark.parametrize(
    "change",
    [
        drift,
        more_in_a_field_that_is_one,
        another_order,
        more_arguments,
        a_number_that_is_no_amount,
        an_amount_is_gone,
        an_item_is_gone,
        nobody_knows_whose,
        of_another_version,
        not_ours,
        once_more_was_applied,
        less_is_owned,
    ],
)
def test_what_an_apply_would_change_is_applied(change: Callable[[Json], None]) -> None:
    live = deepcopy(LIVE)
    change(live)
    assert not needless(MANIFEST, live)


def test_a_set_of_values_is_compared_by_its_values() -> None:
    def held(*values: str, owned: tuple[str, ...] = ("a", "b")) -> Json:
        entry = {
            "manager": MANAGER,
            "operation": "Apply",
            "apiVersion": "v1",
            "fieldsV1": {"f:metadata": {"f:finalizers": {f'v:"{each}"': {} for each in owned}}},
        }
        return {"metadata": {"name": "x", "finalizers": [*values], "managedFields": [entry]}}

    wanted = {"apiVersion": "v1", "metadata": {"name": "x", "finalizers": ["a", "b"]}}
    assert needless(wanted, held("a", "c", "b"))
    assert not needless(wanted, held("a", "c"))
    assert not needless(wanted, held("a", "b", owned=("a", "b", "c")))


def created(**owned: Json) -> Json:
    """As an API server serves what was created: the creator owns the defaults, too."""
    live = deepcopy({**to_create(MANIFEST), **owned})
    live["metadata"] |= {"uid": "1", "resourceVersion": "7"}
    as_served(live)
    entry = {**LIVE["metadata"]["managedFields"][1], "operation": "Update"}
    live["metadata"]["managedFields"] = [LIVE["metadata"]["managedFields"][0], entry]
    container(live)["env"] = [each for each in container(live)["env"] if each["name"] != "SOMEBODY"]
    return live


def test_what_was_created_from_the_same_manifest_is_left_alone() -> None:
    assert needless(MANIFEST, created())


def test_what_was_created_from_another_one_or_was_changed_since_is_applied() -> None:
    less = deepcopy(MANIFEST)
    del less["spec"]["replicas"]
    assert not needless(less, created()), "replicas would stay"
    live = created()
    live["spec"]["replicas"] = 3
    assert not needless(MANIFEST, live)
    live = created()
    container(live)["args"].append("--verbose")
    assert not needless(MANIFEST, live)
    del (live := created())["metadata"]["annotations"]
    assert not needless(MANIFEST, live)


def test_what_was_created_counts_as_applied_before_it_is_applied_to() -> None:
    live = created()
    theirs, ours = as_applied(live) or []
    assert theirs == live["metadata"]["managedFields"][0]
    assert ours == {**live["metadata"]["managedFields"][1], "operation": "Apply"}
    live["metadata"]["managedFields"] = [theirs, ours]
    assert as_applied(live) is None
    assert as_applied(LIVE) is None
    assert as_applied({"metadata": {}}) is None
