"""A WebSocket service that echoes, and a client that tries it: websocket.py serve PORT | try URI PORT."""

import asyncio
import os
import sys
import time

import websockets

LIMIT = 4 << 20


async def echo(socket, *_):
    async for message in socket:
        await socket.send(message)


async def serve(port):
    async with websockets.serve(echo, "127.0.0.1", port, ping_interval=None, max_size=LIMIT):
        await asyncio.Future()


async def attempt(uri, port):
    options = dict(host="127.0.0.1", port=port, ping_interval=None, max_size=LIMIT)
    async with websockets.connect(uri, **options) as socket:
        async def same(message):
            await socket.send(message)
            assert await socket.recv() == message

        await same("text, of more than one byte a letter: grüße")
        await same(b"\x00\xff" * 500)
        await (await socket.ping())
        await same(os.urandom(1 << 20))
        begun = time.monotonic()
        await asyncio.sleep(12)
        await same(f"after {time.monotonic() - begun:.0f} s of silence")
        await socket.close(1000, "done")
    assert socket.close_code == 1000, socket.close_code
    print("tried")


if sys.argv[1] == "serve":
    asyncio.run(serve(int(sys.argv[2])))
else:
    asyncio.run(attempt(sys.argv[2], int(sys.argv[3])))
