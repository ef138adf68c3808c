"""Answers each request; with UPSTREAM, by what the server there answers."""

import os

import flask
import requests

app = flask.Flask(__name__)
upstream = os.environ.get("UPSTREAM")
session = requests.Session()
session.trust_env = False
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=64))


@app.get("/")
def handle():
    if upstream is None:
        return "hello from behind\n"
    answer = session.get(f"http://127.0.0.1:{upstream}/", timeout=30)
    return answer.content, answer.status_code
