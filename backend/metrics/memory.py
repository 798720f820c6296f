"""Peak memory of running the artifact with its weights kept packed, measured in a process of its own.

A fresh process opens the artifact packed (each linear is decoded when it is called), reads 512 tokens and
writes 8. The figure is by how much its resident memory rose above what Python and torch take; on CUDA, the
allocator's peak.
"""

import json
import subprocess
import sys
import time

from backend.evaluate import Measured, Result, Subject
from backend.progress import Update
from backend.registry import metric

_SECONDS = 1800


@metric
def memory(subject: Subject) -> Result:
    """memory.peak in bytes."""
    command = [sys.executable, "-m", "backend.footprint", str(subject.artifact), str(subject.host.home)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    try:
        while running.poll() is None:
            # Polled, so that the run can be stopped meanwhile.
            subject.progress(Update("memory", 0, 1, "measuring in a process of its own"))
            if time.monotonic() - started > _SECONDS:
                raise TimeoutError(f"the memory probe did not end within {_SECONDS} s")
            time.sleep(0.2)
    finally:
        running.kill()
    out, err = running.communicate()
    if running.returncode:
        raise RuntimeError(f"the memory probe ended with code {running.returncode}: {err[-2000:]}")
    found = json.loads(out.splitlines()[-1])
    subject.progress(Update("memory", 1, 1))
    return Result([Measured("memory.peak", float(found["peak"]), "bytes", True, found["protocol"])])
