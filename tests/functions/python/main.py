"""The tests' function in Python; ../README.md has the protocol."""

import concurrent.futures
import hashlib
import itertools
import json
import os

import functions_framework
import requests
import requests.adapters

TIMEOUT = 30

session = requests.Session()
session.trust_env = False
session.mount("http://", requests.adapters.HTTPAdapter(pool_connections=64, pool_maxsize=64))


def pieces(body, size=8192):
    """The body in pieces, which makes `requests` send it chunked; the first piece is one byte."""
    yield body[:1]
    for start in range(1, len(body), size):
        yield body[start : start + size]


def call(own_id, index, step, inbound):
    child_id = f"{own_id}.{index}"
    headers = {"x-true-parent": own_id, **step.get("headers", {})}
    for name in step.get("forward", []):
        if name in inbound:
            headers[name] = inbound[name]
    if "body" in step:
        text, length = step["body"]["text"].encode(), step["body"]["length"]
        body = (text * (length // len(text) + 1))[:length]
        headers["content-type"] = "application/octet-stream"
    else:
        body = json.dumps(step.get("plan", {})).encode()
        headers["content-type"] = "application/json"
    data = pieces(body) if step.get("body", {}).get("chunked") else body
    url = f"{step['url']}/{child_id}"
    try:
        if step.get("fresh"):
            with requests.Session() as once:
                once.trust_env = False
                response = once.post(url, data=data, headers={**headers, "connection": "close"}, timeout=TIMEOUT)
        else:
            response = session.post(url, data=data, headers=headers, timeout=TIMEOUT)
        answer = response.json()
    except (requests.RequestException, ValueError) as error:
        return {"id": child_id, "error": str(error)}
    answer["sent"] = hashlib.sha256(body).hexdigest()
    answer["status"] = response.status_code
    if "x-via" in response.headers:
        answer["via"] = {
            "function": response.headers["x-via"],
            "traceparent": response.headers.get("x-via-traceparent") or None,
        }
    return answer


@functions_framework.http
def handle(request):
    own_id = request.path.lstrip("/")
    body = request.get_data()
    plan = json.loads(body or b"{}") if request.mimetype == "application/json" else {}
    inbound = {name.lower(): value for name, value in request.headers}  # a copy: the request is bound to this thread, and `par` calls leave from others
    children = []
    steps = enumerate(plan.get("calls", []))
    for parallel, group in itertools.groupby(steps, key=lambda step: step[1].get("mode") == "par"):
        group = list(group)
        if parallel:
            with concurrent.futures.ThreadPoolExecutor(max_workers=len(group)) as pool:
                children += pool.map(lambda step: call(own_id, *step, inbound), group)
        else:
            children += [call(own_id, *step, inbound) for step in group]
    return {
        "id": own_id,
        "true_parent": request.headers.get("x-true-parent"),
        "traceparent": request.headers.get("traceparent"),
        "lang": "python",
        "function": os.environ.get("K_SERVICE"),
        "body": {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()},
        "pad": "x" * plan.get("pad", 0),
        "children": children,
    }
