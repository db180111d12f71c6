"""Passes through the base model recorded as CUDA graphs, for updates that would wait for Python.

A pass is more than two thousand kernels. For 16 rows at 1.5B an H200 runs them in 30 ms, and Python took 180 ms to
start them (docs/performance.md). A recorded pass is started with one call. A recording reads and writes tensors of
fixed sizes in fixed places: so batches are filled up to a few sizes (`flat_batch(few_sizes=True)`) and copied into the
tensors that were recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from train.padding_free import FlatBatch
from util.cli import first_line
from util.terminal import say

MAX_SIZES = 64  # sizes that are recorded; passes of others run without a recording
BUSY = 2.5e13  # weights times tokens of a pass that keeps a GPU busy for longer than Python takes


@dataclass
class CudaGraphs:
    """run: the pass of a batch, which adds its gradients in place. Returns the losses."""

    run: Callable[[FlatBatch], Any]
    max_tokens: int
    """of a pass that is worth a recording; 0 once a recording has failed"""
    recorded: dict[tuple[Any, ...], tuple[Any, FlatBatch, Any]] = field(default_factory=dict)
    """by the sizes of a batch: the graph, the batch that it reads, the losses that it writes"""
    memory: Any = None
    """shared by all recordings: one pass runs at a time"""

    def __call__(self, batch: FlatBatch, device: Any) -> Any:
        """The losses of a batch on the CPU. The first pass of its sizes is recorded when it has run."""
        sizes = batch.sizes()
        if sizes in self.recorded:
            graph, recorded_batch, losses = self.recorded[sizes]
            recorded_batch.fill_from(batch)
            graph.replay()
            return losses
        on_gpu = batch.to(device)
        losses = self.run(on_gpu)
        if len(self.recorded) < MAX_SIZES:
            try:
                self.record(sizes, on_gpu)
            except RuntimeError as error:  # the memory is full, or a kernel of this GPU cannot be recorded
                self.recorded.clear()
                self.max_tokens = 0
                say(f"no CUDA graphs in this training ({first_line(error)}): updates of few rows are slower")
        return losses

    def record(self, sizes: tuple[Any, ...], batch: FlatBatch) -> None:
        """Record a pass. Nothing is computed meanwhile."""
        import torch

        torch.cuda.synchronize()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self.memory = self.memory or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self.memory, capture_error_mode="thread_local"):
                losses = self.run(batch)
        finally:
            torch.cuda.set_stream(stream)  # a recording that failed leaves its own
        self.recorded[sizes] = graph, batch, losses


def max_tokens_to_record(weights: int, token_bytes: int, free_bytes: int) -> int:
    """How many tokens a pass may have to be recorded: it should not keep the GPU busy by itself, and its memory, which
    a recording keeps, should be a small part of what is free."""
    return min(int(BUSY / weights), free_bytes // 6 // token_bytes)
