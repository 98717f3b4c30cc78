"""Kernels in Triton, where torch would take many passes over a [tokens × vocabulary] plane.

They serve NVIDIA's devices. Each has a plain form in torch beside it, which everything else runs
and which the tests compare with.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache

import torch

from vlsi_cache.errors import first_line

__all__ = ["has_kernels", "kernels_work"]

logger = logging.getLogger(__name__)


def has_kernels(device: torch.device) -> bool:
    """Report whether the kernels run on a device: CUDA's with Triton installed.

    ``VLSI_CACHE_KERNELS=0`` in the environment turns them off.
    """
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and os.environ.get("VLSI_CACHE_KERNELS") != "0"
        and importlib.util.find_spec("triton") is not None
        and kernels_work(device)
    )


@cache
def kernels_work(device: torch.device) -> bool:
    """Run one kernel, and report whether it gives what torch gives.

    Triton compiles for the device at hand, by the system's C compiler. Either may be missing.
    """
    logits = torch.tensor([[0.0, 1.0, 2.0, 9.0]], device=device)
    try:
        from vlsi_cache.kernels import rows

        found, _ = rows.softmax_rows(logits, 3, torch.bfloat16)
        works = torch.allclose(found[0, :3].float(), logits[0, :3].softmax(0), atol=1e-2)
        problem = "it gives other numbers than torch"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Anything, because whatever fails here would end the run at its first step.
        works, problem = False, first_line(error)
    if not works:
        logger.warning(
            "%s: Triton's kernels do not work here (%s), so slower forms of torch take their "
            "place. Triton needs a C compiler and Python's headers",
            device,
            problem,
        )
    return works
