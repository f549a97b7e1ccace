"""A command whose tools answer with the messages of `ODD_MESSAGES`.

It uses only the standard library.
"""

import json
import os
import sys

MESSAGES: dict[str, str] = json.loads(os.environ["ODD_MESSAGES"])
START = os.environ.get("ODD_START", "")


def write(text: str) -> None:
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()


for line in sys.stdin:
    message = json.loads(line)
    method, request_id = message.get("method"), message.get("id")
    if method is None or request_id is None:
        continue
    if method == "tools/call":
        write(MESSAGES[message["params"]["name"]].replace("ID", str(request_id)))
        continue
    info = {"name": "odd", "version": "1"}
    results = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info},
        "tools/list": {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in MESSAGES]},
    }
    error = {"code": -32601, "message": "Method not found"}
    outcome = {"result": results[method]} if method in results else {"error": error}
    write(START + json.dumps({"jsonrpc": "2.0", "id": request_id, **outcome}))
