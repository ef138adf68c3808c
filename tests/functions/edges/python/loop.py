"""aiohttp on both sides."""

import asyncio
import os

import aiohttp
import shapes
from aiohttp import web

session = web.AppKey("session", aiohttp.ClientSession)
background = set()


async def call(client, own_id, fail=False):
    url, headers = shapes.call_to(own_id, fail)
    async with client.get(url, headers=headers) as response:
        await response.read()
        return response.status


async def call_later(client, own_id):
    await asyncio.sleep(shapes.AFTER)
    await call(client, own_id)


async def handle(request):
    own_id, shape = request.match_info["id"], request.query.get("shape")
    client = request.app[session]
    if shape == "seq":
        for _ in range(3):
            await call(client, own_id)
    elif shape == "par":
        await asyncio.gather(*(call(client, own_id) for _ in range(4)))
    elif shape == "timer":
        for _ in range(2):
            await asyncio.sleep(shapes.timer())
            await call(client, own_id)
    elif shape == "after":
        await call(client, own_id)
        task = asyncio.create_task(call_later(client, own_id))
        background.add(task)
        task.add_done_callback(background.discard)
    elif shape == "retry":
        if await call(client, own_id, fail=True) == 503:
            await call(client, own_id)
    elif shape == "stream":
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"a chunk\n")
            await call(client, own_id)
        await response.write_eof()
        return response
    elif shape == "fresh":
        for _ in range(2):
            async with aiohttp.ClientSession() as once:
                await call(once, own_id)
    return web.Response(text="done\n")


async def with_session(app):
    async with aiohttp.ClientSession() as client:
        app[session] = client
        yield


app = web.Application()
app.router.add_get("/{id}", handle)
app.cleanup_ctx.append(with_session)
web.run_app(app, host=os.environ["HOST"], port=int(os.environ["PORT"]), access_log=None)
