"""A local model server with Groq's wire format.

It serves tests, and users without an API key.

It understands prompts well enough to call tools, and marks its answers as simulated.

    wire.py       chunks, answers and usage as they are sent
    request.py    requests, with the checks that Groq makes
    responder.py  the choice of the next message
    faults.py     faults to inject
    server.py     the HTTP server
"""

from gateway.simulator.faults import Fault
from gateway.simulator.server import Simulator, SimulatorSettings, serve_simulator

__all__ = ["Fault", "Simulator", "SimulatorSettings", "serve_simulator"]
