"""The training loop: LoRA adapters of any number of students, over one frozen base model.

A student is one adapter in training, from one file of rows and one seed. (A teacher in training is one too.) Each is
the adapter that TRL's SFTTrainer gives for its file and seed alone: the same first weights, order of rows, loss,
clipping, AdamW and schedule (tests compare all of it; train/trl_trainer.py is that reference). What students share are
the passes through the base model. One update (`TrainingLoop.update`):

1. Every student that is still training takes the rows of its next update, in TRL's order.
2. The rows of all go through the base model in few passes, as memory allows, each student's with its own adapter.
   The loss is a mean over the tokens with loss in the student's whole update, so any split gives the same gradients but
   for rounding. On a GPU a pass of few rows is recorded as a CUDA graph, because it would wait for Python.
3. Under torchrun, losses and gradients are summed over the processes, each of which had a share of the rows.
4. Each student's gradient is clipped by its own norm, and AdamW changes its adapter at its own learning rate.
5. Losses are read and logged, checkpoints are saved. On a GPU losses are read during the next update, so that it never
   waits. A student whose loss or gradient is not finite has been changed by it and perhaps by one more update when this
   is read. From then on it is left out, and its last checkpoint is from before.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from train.base_model_layers import Decoder
from train.checkpoints import load_checkpoint, save_checkpoint
from train.cuda_graphs import CudaGraphs, max_tokens_to_record
from train.data_parallel import Processes
from train.fused_lora import Adapters, first_weights
from train.padding_free import EncodedRow, FlatBatch, count_loss_tokens, flat_batch, to_device
from train.rows_at_once import as_many_as_fit, free_memory
from train.schedule import rate_factor, warmup_updates
from util.batches import batched
from util.chat.chat_tokens import shared_prefix_length
from util.cli import UserError
from util.model_memory import bytes_per_token
from util.stop_signals import Stop
from util.terminal import Progress, say

LARGEST_NORM = 1.0  # of a gradient, as TRL clips it
USEFUL_FLOPS_FORMULA = (
    "4 x linear parameters of the frozen layers a token computed + 4 x output head a loss token:"
    " forward and input gradient; LoRA, attention, recompute and padding not counted"
)


@dataclass(frozen=True)
class Recipe:
    """How every student is trained."""

    epochs: int
    rows_an_update: int
    learning_rate: float
    lora: Any
    """PEFT's LoraConfig"""
    schedule: str = "linear"
    warmup: float = 5
    """updates, or a share of them below 1"""
    weight_decay: float = 0.0
    logging_steps: int = 50
    save_each_epoch: bool = False
    save_at: Sequence[int] = ()
    """also save after these updates"""


@dataclass
class Student:
    """One adapter in training: its rows, how far it is, and what it has logged."""

    rows: Sequence[EncodedRow]
    seed: int
    recipe: Recipe
    folder: Path
    """for checkpoints"""
    name: str = ""
    """for messages, where several train"""
    checkpoint: Path | None = None
    """where it resumes from"""
    on_log: Callable[[dict[str, float]], None] = lambda logs: None
    on_save: Callable[[Path, float], Any] = lambda checkpoint, epoch: None
    on_finish: Callable[[], None] = lambda: None
    """called after the last update, unless the training diverged"""
    done: int = 0
    """updates made"""
    problem: str = ""
    """why it was left out before its end"""
    history: list[dict[str, float]] = field(default_factory=list)
    """what was logged, also before it was resumed: checkpoints hold it"""
    losses: list[float] = field(default_factory=list)
    """of every update since it started or was resumed"""

    @property
    def updates_an_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.recipe.rows_an_update)

    @property
    def updates(self) -> int:
        """How many updates the whole training has."""
        return self.updates_an_epoch * self.recipe.epochs

    @property
    def finished(self) -> bool:
        return self.done == self.updates

    @property
    def trains(self) -> bool:
        """Whether it takes part in the next update."""
        return not self.finished and not self.problem

    def next_rows(self) -> list[EncodedRow]:
        """The rows of the next update. The last one of an epoch may have fewer."""
        epoch, place = divmod(self.done, self.updates_an_epoch)
        size = self.recipe.rows_an_update
        return [self.rows[i] for i in row_order(len(self.rows), self.seed, epoch)[place * size : (place + 1) * size]]

    def learning_rate(self, update: int) -> float:
        """Of an update, counted from 0."""
        recipe = self.recipe
        warmup = warmup_updates(recipe.warmup, self.updates)
        return recipe.learning_rate * rate_factor(recipe.schedule, update, self.updates, warmup)

    def note_loss(self, loss: float, norm: float) -> None:
        """Note the loss and the gradient's norm of the update made last; log the mean loss when it is time."""
        for what, value in (("loss", loss), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                self.note_divergence(what, value)
                return
        self.losses.append(loss)
        if self.logs_now():
            mean = statistics.fmean(self.losses[-self.recipe.logging_steps :])
            logs = {"loss": mean, "grad_norm": norm, "learning_rate": self.learning_rate(self.done - 1)}
            self.history.append({**logs, "epoch": self.done / self.updates_an_epoch, "step": self.done})
            self.on_log(self.history[-1])

    def note_divergence(self, what: str, value: float) -> None:
        """Note in `problem` that the update made last gave a value that is not finite, and what the user can do."""
        self.problem = (
            f"the {what} is {value} at update {self.done}; checkpoints before it are kept. Lower --learning-rate (now"
            f" {self.recipe.learning_rate:g}) or look at the rows"
        )

    def saves_now(self) -> bool:
        each_epoch = self.recipe.save_each_epoch and self.done % self.updates_an_epoch == 0
        return each_epoch or self.done in self.recipe.save_at

    def logs_now(self) -> bool:
        return self.done % self.recipe.logging_steps == 0


def row_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's rows: that of TRL (accelerate's SeedableRandomSampler with the seed of the data)."""
    import torch

    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return order


class UnreadLosses(NamedTuple):
    """The losses of an update that the GPU may still be computing."""

    active: Sequence[int]
    """indices of the students that made the update"""
    losses_and_norms: Any
    """[2, students], on the CPU; norms are those of the gradients before clipping"""
    copied: Any
    """the CUDA event after which they are there; None without a GPU"""


class TrainingLoop:
    """Trains students together over one base model (a model of `train.padding_free.FAMILIES`).

    Everywhere below, a student's index is its place in `students`, `rows_of` holds rows by that index, and `active`
    holds the indices of the students that take part in an update. A pass is one forward and backward pass; an update
    has one or more of them.

    asked: rows that the user knows to fit in memory at once.
    exact: take that number, neither more nor fewer.
    stop: when a signal arrived, all students stop after the update in progress, each with a checkpoint.
    processes: the processes that share the rows of each update.
    """

    def __init__(
        self, model: Any, students: Sequence[Student], asked: int, exact: bool = False, stop: Stop | None = None,
        processes: Processes | None = None,
    ):  # fmt: skip
        self.students, self.recipe = list(students), students[0].recipe
        if any(student.recipe != self.recipe for student in students):
            raise ValueError("students that train together have one recipe")
        self.stop, self.processes = stop or Stop(), processes or Processes()
        self.dtype, self.device = model.dtype, model.device
        first_adapters = [first_weights(model, self.recipe.lora, student.seed) for student in students]
        self.decoder = Decoder(model, self.recipe.lora.target_modules)
        self.adapters = Adapters(self.decoder.linears, self.recipe.lora, len(students), self.device)
        self.parameters, self.optimizer = self.make_optimizer()
        for index, student in enumerate(self.students):
            self.start_or_resume(index, student, first_adapters[index])
        self.prefix = shared_prefix_length([row for student in students for row in student.rows])
        self.may_shrink = not exact  # rows_at_once, when the GPU's memory runs out
        self.unread_losses: UnreadLosses | None = None
        self.computed_tokens = self.loss_tokens = 0
        self.update_starts: list[float] = []  # time.perf_counter() when each update began
        self.rows_at_once, why = self.choose_rows_at_once(asked, exact)
        self.facts = self.facts_of_setup(asked, why)
        self.graphs = self.make_graphs()

    @property
    def scale(self) -> float:
        """Of the adapters' outputs."""
        lora = self.recipe.lora
        return float(lora.lora_alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r))

    def make_optimizer(self) -> tuple[list[Any], Any]:
        """(each student's row of the adapters as a parameter, AdamW with a group for each).

        A parameter without a gradient is left as it is, so a student that has finished or diverged changes no more.
        """
        import torch

        parameters = [torch.nn.Parameter(row) for row in self.adapters.values.data]
        groups = [{"params": [parameter]} for parameter in parameters]
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        return parameters, torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)

    def start_or_resume(self, index: int, student: Student, first_adapter: Mapping[str, Any]) -> None:
        """Give a student its first weights, or the weights, moments and history of its checkpoint."""
        import torch

        if student.checkpoint is None:
            self.adapters.load(self.adapters.values.data[index], first_adapter)
            return
        state, moments = load_checkpoint(student.checkpoint, self.adapters, index)
        student.done = state["global_step"]
        student.history = [logs for logs in state["log_history"] if "loss" in logs]
        step = torch.tensor(float(student.done), device=self.device)
        self.optimizer.state[self.parameters[index]] = {"step": step, **moments}

    def choose_rows_at_once(self, asked: int, exact: bool) -> tuple[int, str]:
        """(how many rows go through the base model in one pass, why so many). The choice is printed."""
        effective, count = self.recipe.rows_an_update, len(self.students)
        own_rows = math.ceil(effective / self.processes.count)  # of each student, in this process
        at_once, why = asked, "--micro-batch exact"
        if not exact:
            rows = [row for student in self.students for row in student.rows]
            taken = self.adapters.values.numel() * (8 + 2 * self.dtype.itemsize)  # Adam's moments, copies and gradients
            at_once, why = as_many_as_fit(self.decoder.model, rows, own_rows, count, asked, taken)
        adapters = f" for each of {count} adapters" if count > 1 else ""
        shared = f", shared by {self.processes.count} processes" if self.processes.count > 1 else ""
        reason = f" ({why})" if at_once != asked else ""
        every = "all " if at_once == own_rows * count else ""
        say(f"each update: {effective} rows{adapters}{shared}; {every}{at_once} at once{reason}")
        return at_once, why

    def facts_of_setup(self, asked: int, why: str) -> dict[str, Any]:
        """What the manifests say about speed that is known before the first update. asked, why: of the rows at once."""
        compiled = ", compiled SwiGLU and rotary embedding" if self.device.type == "cuda" else ""
        return {
            "layers": f"no padding, joined LoRA linears, fused norms{compiled}",
            "attention": self.decoder.attention,
            "shared_prefix_tokens": self.prefix,
            "rows_at_once_asked": asked,
            "rows_at_once_why": why,
            "adapters_together": len(self.students),
            "processes": self.processes.count,
        }

    def make_graphs(self) -> CudaGraphs | None:
        """What records small passes; None without a GPU, and with attention whose sizes Python has to know."""
        if self.device.type != "cuda" or not self.decoder.attention.startswith("torch varlen"):
            return None
        weights = sum(layer.weight.numel() for layer in self.decoder.linears)
        token_bytes = bytes_per_token(self.decoder.model.config.get_text_config(), self.dtype.itemsize)
        return CudaGraphs(self.forward_backward, max_tokens_to_record(weights, token_bytes, free_memory(self.device)))

    # --- the loop ---

    def train(self, progress: Progress) -> None:
        """Train every student to its end, or until a signal arrives."""
        for student in self.students:
            if student.finished:  # it was stopped after its last checkpoint, before its final adapter was saved
                self.finish(student)
        while active := [index for index, student in enumerate(self.students) if student.trains]:
            self.update(active, progress)
            if self.should_stop():
                self.read_losses()
                for index in active:
                    self.check_weights(index)
                    if self.students[index].trains and not self.students[index].saves_now():
                        self.save(index)
                break
        self.read_losses()

    def update(self, active: Sequence[int], progress: Progress) -> None:
        """One update of the students that are still training, given by their indices."""
        import torch

        self.update_starts.append(time.perf_counter())
        losses = self.gradients({index: self.students[index].next_rows() for index in active})
        self.read_losses()  # of the update before: the GPU is busy with this one meanwhile
        norms = self.change_adapters(active)
        losses_and_norms = torch.stack([losses, norms]).to("cpu", non_blocking=True)
        self.unread_losses = UnreadLosses(active, losses_and_norms, self.record_event())
        progress.add(len(active))
        students = [self.students[index] for index in active]
        for student in students:
            student.done += 1
        # A log needs the losses, and a checkpoint or final adapter has to be one of a student that did not diverge.
        due = [student for student in students if student.saves_now() or student.logs_now() or student.finished]
        if due or self.device.type == "cpu":
            self.read_losses()
        if due and due[0].losses:
            name = f" ({due[0].name})" if len(self.students) > 1 else ""
            progress.note = f"loss {due[0].losses[-1]:.4f}{name}"
        for index, student in zip(active, students):
            if student.saves_now() or student.finished:
                self.check_weights(index)
            if not student.problem and student.saves_now():
                self.save(index)
            if not student.problem and student.finished:
                self.finish(student)

    def read_losses(self) -> None:
        """Read the losses of the last update, which waits until the GPU has made it; the students take note of them."""
        if self.unread_losses is None:
            return
        unread, self.unread_losses = self.unread_losses, None
        if unread.copied:
            unread.copied.synchronize()
        losses, norms = unread.losses_and_norms.tolist()
        for index in unread.active:
            student = self.students[index]
            if student.problem:  # found while its next update was already sent to the GPU
                continue
            student.note_loss(losses[index], norms[index])
            self.say_if_left_out(student)

    def check_weights(self, index: int) -> None:
        """Leave a student out if its last update has made a weight infinite or NaN: only the next loss would show it,
        after a checkpoint or the final adapter."""
        student = self.students[index]
        if not student.problem and not self.adapters.values.data[index].isfinite().all():
            student.note_divergence("adapter", math.nan)
            self.say_if_left_out(student)

    def say_if_left_out(self, student: Student) -> None:
        if student.problem and len(self.students) > 1:
            say(f"{student.name}: {student.problem}. It is left out; any others continue")

    def record_event(self) -> Any:
        """A CUDA event that comes after all work sent to the GPU so far; None without a GPU."""
        import torch

        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def should_stop(self) -> bool:
        """Whether a signal arrived in any process.

        All processes get the same answer: a signal that arrives while they ask each other counts after the next update.
        """
        arrived = self.processes.any(self.stop.signum is not None)
        if arrived:
            self.stop.signum = self.stop.signum or signal.SIGTERM
        return arrived

    def save(self, index: int) -> None:
        """Write a checkpoint of a student."""
        if not self.processes.first:
            return
        student = self.students[index]
        epoch = student.done / student.updates_an_epoch
        state = {"global_step": student.done, "epoch": epoch, "log_history": student.history}
        moments = self.optimizer.state[self.parameters[index]]
        checkpoint = save_checkpoint(student.folder, state, self.adapters, index, moments)
        student.on_save(checkpoint, epoch)

    def finish(self, student: Student) -> None:
        """Let a student that has made its last update save its final adapter."""
        if self.processes.first:
            student.on_finish()

    def save_adapter(self, index: int, folder: Path) -> None:
        """Write a student's adapter as PEFT does."""
        self.adapters.save(index, folder)

    # --- an update ---

    def gradients(self, rows_of: Mapping[int, Sequence[EncodedRow]]) -> Any:
        """Put the gradients of some students' updates into the adapters. Returns the losses of all, [students].

        rows_of: the rows of each student's whole update. This process computes its share of them.
        """
        import torch

        # of the whole update, in all processes and passes: the loss is a mean over these
        loss_tokens = {index: count_loss_tokens(rows) for index, rows in rows_of.items()}
        share_of = {index: self.share_with_loss(rows) for index, rows in rows_of.items()}
        share_of = {index: rows for index, rows in share_of.items() if rows}
        while True:
            self.adapters.values.grad.zero_()
            losses = torch.zeros(len(self.students), device=self.device)
            passes = list(self.split_into_passes(share_of))
            try:
                for rows_of_pass in passes:
                    indices = to_device(torch.tensor(list(rows_of_pass)), self.device)
                    losses.index_add_(0, indices, self.run_pass(rows_of_pass, loss_tokens))
                break
            except torch.OutOfMemoryError:
                if not (self.may_shrink or (self.graphs and self.graphs.recorded)):
                    raise
            self.use_less_memory(share_of)  # outside `except`, which keeps what the failed pass had computed
            torch.cuda.empty_cache()
        for rows_of_pass in passes:
            self.count_tokens(rows_of_pass)
        self.processes.sum([self.adapters.values.grad, losses])
        return losses

    def share_with_loss(self, rows: Sequence[EncodedRow]) -> list[EncodedRow]:
        """This process's share of a student's rows, without those that a loss_mask leaves no token to train on."""
        return [row for row in self.processes.share_of(rows) if count_loss_tokens([row])]

    def split_into_passes(
        self, rows_of: Mapping[int, Sequence[EncodedRow]]
    ) -> Iterator[Mapping[int, Sequence[EncodedRow]]]:
        """The rows of each pass, at most `rows_at_once`: the updates of several students, or a piece of one's."""
        longest_update = max(map(len, rows_of.values()), default=1)
        for some in batched(rows_of.items(), max(1, self.rows_at_once // longest_update)):
            if len(some) > 1:
                yield dict(some)
            else:
                index, rows = some[0]
                yield from ({index: piece} for piece in batched(rows, self.rows_at_once))

    def run_pass(self, rows_of: Mapping[int, Sequence[EncodedRow]], loss_tokens: Mapping[int, int]) -> Any:
        """Put the rows of one pass into a batch and run it, on a GPU as a CUDA graph if it is small enough.

        loss_tokens: of each student's whole update. Returns the losses of the pass's students.
        """
        tokens = sum(len(row["input_ids"]) for rows in rows_of.values() for row in rows)
        graphs = self.graphs if self.graphs and tokens <= self.graphs.max_tokens else None
        batch = flat_batch(
            list(rows_of.values()), self.prefix, [loss_tokens[index] for index in rows_of], list(rows_of),
            few_sizes=bool(graphs),
        )  # fmt: skip
        return graphs(batch, self.device) if graphs else self.forward_backward(batch.to(self.device))

    def forward_backward(self, batch: FlatBatch) -> Any:
        """Forward and backward pass of a batch: adds the gradients to those of the adapters, returns the losses."""
        import torch

        losses = self.decoder.losses(batch, self.adapters.pieces(batch.indices, self.dtype), self.scale)
        # not backward(): its sums cannot be recorded in a CUDA graph
        self.adapters.values.grad += torch.autograd.grad(losses.sum(), self.adapters.values)[0]
        return losses.detach()

    def change_adapters(self, active: Sequence[int]) -> Any:
        """Clip each student's gradient and make its optimizer step. Returns the norms before clipping, [students]."""
        import torch

        grad = self.adapters.values.grad.mul_(self.adapters.trained)  # the zeros between the blocks of B stay zero
        norms = torch.linalg.vector_norm(grad, dim=1)
        grad.mul_((LARGEST_NORM / (norms + 1e-6)).clamp(max=1)[:, None])
        for index, (parameter, group) in enumerate(zip(self.parameters, self.optimizer.param_groups)):
            parameter.grad = grad[index] if index in active else None
            group["lr"] = self.students[index].learning_rate(self.students[index].done)
        self.optimizer.step()
        return norms

    def use_less_memory(self, rows_of: Mapping[int, Sequence[EncodedRow]]) -> None:
        """After out of memory: no CUDA graphs; then half as many rows at once; with one row, gradient checkpointing;
        then UserError."""
        if self.graphs and self.graphs.recorded:
            self.graphs = None
            say("out of GPU memory: continuing without CUDA graphs")
            return
        before, self.rows_at_once = self.rows_at_once, max(1, self.rows_at_once // 2)
        if before > 1:
            say(f"out of GPU memory with {before} rows at once: continuing with {self.rows_at_once}")
        elif not self.decoder.recompute:
            self.decoder.recompute = True
            say("out of GPU memory with one row at once: continuing with gradient checkpointing (slower)")
        else:
            longest = max(len(row["input_ids"]) for rows in rows_of.values() for row in rows)
            raise UserError(
                f"out of GPU memory with one row of up to {longest} tokens, even with gradient checkpointing: lower"
                " --max-seq-length, or take a larger GPU or a smaller base model; checkpoints are kept"
            )

    # --- speed ---

    def count_tokens(self, rows_of: Mapping[int, Sequence[EncodedRow]]) -> None:
        """Count the tokens of a pass, for `useful_flops`. Each student's prefix is computed once."""
        for rows in rows_of.values():
            self.computed_tokens += sum(len(row["input_ids"]) for row in rows) - self.prefix * (len(rows) - 1)
            self.loss_tokens += count_loss_tokens(rows)

    def useful_flops(self) -> float:
        """The arithmetic that the updates so far needed at least in this process, by `USEFUL_FLOPS_FORMULA`."""
        frozen = sum(layer.weight.numel() for layer in self.decoder.linears)
        return 4.0 * (frozen * self.computed_tokens + self.decoder.head.numel() * self.loss_tokens)

    def speed_report(self, seconds: float) -> dict[str, Any]:
        """What the manifests of the students say about speed, beside tokens/s and peak memory.

        seconds: of the training so far. The seconds of one update are the median, which the first updates and
        checkpoints do not move (None if fewer than two updates were made).
        """
        update_seconds = [after - before for before, after in pairwise(self.update_starts)]
        flops = self.useful_flops() * self.processes.count
        return {
            **self.facts,
            "seconds_an_update": round(statistics.median(update_seconds), 4) if update_seconds else None,
            "rows_at_once": self.rows_at_once,
            "recompute": self.decoder.recompute,
            "useful_tflops": round(flops / max(seconds, 1e-9) / 1e12, 4),
            "useful_flops_formula": USEFUL_FLOPS_FORMULA,
        }
