"""Volumes as an administrator gives them: a folder on one node, bound to one claim."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from kind.site import Site

SIZE = "50Gi"


@contextmanager
def volume(site: Site, name: str, owner: int = 65532) -> Iterator[None]:
    """A claim of this name whose folder belongs to `owner`, 65532 being the runtime's user;
    it outlives its pods.

    A kubelet leaves such a folder as it is: fsGroup does nothing to it.
    """
    node = site.cluster.nodes[-1]
    folder = f"/var/lib/volumes/{name}"
    site.cluster.node_exec(
        node, "install", "-d", "-o", str(owner), "-g", str(owner), "-m", "0755", folder
    )
    here = {
        "matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]
    }
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    made = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            **common,
            "capacity": {"storage": SIZE},
            "hostPath": {"path": folder, "type": "Directory"},
            "claimRef": {"namespace": "default", "name": name},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {**common, "volumeName": name, "resources": {"requests": {"storage": SIZE}}},
    }
    both = {"apiVersion": "v1", "kind": "List", "items": [made, claim]}
    site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(both))
    try:
        yield
    finally:
        site.cluster.kubectl("delete", f"pvc/{name}", f"pv/{name}", "--timeout=90s")
