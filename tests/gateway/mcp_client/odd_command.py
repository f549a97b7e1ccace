"""A command that serves MCP over stdio with one oddity.

`python odd_command.py ODDITY…` uses only the standard library, so it starts fast.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
TOOLS = ("fine", "latin", "broken", "long", "endless", "flood", "chatter", "exit", "close", "hang")
HANGING = threading.Event()
"""The tool `hang` answers its first call only."""


def write(message: Any, encoding: str = "utf-8") -> None:
    text = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False, separators=(",", ":"))
    sys.stdout.buffer.write(text.encode(encoding) + b"\n")
    sys.stdout.buffer.flush()


def answer_call(request_id: int, name: str) -> None:
    result = {"content": [{"type": "text", "text": f"café {name}"}]}
    match name:
        case "latin":
            write({"id": request_id, "result": result}, "latin-1")
        case "broken":
            sys.stdout.buffer.write(b'{"jsonrpc":"2.0","id":%d,"result":\xff{}}\n' % request_id)
            sys.stdout.buffer.flush()
        case "long":
            write({"id": request_id, "result": {"content": [{"type": "text", "text": "x" * 1_000_000}]}})
        case "endless":
            while True:
                sys.stdout.buffer.write(b"x" * 65_536)
        case "flood":
            for _ in range(200):
                sys.stderr.buffer.write(b"a line of the flood\n" * 5_000)
            sys.stderr.buffer.write(b"the last line\n")
            sys.stderr.buffer.flush()
            write({"id": request_id, "result": result})
        case "chatter":
            sys.stdout.buffer.write(b"a print of the author\n\n{}\n[1]\n")
            write({"id": request_id, "result": result})
        case "exit":
            os._exit(7)
        case "close":
            os.close(1)
            time.sleep(600)
        case "hang" if HANGING.is_set():
            pass
        case "hang":
            HANGING.set()
            write({"id": request_id, "result": result})
        case _:
            write({"id": request_id, "result": result})


def serve(oddities: list[str]) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        method, params = message["method"], message.get("params") or {}
        if "id" not in message:
            continue
        if method == "server/discover" and "exits_on_discover" in oddities:
            os._exit(0)
        match method:
            case "initialize":
                info = {"name": "odd", "version": "1"}
                result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
                write({"id": message["id"], "result": result})
            case "tools/list":
                tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]
                write({"id": message["id"], "result": {"tools": tools}})
                if "crashes_after_start" in oddities:
                    os._exit(5)
            case "tools/call":
                answer_call(message["id"], params["name"])
            case _:
                write({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})


def main(oddities: list[str]) -> None:
    if file := os.environ.get("PID_FILE"):
        with Path(file).open("a") as pids:
            pids.write(f"{os.getpid()}\n")
    if "crashes" in oddities:
        print(f"token {os.environ.get('TOKEN')}\nno module named x", file=sys.stderr, flush=True)
        os._exit(3)
    if "ignores_signals" in oddities:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-S", "-E", "-c", CHILD])
        serve(oddities)
        time.sleep(600)
    serve(oddities)


if __name__ == "__main__":
    main(sys.argv[1:])
