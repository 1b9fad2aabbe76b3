#!/usr/bin/env bash
# Most expect: Python's HTTP clients read NO_PROXY alike, and a network like 10.96.0.0/12 in it, as clusters' proxies are
# commonly configured, keeps requests to the addresses inside away from the proxy.
# What happens: of these only requests does so. httpx, botocore (S3) and the standard library take the network for a host's
# name that never matches, so that calls to a ClusterIP go to the proxy, which can't reach it.
# httpx 0.28.1, requests 2.34.2, botocore 1.43.40, Python 3.11. 2026-11-28
# seen: proxy asked by httpx yes, requests no, botocore yes, urllib yes
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check httpx==0.28.1 requests==2.34.2 botocore==1.43.40
"$work/venv/bin/pip" freeze | grep -E '^(httpx|requests|botocore)=='
NO_PROXY=10.96.0.0/12 HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9 "$work/venv/bin/python" - <<'PY'
import sys
import urllib.request

import httpx
import requests.utils
from botocore.utils import get_environ_proxies

url = "http://10.96.0.1/"
with httpx.Client() as client:
    by_httpx = client._transport_for_url(httpx.URL(url)) is not client._transport
asked = {
    "httpx": by_httpx,
    "requests": bool(requests.utils.get_environ_proxies(url)),
    "botocore": bool(get_environ_proxies(url)),
    "urllib": not urllib.request.proxy_bypass_environment("10.96.0.1"),
}
print("proxy asked by " + ", ".join(f"{name} {'yes' if yes else 'no'}" for name, yes in asked.items()))
sys.exit(asked != {"httpx": True, "requests": False, "botocore": True, "urllib": True})
PY
