#!/usr/bin/env python3
"""The tests' function for one request on standard input, as a CGI script or the child of a watchdog: the events are those
of ../../lambda/README.md."""

import json
import os
import sys
import time
import urllib.request

length = os.environ.get("CONTENT_LENGTH")
event = json.loads(sys.stdin.buffer.read(int(length)) if length else sys.stdin.buffer.read())
time.sleep(event.get("sleep", 0))
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
children = []
for url in event.get("calls", []):
    request = urllib.request.Request(url, data=b"{}", headers={"content-type": "application/json"})
    with opener.open(request, timeout=30) as response:
        children.append(json.load(response))
if "GATEWAY_INTERFACE" in os.environ:
    print("Content-Type: application/json\r\n\r\n", end="")
print(json.dumps({"pid": os.getpid(), "children": children}))
