"""Sends a conformance scenario to the client in the test's process.

The suite starts this command for each scenario. Importing the gateway in each would make the test slow.
"""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    scenario = {"scenario": os.environ.get("MCP_CONFORMANCE_SCENARIO", ""), "url": sys.argv[-1], "context": context}
    client.sendall(json.dumps(scenario).encode() + b"\n")
    sys.exit(0 if client.recv(1) == b"0" else 1)
