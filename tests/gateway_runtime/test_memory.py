"""Test of a process's memory after large bodies."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from gateway_runtime.process.memory import return_large_blocks

return_large_blocks()


def measure():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


before = measure()
for _ in range(3):
    bodies = [(bytearray(2_000_000), bytearray(3_000_000)) for _ in range(60)]
    kept = [bytes(50_000 + number) for number in range(60)]
    bodies.clear()
print((measure() - before) // 1_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_memory_of_large_bodies_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=50)
    assert int(done.stdout) < 60
