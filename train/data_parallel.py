"""Several processes that make each update in common (torchrun, accelerate launch): data parallel.

To TRL and accelerate each process is alone: all read the same rows in the same order and hold the same adapter and
optimizer. They share out the rows of each update and sum their gradients, so that the update is the one that a single
process makes, with its effective batch and its short last batch of an epoch. Process 0 alone writes and prints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from util.cli import UserError
from util.signals import Interrupted

T = TypeVar("T")
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """This process among those that train together; one alone if no launcher started it."""

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None):
        self.rank, self.count = rank, count
        self.group = group  # of what moves between GPUs

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's share of an update's rows."""
        return rows[self.rank :: self.count]

    def sum(self, tensors: Sequence[Any]) -> None:
        """Replace tensors of one device and number type by their sums over all processes."""
        import torch

        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with losing_another():
            torch.distributed.all_reduce(flat, group=self.group)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))

    def any(self, said: bool) -> bool:
        """Whether any process says so; waits for them, not for their GPUs."""
        import torch

        if self.count == 1:
            return said
        saying = torch.tensor(int(said))
        with losing_another():
            torch.distributed.all_reduce(saying)
        return bool(saying)

    def told(self, value: T) -> T:
        """What the first process says; waits for it."""
        import torch

        if self.count == 1:
            return value
        said = [value]
        with losing_another():
            torch.distributed.broadcast_object_list(said, src=0)
        return said[0]

    @contextmanager
    def speaking_once(self) -> Iterator[None]:
        """Let the first process print. An error of any process is told, since it leaves this block; a stop that was
        asked for is told by the first."""
        if self.first:
            yield
            return
        spoken = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - loggers hold on to it
        try:
            yield
        except Interrupted as stop:
            sys.exit(128 + stop.signum)
        finally:
            sys.stdout, sys.stderr = spoken


@contextmanager
def losing_another() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"another process of this run has ended, so this one ends ({str(error)[:80]}...)") from None


def join() -> Processes:
    """Give this process one GPU and, if a launcher started several, meet the others. Call it before torch is used.

    The launcher's variables are taken out of the environment afterwards: accelerate would shard the batches, and
    repeat rows to fill the last one.
    """
    rank, count, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    use_gpu(local)
    if count < 2:
        return Processes()
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    with_gpu: list[Any] = [None] * count
    distributed.all_gather_object(with_gpu, torch.cuda.is_available())
    if any(with_gpu) and not all(with_gpu):
        raise UserError(f"{count} processes, but only {sum(with_gpu)} found a GPU: start as many as there are GPUs")
    for name in [name for name in os.environ if name in LAUNCHERS or name.startswith(("ACCELERATE_", "TORCHELASTIC_"))]:
        del os.environ[name]
    return Processes(rank, count, distributed.new_group(backend="nccl") if all(with_gpu) else None)


def use_gpu(number: int) -> None:
    """Let torch see one GPU: TRL refuses to spread a model over several within one process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number)] * (number + 1) if visible is None else visible.split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = names[number] if number < len(names) else ""


def leave(processes: Processes) -> None:
    """Part from the other processes in good order."""
    if processes.count > 1:
        from torch import distributed

        distributed.destroy_process_group()
