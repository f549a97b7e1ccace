"""Run the simulator as a process: `python -m gateway.simulator --port N`."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from gateway.simulator.server import SimulatorSettings, serve_simulator
from gateway_runtime.parent_watchdog import stop_with_parent
from gateway_runtime.renamed_settings import read_parent_fd


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on the loopback interface; 0: any free port")
    parser.add_argument("--fd", type=int, help="file descriptor of an inherited, bound socket to use instead")
    parser.add_argument("--tokens-per-second", type=float, default=SimulatorSettings().tokens_per_second)
    parser.add_argument("--replay", type=Path, help="directory of recorded exchanges to replay for equal requests")
    options = parser.parse_args()
    try:
        parent_fd = _load_parent_fd()
    except ValueError:
        sys.stderr.write("simulator: GATEWAY_PARENT_FD: must be the number of a file descriptor\n")
        return 2
    try:
        listener = socket.socket(fileno=options.fd) if options.fd is not None else _bind_socket(options.port)
    except OSError as error:
        sys.stderr.write(f"simulator: cannot listen on 127.0.0.1:{options.port}: {error.strerror}\n")
        return 2
    replay = options.replay or os.environ.get("SIMULATOR_REPLAY")
    settings = SimulatorSettings(options.tokens_per_second, replay=Path(replay) if replay else None)
    asyncio.run(_serve_until_stopped(settings, listener, parent_fd, announce=options.fd is None))
    return 0


def _bind_socket(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


def _load_parent_fd() -> int | None:
    value = read_parent_fd(os.environ.get("GATEWAY_PARENT_FD") or os.environ.get("GATEWAY_LIFELINE") or None)
    return None if value is None else int(str(value))


async def _serve_until_stopped(
    settings: SimulatorSettings, listener: socket.socket, parent_fd: int | None, *, announce: bool
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    if parent_fd is not None:
        stop_with_parent(parent_fd)
    async with serve_simulator(settings, listener) as simulator:
        if announce:
            sys.stdout.write(msgspec.json.encode({"simulator": simulator.base_url}).decode() + "\n")
            sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
