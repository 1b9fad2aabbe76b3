"""What `helm test` asks: does the operator answer, and does the API server serve its kinds to it?

Runs in the operator's own image, with Python's standard library alone. Says one line for each
check, and exits with 1 when any of them failed.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

SERVICE = os.environ["SERVICE_URL"]
HOST, PORT = (
    os.environ.get("KUBERNETES_SERVICE_HOST", ""),
    os.environ.get("KUBERNETES_SERVICE_PORT", "443"),
)
API = os.environ.get("API_URL") or f"https://{f'[{HOST}]' if ':' in HOST else HOST}:{PORT}"
ACCOUNT = os.environ["ACCOUNT_FOLDER"]
GROUP = "/apis/llm-operator.dev/v1alpha1"
WITHIN_SECONDS = float(os.environ.get("WITHIN_SECONDS", "60"))
# Addresses inside the cluster: a proxy knows none of them.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(address, headers=None, context=None):
    request = urllib.request.Request(address, headers=headers or {})
    opener = (
        OPEN
        if context is None
        else urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
    )
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise RuntimeError(
            f"{address} answers {error.code}: {error.read().decode(errors='replace')[:500]}"
        ) from error
    except OSError as error:
        raise RuntimeError(
            f"{address} can't be reached: {getattr(error, 'reason', error)}"
        ) from error


def asked(path):
    with open(f"{ACCOUNT}/token") as file:
        token = file.read()
    secure = API.startswith("https:")
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt") if secure else None
    return json.loads(get(API + path, {"Authorization": f"Bearer {token}"}, context))


def ready():
    get(f"{SERVICE}/readyz")
    return "the operator is ready"


def metrics():
    if "llm_operator_leader" not in get(f"{SERVICE}/metrics"):
        raise RuntimeError(
            f"{SERVICE}/metrics is not the operator's: it has no llm_operator_leader"
        )
    return "the operator's metrics can be scraped"


def kinds():
    served = {each["name"] for each in asked(GROUP)["resources"]}
    missing = {"llmdeployments", "llmdeployments/status", "apikeys", "apikeys/status"} - served
    if missing:
        raise RuntimeError(
            f"the API server does not serve {', '.join(sorted(missing))}: apply the chart's"
            " files/crds"
        )
    return "the API server serves LLMDeployment and ApiKey"


def rights():
    namespace = os.environ.get("WATCHED_NAMESPACE")
    where = f"/namespaces/{namespace}" if namespace else ""
    for plural in ("llmdeployments", "apikeys"):
        asked(f"{GROUP}{where}/{plural}?limit=1")
    return "the operator may list them"


def main():
    failed = False
    ends = time.monotonic() + WITHIN_SECONDS
    for check in (ready, metrics, kinds, rights):
        while True:
            try:
                print("ok:", check(), flush=True)
                break
            except (RuntimeError, OSError, ValueError, KeyError) as error:
                if time.monotonic() >= ends:
                    print("FAILED:", error, flush=True)
                    failed = True
                    break
                time.sleep(1)
    sys.exit(int(failed))


main()
