"""Trains several LoRA adapters at once over one frozen base model: one TRL trainer per adapter, shared passes.

Each adapter is the one that it would be alone: data order, loss, clipping, optimizer, schedule, checkpoints, log and
resume are those of its own TRL trainer. What the trainers share are the passes through the base model. One update:

1. Each trainer runs in a thread. It takes the rows of its next update (`training_step`) and waits.
2. When all trainers wait, the last one puts their rows together and splits them into parts that fit in memory
   (`make_updates`).
3. Each part goes forward and backward through the base model once (`run_pass`). Every token uses the adapter of its
   row. TRL's loss is computed for each adapter on its own tokens, and divided by the loss tokens of its whole update,
   so that any split gives the same gradients.
4. Under torchrun, gradients and losses are summed over the processes (`sum_over_processes`).
5. Every trainer continues with its own loss and gradients: clip, optimizer step, log, checkpoint.

A group of one adapter is the usual run, without threads.
"""

from __future__ import annotations

import copy
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
from itertools import chain, pairwise
from typing import Any, TypeVar

from train.data_parallel import Processes
from train.fused_lora import PassState
from train.padding_free import (
    FAMILIES,
    EncodedRow,
    flat_batch,
    has_fast_path,
    on_device,
    shared_prefix,
    use_fast_path,
)  # fmt: skip
from train.rows_at_once import choose_rows_at_once
from util.chat.chat_tokens import IGNORED
from util.cli import UserError
from util.signals import Stop
from util.terminal import say

T = TypeVar("T")
Work = tuple[int, EncodedRow]  # the number of an adapter, and a row that it learns from


# --- the trainer of one adapter ----------------------------------------------------------------------


class UpdateRows:
    """The rows of one update, in a class of its own so that no trainer code looks inside."""

    def __init__(self, rows: Sequence[EncodedRow]):
        self.rows = rows


def collate_update(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """Data collator: the rows unchanged, and the labels from which the trainer counts the update's loss tokens."""
    import torch

    labels = [IGNORED, *chain.from_iterable(row["labels"] for row in rows)]
    return {"rows": UpdateRows(rows), "labels": torch.tensor([labels])}


@lru_cache(maxsize=1)
def update_trainer_class() -> Any:
    """The trainer class: TRL's SFTTrainer, with a whole update as its batch. An `AdapterGroup` makes the updates."""
    from trl import SFTTrainer

    class UpdateTrainer(SFTTrainer):
        adapter_group: AdapterGroup

        def __init__(self, **options: Any):
            super().__init__(data_collator=collate_update, **options)

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            return self.adapter_group.update(self, inputs["rows"].rows, num_items_in_batch)

        def forward_backward(self, model: Any, batch: dict[str, Any], items: Any) -> None:
            """TRL's own training step: forward and backward pass."""
            super().training_step(model, batch, items)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """TRL's loss of each adapter that has tokens in the batch; returns their sum."""
            adapter_of_token = inputs.pop("adapters", None)
            if adapter_of_token is None:
                loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
                return self.adapter_group.add_loss(self, loss)
            outputs, total = self.adapter_group.forward(model, inputs, adapter_of_token), 0.0
            for place, (trainer, items) in enumerate(self.adapter_group.in_this_pass()):
                own = (adapter_of_token == place)[None]
                own_outputs = partial(masked_outputs, outputs, own[:, 1:])
                loss = super(UpdateTrainer, trainer).compute_loss(own_outputs, {"attention_mask": own}, False, items)
                total = total + self.adapter_group.add_loss(trainer, loss)
            return total

        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 0  # useful_flops counts them

    return UpdateTrainer


def skip_module_walks(model: Any, trained: Sequence[Any]) -> None:
    """Save the trainer three walks through thousands of modules in each update, during which a fast GPU waits.

    The model is in training mode already, and only the trained parameters have gradients to clip and to clear. This
    stays in effect: after training the model is only saved, which uses state dict and `named_parameters`.
    """
    model.train = lambda mode=True: model
    model.parameters = lambda recurse=True: iter(trained)


def masked_outputs(outputs: Any, own: Any, **_options: Any) -> Any:
    """In place of a model: the loss head's outputs, with zeros for the tokens of other adapters."""
    return type(outputs)(**{name: value * own for name, value in outputs.items() if value is not None and value.ndim})


def share_weights(model: Any) -> Any:
    """A copy of the model for one more adapter; its weights are the same tensors, not copies."""
    weights = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


# --- all adapters ------------------------------------------------------------------------------------


class AdapterGroup:
    """Trainers, each with its own adapter, whose updates go through the base model together.

    Each trainer runs in its own thread, one at a time. They need not start or end at the same update: a pass serves
    the trainers that are still training.

    rows: all rows to train on, as token ids, to estimate how many fit and to find their shared prefix.
    asked: rows that the user knows to fit at once.
    exact: take that number, neither more nor fewer.
    stop: when a signal arrived, all trainers stop after the update in progress.
    processes: the processes that share the rows of each update.
    """

    def __init__(
        self, trainers: Sequence[Any], rows: Sequence[EncodedRow], asked: int, exact: bool, stop: Stop | None = None,
        processes: Processes | None = None,
    ):  # fmt: skip
        self.trainers, self.training = list(trainers), set(trainers)
        self.turn, self.error = threading.Condition(), None  # type: tuple[threading.Condition, BaseException | None]
        self.waiting: dict[Any, tuple[Sequence[EncodedRow], Any]] = {}  # trainer: rows and loss tokens of its update
        self.losses: dict[Any, Any] = {}
        self.pass_state, self.stop, self.stopping = PassState(), stop or Stop(), False
        self.processes = processes or Processes()
        self.may_shrink, self.recompute = not exact, False
        self.computed_tokens = self.loss_tokens = 0
        self.begun: list[float] = []  # when each update began
        self.trained = {trainer: [p for p in trainer.model.parameters() if p.requires_grad] for trainer in trainers}
        for trainer in trainers:
            trainer.adapter_group = self
            skip_module_walks(trainer.model.train(), self.trained[trainer])
        self.prefix = shared_prefix(rows) if has_fast_path(self.base) else 0
        self.facts = self.choose_path(rows, asked, exact)

    @property
    def base(self) -> Any:
        """The base model that all passes go through: the first trainer's."""
        return self.trainers[0].model.get_base_model()

    def choose_path(self, rows: Sequence[EncodedRow], asked: int, exact: bool) -> dict[str, Any]:
        """Choose how rows go through the base model; returns what was chosen, and why, for the manifest."""
        if has_fast_path(self.base):
            facts: dict[str, Any] = use_fast_path([trainer.model for trainer in self.trainers], self.pass_state)
            self.collate: Callable[[Sequence[EncodedRow], Sequence[int] | None], Any] = self.flat
        else:
            from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

            facts = {"layers": f"TRL's own (fast ones exist for {', '.join(FAMILIES)})"}
            padded = DataCollatorForLanguageModeling(self.trainers[0].processing_class.pad_token_id)
            self.collate = lambda rows, adapters: padded(rows)
            say(f"layers: {facts['layers']}")
        effective = self.trainers[0].args.per_device_train_batch_size
        most = math.ceil(effective / self.processes.count) * len(self.trainers)
        self.rows_at_once, why = asked, "--micro-batch exact"
        if not exact:
            self.rows_at_once, why = choose_rows_at_once(self.base, rows, most, asked)
        adapters = f" for each of {len(self.trainers)} adapters" if len(self.trainers) > 1 else ""
        shared = f", shared by {self.processes.count} processes" if self.processes.count > 1 else ""
        reason = f" ({why})" if self.rows_at_once != asked else ""
        every = "all " if self.rows_at_once == most else ""
        say(f"each update: {effective} rows{adapters}{shared}; {every}{self.rows_at_once} at once{reason}")
        return {
            **facts,
            "shared_prefix_tokens": self.prefix,
            "rows_at_once_asked": asked,
            "rows_at_once_why": why,
            "adapters_together": len(self.trainers),
            "processes": self.processes.count,
        }

    def flat(self, rows: Sequence[EncodedRow], adapters: Sequence[int] | None) -> dict[str, Any]:
        return on_device(flat_batch(rows, self.prefix, adapters), self.base.device)

    # --- threads ---

    def train(self, checkpoints: Sequence[str | None]) -> list[Any]:
        """Train all adapters, each from its checkpoint if it has one; returns what each trainer's `train` returns."""
        outcomes = self.run_trainers(checkpoints)
        self.computed_tokens, self.loss_tokens = self.totals(self.computed_tokens, self.loss_tokens)
        return outcomes

    def run_trainers(self, checkpoints: Sequence[str | None]) -> list[Any]:
        jobs = [partial(trainer.train, resume_from_checkpoint=at) for trainer, at in zip(self.trainers, checkpoints)]
        if len(jobs) == 1:
            return [jobs[0]()]
        with ThreadPoolExecutor(len(jobs)) as threads:
            futures = [threads.submit(self.run_in_turn, trainer, job) for trainer, job in zip(self.trainers, jobs)]
            try:
                wait(futures)
            except BaseException as error:  # Ctrl-C
                self.error = error
                raise
        if self.error:
            raise self.error
        return [future.result() for future in futures]

    def run_in_turn(self, trainer: Any, job: Callable[[], T]) -> T | None:
        """Run a trainer in this thread whenever it has the turn. The first error ends the whole group."""
        with self.turn:
            try:
                return job()
            except BaseException as error:
                self.error = self.error or error
                return None
            finally:
                self.training.discard(trainer)
                self.update_if_all_wait()

    def update(self, trainer: Any, rows: Sequence[EncodedRow], items: Any) -> Any:
        """Wait until all trainers have come this far, and put the update's gradients into the trainer's adapter.

        items: the number of loss tokens in `rows`. Returns the loss.
        """
        with self.turn:
            self.waiting[trainer] = rows, items
            self.update_if_all_wait()
            self.turn.wait_for(lambda: self.error or trainer not in self.waiting)
            if self.error:
                raise self.error
            return self.losses.pop(trainer)

    def update_if_all_wait(self) -> None:
        if not self.error and self.waiting and len(self.waiting) == len(self.training):
            try:
                self.make_updates()
            except BaseException as error:
                self.error = error
            self.waiting.clear()
        self.turn.notify_all()

    # --- passes ---

    def make_updates(self) -> None:
        """Losses and gradients of all waiting updates, in as few passes as memory allows."""
        import torch

        from util.batches import batched

        work = [
            (number, row)
            for number, trainer in enumerate(self.trainers)
            if trainer in self.waiting
            for row in self.processes.share_of(self.waiting[trainer][0])
            if any(label != IGNORED for label in row["labels"])  # a loss_mask may leave a row nothing to learn
        ]
        self.begun.append(time.perf_counter())
        self.pass_state.refresh_copies()
        while True:
            self.losses = {trainer: torch.zeros((), device=trainer.args.device) for trainer in self.waiting}
            parts = list(batched(work, self.rows_at_once))
            try:
                for part in parts:
                    self.run_pass(part)
                break
            except torch.OutOfMemoryError:
                if not self.may_shrink:
                    raise
            self.use_less_memory(work)  # outside `except`, which keeps what the failed pass had computed
            for trainer in self.waiting:
                trainer.model.zero_grad()
            torch.cuda.empty_cache()
        for part in parts:
            self.count_tokens(part)
        self.sum_over_processes()

    def sum_over_processes(self) -> None:
        """Sum gradients and losses over the processes, and stop all processes if one was asked to stop."""
        import torch

        summed = []
        for trainer in self.trainers:
            if trainer in self.waiting:
                for parameter in self.trained[trainer]:
                    if parameter.grad is None:  # this process had no row with a trained token
                        parameter.grad = torch.zeros_like(parameter)
                summed += [*(parameter.grad for parameter in self.trained[trainer]), self.losses[trainer]]
        if self.processes.count > 1:
            self.processes.sum(summed)
            if self.processes.any(self.stop.signum is not None):
                self.stop.signum = self.stop.signum or signal.SIGTERM
        self.stopping = self.stop.signum is not None

    def totals(self, *numbers: int) -> list[int]:
        """Sums over the processes."""
        import torch

        total = torch.tensor(numbers, dtype=torch.float64, device=self.base.device)
        self.processes.sum([total])
        return [int(number) for number in total]

    def run_pass(self, part: Sequence[Work]) -> None:
        """Forward and backward pass over some rows, each with its own adapter."""
        self.pass_state.use(sorted({number for number, _ in part}))
        place = {number: i for i, number in enumerate(self.pass_state.adapters)}
        adapters = [place[number] for number, _ in part] if len(place) > 1 else None
        trainer, items = self.in_this_pass()[0]
        batch = self.collate([row for _, row in part], adapters)
        trainer.forward_backward(self.trainers[0].model_wrapped, batch, items)

    def in_this_pass(self) -> list[tuple[Any, Any]]:
        """The trainers whose rows are in the current pass, each with the number of loss tokens of its update."""
        return [(trainer, self.waiting[trainer][1]) for trainer in (self.trainers[i] for i in self.pass_state.adapters)]

    def forward(self, model: Any, inputs: dict[str, Any], adapter_of_token: Any) -> Any:
        """The outputs of TRL's loss head for every token, each computed with its own adapter."""
        self.pass_state.assign_tokens(adapter_of_token, self.base.dtype)
        return model(**inputs, use_cache=False, fused_lm_head=True)

    def add_loss(self, trainer: Any, loss: Any) -> Any:
        """Add a pass's loss to its trainer's update; UserError if it is not a finite number."""
        value = loss.item()  # TRL has waited for the forward pass already
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} at update {trainer.state.global_step + 1}; the last checkpoint is kept. Lower"
                f" --learning-rate (now {trainer.args.learning_rate:g}) or look at the rows"
            )
        self.losses[trainer] += loss.detach()
        return loss

    def count_tokens(self, part: Sequence[Work]) -> None:
        rows = [row for _, row in part]
        prefixes = len({number for number, _ in part})
        self.computed_tokens += sum(len(row["input_ids"]) for row in rows) - self.prefix * (len(rows) - prefixes)
        self.loss_tokens += sum(len(row["labels"]) - row["labels"].count(IGNORED) for row in rows)

    def use_less_memory(self, work: Sequence[Work]) -> None:
        """After out of memory: half as many rows at once; with one row, gradient checkpointing; then UserError."""
        before, self.rows_at_once = self.rows_at_once, max(1, self.rows_at_once // 2)
        if before > 1:
            say(f"out of GPU memory with {before} rows at once: continuing with {self.rows_at_once}")
        elif not self.recompute:
            self.base.gradient_checkpointing_enable({"use_reentrant": False})
            self.recompute = True
            say("out of GPU memory with one row at once: continuing with gradient checkpointing (slower)")
        else:
            longest = max(len(row["input_ids"]) for _, row in work)
            raise UserError(
                f"out of GPU memory with one row of up to {longest} tokens, even with gradient checkpointing: lower"
                " --max-seq-length, or take a larger GPU or a smaller base model; checkpoints are kept"
            )


# --- speed -------------------------------------------------------------------------------------------

FLOPS = (
    "4 x linear parameters of the frozen layers a token computed + 4 x output head a loss token:"
    " forward and input gradient; LoRA, attention, recompute and padding not counted"
)


def useful_flops(adapter_group: AdapterGroup) -> float:
    """The arithmetic that the updates so far needed at least, by the formula `FLOPS`."""
    model = adapter_group.base
    head = model.get_output_embeddings().weight
    outer = {id(head), id(model.get_input_embeddings().weight)}
    layers = sum(p.numel() for p in model.parameters() if p.ndim == 2 and not p.requires_grad and id(p) not in outer)
    return 4.0 * (layers * adapter_group.computed_tokens + head.numel() * adapter_group.loss_tokens)


def speed_report(adapter_group: AdapterGroup, seconds: float) -> dict[str, Any]:
    """What the manifests of the group's adapters say about speed, beside tokens/s and peak memory.

    seconds: of the whole training. The seconds of one update are the median, which the first updates and checkpoints
    do not move (None if fewer than two updates were made).
    """
    apart = [after - before for before, after in pairwise(adapter_group.begun)]
    return {
        **adapter_group.facts,
        "seconds_an_update": round(statistics.median(apart), 4) if apart else None,
        "rows_at_once": adapter_group.rows_at_once,
        "recompute": adapter_group.recompute,
        "useful_tflops": round(useful_flops(adapter_group) / max(seconds, 1e-9) / 1e12, 4),
        "useful_flops_formula": FLOPS,
    }
