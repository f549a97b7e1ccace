"""Limit each process to a share of the time.

Run it as `python -m benchmarks.cpu_share SHARE PID …`. Signals stop and continue the processes in separate time slots.
All of them together need one core as long as their shares add up to less than 1, and the other cores are free for their
peers. Runs until standard input ends.
"""

import os
import select
import signal
import sys
import time

PERIOD_SECONDS = 0.1


def limit_cpu_share(share: float, pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    started_at = time.perf_counter()
    slots = 0
    while not select.select([0], [], [], 0)[0]:
        period, index = divmod(slots, len(pids))
        start = started_at + (period + index / len(pids)) * PERIOD_SECONDS
        time.sleep(max(0.0, start - time.perf_counter()))
        os.kill(pids[index], signal.SIGCONT)
        time.sleep(max(0.0, start + share * PERIOD_SECONDS - time.perf_counter()))
        os.kill(pids[index], signal.SIGSTOP)
        slots += 1


if __name__ == "__main__":
    process_ids = [int(argument) for argument in sys.argv[2:]]
    try:
        limit_cpu_share(float(sys.argv[1]), process_ids)
    finally:
        for process_id in process_ids:
            os.kill(process_id, signal.SIGCONT)
