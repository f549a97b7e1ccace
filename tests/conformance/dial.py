"""The command that the conformance suite starts for each scenario: has the client in the test's process do it.

A process that loads the gateway's libraries for each of fifty scenarios would take most of a minute.
"""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    context = os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}"
    client.sendall(json.dumps({"url": sys.argv[-1], "context": json.loads(context)}).encode() + b"\n")
    sys.exit(0 if client.recv(1) == b"0" else 1)
