"""How busy the processes of a vLLM server and the GPU are while they answer."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any


def cpu_seconds(group: int) -> dict[str, float]:
    """CPU seconds so far of the processes of a process group: {"engine": ..., "API server": ..., "other": ...}."""
    found: dict[str, float] = defaultdict(float)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):  # a process may end while it is read
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                role = "engine" if "EngineCore" in name else "API server" if "erve" in name else "other"
                found[role] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


class GpuWatch(threading.Thread):
    """Reads the GPU's use four times a second, where nvidia-smi is installed."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float]] = []
        self.process: Any = None
        cards = os.environ.get("CUDA_VISIBLE_DEVICES")
        with suppress(OSError):
            self.process = subprocess.Popen(
                ["nvidia-smi", *(["-i", cards] if cards else []), "--query-gpu=utilization.gpu",
                 "--format=csv,noheader,nounits", "-lms", "250"],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        self.start()

    def run(self) -> None:
        for line in self.process.stdout if self.process else ():
            with suppress(ValueError):
                self.seen.append((time.monotonic(), float(line)))

    def mean(self, since: float) -> float | None:
        """Mean use in percent since a moment of time.monotonic(); None without a GPU."""
        values = [value for at, value in self.seen if at >= since]
        return round(sum(values) / len(values)) if values else None

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
