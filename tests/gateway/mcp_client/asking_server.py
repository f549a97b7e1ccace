"""A legacy MCP server over stdio whose tools ask questions.

`python asking_server.py` uses only the standard library.
"""

import json
import sys
import threading
import time
from itertools import count
from pathlib import Path
from queue import Queue
from typing import Any

JsonObject = dict[str, Any]
_lock = threading.Lock()
_ids = count(1)
_answers: dict[str, "Queue[JsonObject]"] = {}
_meeting = threading.Condition()
_met = _asked = 0
_TOOLS = ("ask", "ask_late", "ask_after_file", "meet", "sleep", "maybe")


def send(message: JsonObject) -> None:
    with _lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def ask(name: str) -> str:
    global _asked
    request_id = f"q{next(_ids)}"
    _answers[request_id] = Queue()
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    params = {"mode": "form", "message": f"question of {name}", "requestedSchema": schema}
    send({"id": request_id, "method": "elicitation/create", "params": params})
    with _meeting:
        _asked += 1
        _meeting.notify_all()
    answer = _answers[request_id].get()
    return str((answer.get("content") or {}).get("text", answer["action"]))


def wait_for_file(file: Path) -> None:
    """Report the call beside a file, and wait for the file."""
    file.with_name("has_started").touch()
    while not file.exists():
        time.sleep(0.01)


def meet(calls: int, questions: int) -> None:
    """Wait for a number of calls, and of questions since the start."""
    global _met
    with _meeting:
        _met += 1
        _meeting.notify_all()
        _meeting.wait_for(lambda: _met >= calls and _asked >= questions)


def call(request_id: object, tool: str, arguments: JsonObject) -> None:
    match tool:
        case "ask_late" | "sleep":
            time.sleep(arguments["seconds"])
        case "ask_after_file":
            wait_for_file(Path(arguments["file"]))
        case "meet":
            meet(arguments["calls"], arguments["questions"])
        case _:
            pass
    text = "done" if tool in ("sleep", "meet") or arguments.get("quiet") else ask(arguments["name"])
    send({"id": request_id, "result": {"content": [{"type": "text", "text": text}]}})


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        method, request_id = message.get("method"), message.get("id")
        if method is None:
            _answers[request_id].put(message["result"])
        elif method == "initialize":
            info = {"name": "asking", "version": "1"}
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
            send({"id": request_id, "result": result})
        elif method == "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in _TOOLS]
            send({"id": request_id, "result": {"tools": tools}})
        elif method == "tools/call":
            params = message["params"]
            threading.Thread(target=call, args=(request_id, params["name"], params["arguments"]), daemon=True).start()
        elif request_id is not None:
            send({"id": request_id, "error": {"code": -32601, "message": "Method not found"}})


if __name__ == "__main__":
    main()
