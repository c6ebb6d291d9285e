"""Forward-mode derivatives that the threads of a pool may ask for at once.

torch keeps the levels of its dual numbers in one place for all threads: a thread that leaves its level takes the tangents of the others
with it, which then end in an error or, worse, come out as zero. So one thread at a time is let in; closed-form Jacobians need none of this.
"""

from __future__ import annotations

import threading

FORWARD_MODE = threading.RLock()  # to be held from before `torch.func.jvp` until its tangents are plain tensors
