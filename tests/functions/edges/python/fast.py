"""FastAPI on uvicorn, with httpx."""

import asyncio

import fastapi
import fastapi.concurrency
import fastapi.responses
import httpx
import shapes

app = fastapi.FastAPI()
limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
client = httpx.AsyncClient(trust_env=False, timeout=30, limits=limits)
blocking = httpx.Client(trust_env=False, timeout=30, limits=limits)


async def call(own_id, fail=False, via=client):
    url, headers = shapes.call_to(own_id, fail)
    return (await via.get(url, headers=headers)).status_code


def call_blocking(own_id):
    url, headers = shapes.call_to(own_id)
    blocking.get(url, headers=headers)


async def call_later(own_id):
    await asyncio.sleep(shapes.AFTER)
    await call(own_id)


async def chunks(own_id):
    for _ in range(3):
        yield b"a chunk\n"
        await call(own_id)


@app.get("/{own_id}")
async def handle(own_id: str, later: fastapi.BackgroundTasks, shape: str = ""):
    if shape == "seq":
        for _ in range(3):
            await call(own_id)
    elif shape == "par":
        await asyncio.gather(*(call(own_id) for _ in range(4)))
    elif shape == "timer":
        for _ in range(2):
            await asyncio.sleep(shapes.timer())
            await call(own_id)
    elif shape == "pool":
        for _ in range(2):
            await fastapi.concurrency.run_in_threadpool(call_blocking, own_id)
    elif shape == "after":
        await call(own_id)
        later.add_task(call_later, own_id)
    elif shape == "retry":
        if await call(own_id, fail=True) == 503:
            await call(own_id)
    elif shape == "stream":
        return fastapi.responses.StreamingResponse(chunks(own_id))
    elif shape == "fresh":
        for _ in range(2):
            async with httpx.AsyncClient(trust_env=False) as once:
                await call(own_id, via=once)
    return "done"
