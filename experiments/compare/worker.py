"""One command of ``mbrl`` in a process that ends with the process that started it.

``python -m experiments.compare.worker train ...``. A fleet that is killed leaves no run behind that nobody watches.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from experiments.cli import main

SET_PARENT_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``"""


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends; elsewhere than on Linux nothing is asked."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be asked
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
