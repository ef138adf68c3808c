"""The tests' function as a Lambda handler; ../README.md has the events."""

import json
import os
import time
import urllib.request


def post(url):
    request = urllib.request.Request(url, data=b"{}", headers={"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        return json.load(response)


def handle(event, context):
    if "sleep" in event:
        time.sleep(event["sleep"])
    answers = [post(url) for url in event.get("calls", [])]
    if event.get("fail"):
        raise ValueError("as the event asked")
    if event.get("exit"):
        os._exit(3)
    return {"invocation_id": context.aws_request_id, "pid": os.getpid(), "children": answers}
