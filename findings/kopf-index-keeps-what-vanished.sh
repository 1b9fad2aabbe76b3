#!/usr/bin/env bash
# Most expect: an index of kopf follows the cluster: when a watch has lost its place (410 Gone, as after a compaction or a long
# disconnection) kopf lists anew, and an object that is not in the new list leaves the index, as it does a client-go informer.
# What happens: kopf reads the list, tells of the objects that are in it, and of nothing else. What was deleted meanwhile stays
# in the index until the operator restarts, and no handler hears of it, `on.event` neither.
# kopf 1.45.2. 2026-11-30
# seen: lists read: 2; in the index: ['stays', 'vanished']; events: 3, of a deletion 0
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check kopf==1.45.2
"$work/venv/bin/pip" freeze | grep -E '^kopf=='
"$work/venv/bin/python" - <<'PY'
import asyncio
import json
import logging
import sys

import kopf
from aiohttp import web

logging.disable(logging.CRITICAL)
THING = {"name": "things", "kind": "Thing", "singularName": "thing", "namespaced": True, "verbs": ["list", "watch", "patch"]}
lists, heard, stop = [], [], asyncio.Event()
watched = asyncio.Event()
index = None


def thing(name):
    meta = {"name": name, "namespace": "default", "uid": name, "resourceVersion": "5"}
    return {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": meta}


async def things(request):
    """An API server that has two objects, forgets its past, and then has one."""
    if "watch" not in request.query:
        lists.append(request.path)
        items = [thing("stays")] + ([thing("vanished")] if len(lists) == 1 else [])
        return web.json_response({"items": items, "metadata": {"resourceVersion": "9"}})
    answer = web.StreamResponse()
    await answer.prepare(request)
    if len(lists) == 1:
        await asyncio.sleep(1)
        gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
        await answer.write(json.dumps(gone).encode() + b"\n")
        return answer
    watched.set()
    await asyncio.sleep(60)
    return answer


async def discovery(request):
    def group(name):
        version = {"groupVersion": f"{name}/v1", "version": "v1"}
        return {"name": name, "versions": [version], "preferredVersion": version}

    namespaces = {**THING, "name": "namespaces", "kind": "Namespace", "namespaced": False}
    crds = {**THING, "name": "customresourcedefinitions", "kind": "CustomResourceDefinition", "namespaced": False}
    known = {
        "/api": {"versions": ["v1"]},
        "/api/v1": {"resources": [namespaces]},
        "/apis": {"groups": [group("example.com"), group("apiextensions.k8s.io")]},
        "/apis/apiextensions.k8s.io/v1": {"resources": [crds]},
        "/apis/example.com/v1": {"resources": [THING]},
    }
    found = known.get(request.path.rstrip("/"))
    return web.json_response(found or {}, status=200 if found else 404)


async def main():
    app = web.Application()
    app.router.add_get("/apis/example.com/v1/things", things)
    app.router.add_get("/{path:.*}", discovery)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_):
        return kopf.ConnectionInfo(server=f"http://127.0.0.1:{port}")

    @kopf.index("example.com", "v1", "things", id="by_name", registry=registry)
    def by_name(name, **_):
        return {name: True}

    @kopf.on.event("example.com", "v1", "things", registry=registry)
    def event(name, type, by_name, **_):
        global index
        heard.append((type, name))
        index = by_name

    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    operator = asyncio.create_task(
        kopf.operator(registry=registry, settings=settings, standalone=True, clusterwide=True, stop_flag=stop)
    )
    await asyncio.wait_for(watched.wait(), 60)
    await asyncio.sleep(2)
    kept = sorted(index)
    deleted = [name for type, name in heard if type == "DELETED"]
    print(f"lists read: {len(lists)}; in the index: {kept}; events: {len(heard)}, of a deletion {len(deleted)}")
    stop.set()
    await asyncio.wait({operator}, timeout=10)
    sys.exit((len(lists), kept, deleted) != (2, ["stays", "vanished"], []))


asyncio.run(main())
PY
