"""A thread per request: functions-framework on gunicorn's threads, or plain WSGI on its prefork workers."""

import concurrent.futures
import time
import urllib.parse

import functions_framework
import requests
import shapes

session = requests.Session()
session.trust_env = False
pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)


def call(own_id, fail=False, via=session):
    url, headers = shapes.call_to(own_id, fail)
    return via.get(url, headers=headers, timeout=30).status_code


def call_afresh(own_id):
    with requests.Session() as once:
        once.trust_env = False
        call(own_id, via=once)


def call_later(own_id):
    time.sleep(shapes.AFTER)
    call(own_id)


def chunks(own_id):
    for _ in range(3):
        yield b"a chunk\n"
        call(own_id)


def carry_out(own_id, shape):
    """The body of the answer; its parts, if it is made bit by bit."""
    if shape == "seq":
        for _ in range(3):
            call(own_id)
    elif shape == "par":
        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as own:
            list(own.map(call, [own_id] * 4))
    elif shape == "timer":
        for _ in range(2):
            time.sleep(shapes.timer())
            call(own_id)
    elif shape == "pool":
        for _ in range(2):
            pool.submit(call, own_id).result()
    elif shape == "after":
        call(own_id)
        pool.submit(call_later, own_id)
    elif shape == "retry":
        if call(own_id, fail=True) == 503:
            call(own_id)
    elif shape == "stream":
        return chunks(own_id)
    elif shape == "fresh":
        call_afresh(own_id)
        call_afresh(own_id)
    return b"done\n"


@functions_framework.http
def handle(request):
    return carry_out(request.path.lstrip("/"), request.args.get("shape"))


def wsgi(environ, start_response):
    shape = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"])).get("shape")
    body = carry_out(environ["PATH_INFO"].lstrip("/"), shape)
    start_response("200 OK", [("content-type", "text/plain")])
    return [body] if isinstance(body, bytes) else body
