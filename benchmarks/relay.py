"""The floor for Python: an aiohttp server that passes the upstream's bytes on and looks at none of them."""

import argparse
import asyncio
import gc

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web


def create_app(upstream: str) -> web.Application:
    async def pass_on(request: web.Request) -> web.StreamResponse:
        session: ClientSession = request.app[SESSION]
        body = await request.read()
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{upstream}{request.path}", data=body, headers=headers) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def ready(_request: web.Request) -> web.Response:
        return web.Response()

    async def connect(app: web.Application) -> None:
        app[SESSION] = ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None))

    app = web.Application()
    app.on_startup.append(connect)
    app.router.add_post("/openai/v1/chat/completions", pass_on)
    app.router.add_get("/ready", ready)
    return app


SESSION = web.AppKey("session", ClientSession)


async def _serve(port: int, upstream: str) -> None:
    runner = web.AppRunner(create_app(upstream), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--upstream", required=True)
    given = arguments.parse_args()
    uvloop.run(_serve(given.port, given.upstream))
