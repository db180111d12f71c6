"""Times the updates of a training, of the suite's loop or of TRL's trainer."""

from __future__ import annotations

import statistics
import time
from typing import Any

from util.terminal import Progress

WARM_UP = 3  # updates before the timed ones: kernels are chosen and compiled


def mark(cuda: bool) -> Any:
    """This moment. On a GPU it is an event: the moment when the GPU has done all work so far, without waiting."""
    import torch

    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(before: Any, after: Any) -> float:
    """Seconds from one mark to another."""
    return after - before if isinstance(after, float) else before.elapsed_time(after) / 1000


class Clock(Progress):
    """Marks the end of every update of a training loop."""

    def __init__(self, cuda: bool):
        super().__init__(0)
        self.cuda, self.ends = cuda, []  # type: bool, list[Any]

    def add(self, count: int = 1, note: str = "") -> None:
        self.ends.append(mark(self.cuda))


def timed(trainer: Any) -> dict[str, Any]:
    """Train; returns the median seconds of an update, and the peak memory."""
    import torch
    from transformers import TrainerCallback

    cuda = torch.cuda.is_available()
    clock = Clock(cuda)

    class Ends(TrainerCallback):
        def on_step_end(self, *_args: Any, **_options: Any) -> None:
            clock.add()

    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = mark(cuda)
    if hasattr(trainer, "students"):
        trainer.train(clock)
        loss = statistics.fmean(loss for student in trainer.students for loss in student.losses)
    else:
        trainer.add_callback(Ends())
        loss = trainer.train().training_loss
    if cuda:
        torch.cuda.synchronize()
    ends = clock.ends
    seconds = [between(before, after) for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:])]
    return {
        "seconds": round(statistics.median(seconds), 5),
        "spread": [round(min(seconds), 5), round(max(seconds), 5)],
        "warm_up_seconds": round(between(begun, ends[WARM_UP - 1]), 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None,
        "train_loss": round(loss, 5),
    }
