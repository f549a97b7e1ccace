"""`python -m benchmarks.bare_streams`: the floor for `benchmarks.followers`.

It answers every request with a stream that sends one frame and then waits, by Starlette alone or by sse-starlette.
"""

import argparse
import asyncio
import resource
from collections.abc import AsyncGenerator

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from benchmarks.session import print_line

FRAME = b"event: input.required\ndata: {}\n\n"


def create_app(kind: str) -> Starlette:
    """An application whose streams wait without end."""
    has_news = asyncio.Event()

    async def stream_frames() -> AsyncGenerator[bytes]:
        yield FRAME
        await has_news.wait()

    async def follow(_request: Request) -> Response:
        if kind == "sse-starlette":
            return EventSourceResponse(stream_frames())
        return StreamingResponse(stream_frames(), media_type="text/event-stream")

    async def report_ready(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/ready", report_ready), Route("/{path:path}", follow)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_streams", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=("starlette", "sse-starlette"), default="starlette")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print_line(f"serves {options.kind}")
    uvicorn.run(create_app(options.kind), port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
