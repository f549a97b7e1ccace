"""Forward the upstream's bytes with aiohttp, unread: the minimum for Python."""

import argparse
import asyncio
import gc

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web


def create_app(upstream: str) -> web.Application:
    async def forward(request: web.Request) -> web.StreamResponse:
        session: ClientSession = request.app[SESSION]
        body = await request.read()
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{upstream}{request.path}", data=body, headers=headers) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            await response.write_eof()
            return response

    async def report_ready(_request: web.Request) -> web.Response:
        return web.Response()

    async def open_session(app: web.Application) -> None:
        app[SESSION] = ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None))

    app = web.Application()
    app.on_startup.append(open_session)
    app.router.add_post("/openai/v1/chat/completions", forward)
    app.router.add_get("/ready", report_ready)
    return app


SESSION = web.AppKey("session", ClientSession)


async def _run_server(port: int, upstream: str) -> None:
    runner = web.AppRunner(create_app(upstream), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    uvloop.run(_run_server(options.port, options.upstream))
