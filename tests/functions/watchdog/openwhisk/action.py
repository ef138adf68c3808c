"""The tests' function as an OpenWhisk action; the parameters are the events of ../../lambda/README.md."""

import json
import os
import urllib.request

from openwhisk_docker_action import Action

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def act(parameters):
    children = []
    for url in parameters.get("value", {}).get("calls", []):
        request = urllib.request.Request(url, data=b"{}", headers={"content-type": "application/json"})
        with opener.open(request, timeout=30) as response:
            children.append(json.load(response))
    return {"pid": os.getpid(), "children": children}


action = Action()
action.setHost("127.0.0.1")
action.setPort(int(os.environ["PORT"]))
action.main(act)
