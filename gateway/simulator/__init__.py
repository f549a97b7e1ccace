"""A local server with Groq's wire format. It follows the prompt well enough to use tools, and says what it is.

It serves where no key is set, and the tests as their upstream: the same client code talks to it and to Groq.

    wire.py      what goes over the wire: chunks, answers, usage
    request.py   what Groq refuses, and the request as the rest reads it
    responder.py what to say next
    faults.py    how to misbehave, on demand
    server.py    the HTTP server
"""

from gateway.simulator.faults import Fault
from gateway.simulator.server import Simulator, SimulatorSettings, serve_simulator

__all__ = ["Fault", "Simulator", "SimulatorSettings", "serve_simulator"]
