"""`python -m benchmarks.cpu_share SHARE PID …`: run processes for a share of the time, each at its own.

They are stopped and continued by signals, so one core is enough for all of them while their shares add up to less, and
what they talk to keeps the others. Until standard input ends.
"""

import os
import select
import signal
import sys
import time

PERIOD = 0.1


def hold(share: float, pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    began = time.perf_counter()
    turns = 0
    while not select.select([0], [], [], 0)[0]:
        slot, n = divmod(turns, len(pids))
        start = began + (slot + n / len(pids)) * PERIOD
        time.sleep(max(0.0, start - time.perf_counter()))
        os.kill(pids[n], signal.SIGCONT)
        time.sleep(max(0.0, start + share * PERIOD - time.perf_counter()))
        os.kill(pids[n], signal.SIGSTOP)
        turns += 1


if __name__ == "__main__":
    held = [int(word) for word in sys.argv[2:]]
    try:
        hold(float(sys.argv[1]), held)
    finally:
        for one in held:
            os.kill(one, signal.SIGCONT)
