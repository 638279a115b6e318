"""A run of nothing but steps, on several hosts, one of which meets a fault at step 20.

Each step is a collective. It is what train.py is around its steps: cli, preemption, watchdog.
"""

import os
import signal
import sys
import time

import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from fasttta_jax import cli
from fasttta_jax.multihost import coordination
from fasttta_jax.multihost.preemption import Preempted, Preemption
from fasttta_jax.multihost.watchdog import Watchdog

FAULT = flags.DEFINE_string("fault", "", "What happens.")
HOST = flags.DEFINE_integer("host", 1, "Where it happens.")
FOLDER = flags.DEFINE_string("folder", "", "Of the watchdog.")
TIMEOUT = flags.DEFINE_float("timeout", 0.0, "Of the watchdog.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 400, "Where the run is complete.")
cli.define_distributed_flags()


def forget_to_come_back() -> None:
    time.sleep(1000)


def meet_fault() -> None:
    match FAULT.value:
        case "error":
            raise ValueError("this shard is broken")
        case "bug":
            raise TypeError("not a number")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        case "hang":
            forget_to_come_back()


def main() -> None:
    cli.start_distributed()
    folder, timeout = FOLDER.value, TIMEOUT.value
    with Preemption() as preemption, Watchdog(folder, timeout, interval=0.4) as watchdog:
        for step in range(1, NUM_STEPS.value + 1):
            watchdog.heartbeat(step, "data")
            if step == 20 and coordination.index() == HOST.value:
                meet_fault()
            watchdog.heartbeat(step, "step")
            if coordination.count() > 1:
                multihost_utils.process_allgather(np.ones(1))
            time.sleep(0.02)
            if preemption.reached(step):
                print(f"saved step {step}")
                raise Preempted(step)
    print("complete")
    if coordination.index() == 0:
        time.sleep(0.5)  # the others wait for it
    sys.stdout.flush()


if __name__ == "__main__":
    cli.run(main)
