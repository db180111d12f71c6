"""Data parallel training: several processes (torchrun, accelerate launch) share the rows of every update.

All processes read the same rows in the same order and have the same adapters and optimizer. In one update

1. every process computes losses and gradients for its share of the rows,
2. losses and gradients are summed over all processes,
3. every process makes the same optimizer step.

So it is the update that one process alone would make, also for the short last batch of an epoch. Only process 0 writes
files and prints.

A base model that is larger than one card is sharded over the processes instead (experiments/fsdp.yaml). That is
accelerate's and TRL's work; here the processes are only connected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from util.cli import UserError, first_line
from util.stop_signals import Interrupted

T = TypeVar("T")
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
NO_LAUNCHER = "unset RANK, WORLD_SIZE and LOCAL_RANK, or start the training with torchrun, which sets them"


class Processes:
    """The processes that train together, seen from this one (number `rank` of `count`). By default it is alone."""

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None, sharded: bool = False):
        self.rank, self.count = rank, count
        self.sharded = sharded  # each process holds a piece of the base model
        self.group = group  # torch's process group for tensors on GPUs

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share_of(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's share of an update's rows."""
        return rows[self.rank :: self.count]

    def sum(self, tensors: Sequence[Any]) -> None:
        """Replace tensors of one device and number type by their sums over all processes."""
        import torch

        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with explain_lost_process():
            torch.distributed.all_reduce(flat, group=self.group)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process. Waits for the processes, not for their GPUs."""
        import torch

        if self.count == 1:
            return value
        how_many = torch.tensor(int(value))
        with explain_lost_process():
            torch.distributed.all_reduce(how_many)
        return bool(how_many)

    def from_first(self, value: T) -> T:
        """The first process's value, in every process."""
        import torch

        if self.count == 1:
            return value
        values = [value]
        with explain_lost_process():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def only_first_prints(self) -> Iterator[None]:
        """Silence all processes but the first.

        An error of any process is still printed, because it leaves this block. A requested stop is printed once.
        """
        if self.first:
            yield
            return
        nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - loggers keep a reference to it
        try:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        except Interrupted as stop:
            sys.exit(128 + stop.signum)


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn torch's error about a process that is no longer there into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"another process of this run has ended, so this one stops ({str(error)[:80]}...)") from None


def launcher_variable(name: str) -> int:
    """A launcher's variable in the environment as a number; 0 if it is not set. UserError for another text."""
    text = os.environ.get(name) or "0"
    if not text.isdecimal():
        raise UserError(f"the environment has {name}={text}, which is not a whole number; {NO_LAUNCHER}")
    return int(text)


def join_processes() -> Processes:
    """Give this process one GPU and, if a launcher started several, connect them. Call it before torch is used.

    Afterwards the launcher's variables are removed from the environment: accelerate is only to know this process,
    unless it shards the model (accelerate launch with a config of type FSDP).
    """
    rank, count, local = (launcher_variable(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    sharded = os.environ.pop("ACCELERATE_USE_FSDP", "").lower() == "true" and count > 1
    if not sharded:
        show_one_gpu(local)
    if count < 2:
        return Processes()
    import torch
    from torch import distributed

    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if sharded and torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:  # a batch system may set RANK and WORLD_SIZE, and no address
        raise UserError(
            f"the environment has RANK={rank} and WORLD_SIZE={count}, but the processes cannot be connected"
            f" ({first_line(error)}); {NO_LAUNCHER}"
        ) from None
    with_gpu: list[Any] = [None] * count
    distributed.all_gather_object(with_gpu, torch.cuda.is_available())
    if any(with_gpu) and not all(with_gpu):
        raise UserError(f"{count} processes, but only {sum(with_gpu)} found a GPU: start one process per GPU")
    if sharded:
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        return Processes(rank, count, sharded=True)
    for name in [name for name in os.environ if name in LAUNCHERS or name.startswith(("ACCELERATE_", "TORCHELASTIC_"))]:
        del os.environ[name]
    return Processes(rank, count, distributed.new_group(backend="nccl") if all(with_gpu) else None)


def show_one_gpu(index: int) -> None:
    """Let torch see one GPU only: with several, TRL would refuse a model that is spread over them in one process.

    Of the GPUs that a scheduler has assigned (numbers, UUIDs or MIG parts), the one at this index. As in CUDA and in
    util/list_allowed_gpus.sh, the list ends at its first bad name.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = [str(index)] * (index + 1) if visible is None else [name.strip() for name in visible.split(",")]
    names = list(takewhile(lambda name: name and not name.startswith("-") and name != "NoDevFiles", listed))
    os.environ["CUDA_VISIBLE_DEVICES"] = names[index] if index < len(names) else ""


def disconnect(processes: Processes) -> None:
    """Disconnect from the other processes."""
    if processes.count > 1:
        from torch import distributed

        distributed.destroy_process_group()
