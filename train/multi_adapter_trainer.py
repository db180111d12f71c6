"""How an update is made: one trainer for each adapter, and passes over one frozen base that serve all of them.

A trainer is TRL's, and each adapter's is what it would be alone: its data order, loss, clipping, optimizer, schedule,
checkpoints, log and resume. One thing is in common: in `training_step` every trainer hands over the rows of its update
and waits; when all wait, the rows of all go through the base as many at once as fit, and each trainer goes on with its
own loss and gradients. A group of one adapter is the usual run. Under torchrun every process makes its share of the
passes.
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
from train.fused_lora import Pass
from train.padding_free import (
    FAMILIES,
    EncodedRow,
    bytes_per_token,
    flat_batch,
    free_memory,
    knows,
    on_device,
    rows_that_fit,
    shared_prefix,
    speed_up,
)  # fmt: skip
from util.chat.chat_tokens import IGNORED
from util.cli import UserError
from util.signals import Stop
from util.terminal import say

T = TypeVar("T")
Work = tuple[int, EncodedRow]  # a row, and the number of the adapter that learns from it


# --- the trainer of one adapter ----------------------------------------------------------------------


class Rows:
    """The rows of one update, opaque to what walks through batches."""

    def __init__(self, rows: Sequence[EncodedRow]):
        self.rows = rows


def one_update(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    """Data collator: the rows as they are, and the labels by which the trainer counts the update's loss tokens."""
    import torch

    return {"rows": Rows(rows), "labels": torch.tensor([[IGNORED, *chain.from_iterable(r["labels"] for r in rows)]])}


@lru_cache(maxsize=1)
def update_trainer() -> Any:
    """The class of TRL trainers whose batch is an update; a `AdapterGroup` sets them to work."""
    from trl import SFTTrainer

    class UpdateTrainer(SFTTrainer):
        """One training step is one update, made in adapter_group.

        The loss is a sum over the update's tokens divided by their number, so that any split gives the same gradient.
        """

        adapter_group: AdapterGroup

        def __init__(self, **options: Any):
            super().__init__(data_collator=one_update, **options)

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            return self.adapter_group.update(self, inputs["rows"].rows, num_items_in_batch)

        def one_pass(self, model: Any, batch: dict[str, Any], items: Any) -> None:
            """TRL's training step: forward and backward pass."""
            super().training_step(model, batch, items)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """The loss of each adapter whose tokens are in the batch, as TRL computes it; returns their sum."""
            of_tokens = inputs.pop("adapters", None)
            if of_tokens is None:
                loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
                return self.adapter_group.took(self, loss)
            outputs, total = self.adapter_group.forward(model, inputs, of_tokens), 0.0
            for place, (trainer, items) in enumerate(self.adapter_group.present()):
                own = (of_tokens == place)[None]
                only = partial(outputs_of, outputs, own[:, 1:])
                loss = super(UpdateTrainer, trainer).compute_loss(only, {"attention_mask": own}, False, items)
                total = total + self.adapter_group.took(trainer, loss)
            return total

        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 0  # useful_flops counts them

    return UpdateTrainer


def spare_walks(model: Any, trained: Sequence[Any]) -> None:
    """Spare the trainer three walks an update through thousands of modules, in which a fast GPU has nothing to do: the
    model is in training mode already, and no parameters but the trained ones have gradients to clip and to clear.
    For good: after training the model is only saved, by state dict and `named_parameters`."""
    model.train = lambda mode=True: model
    model.parameters = lambda recurse=True: iter(trained)


def outputs_of(outputs: Any, own: Any, **_asked: Any) -> Any:
    """What the loss head said of some tokens alone, in the place of a model's answer."""
    return type(outputs)(**{name: value * own for name, value in outputs.items() if value is not None and value.ndim})


# --- all adapters ------------------------------------------------------------------------------------


class AdapterGroup:
    """Trainers, each of an adapter of its own, that make their updates in common.

    Each trainer runs in a thread of its own, one at a time. They need not start or end at the same update: a pass
    serves those that are still training.

    rows: all that they train on, as token ids: how many fit, and what they all begin with.
    asked: rows known to fit at once.
    exact: neither more nor fewer.
    stop: asks all trainers to stop after the update in flight.
    processes: those that share the rows of each update.
    """

    def __init__(
        self, trainers: Sequence[Any], rows: Sequence[EncodedRow], asked: int, exact: bool, stop: Stop | None = None,
        processes: Processes | None = None,
    ):  # fmt: skip
        self.trainers, self.training = list(trainers), set(trainers)
        self.turn, self.error = threading.Condition(), None  # type: tuple[threading.Condition, BaseException | None]
        self.waiting: dict[Any, tuple[Sequence[EncodedRow], Any]] = {}
        self.losses: dict[Any, Any] = {}
        self.now, self.stop, self.stopping = Pass(), stop or Stop(), False
        self.processes = processes or Processes()
        self.may_shrink, self.recompute = not exact, False
        self.computed_tokens = self.loss_tokens = 0
        self.begun: list[float] = []  # when each update began
        self.trained = {trainer: [p for p in trainer.model.parameters() if p.requires_grad] for trainer in trainers}
        for trainer in trainers:
            trainer.adapter_group = self
            spare_walks(trainer.model.train(), self.trained[trainer])
        self.prefix = shared_prefix(rows) if knows(self.base) else 0
        self.facts = self.take_path(rows, asked, exact)

    @property
    def base(self) -> Any:
        """The base model that all passes go through: the first trainer's."""
        return self.trainers[0].model.get_base_model()

    def take_path(self, rows: Sequence[EncodedRow], asked: int, exact: bool) -> dict[str, Any]:
        """Choose how rows go through the base; returns what was chosen, and why, for the manifest."""
        if knows(self.base):
            facts: dict[str, Any] = speed_up([trainer.model for trainer in self.trainers], self.now)
            self.collate: Callable[[Sequence[EncodedRow], Sequence[int] | None], Any] = self.flat
        else:
            from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

            facts = {"layers": f"TRL's own (fast ones exist for {', '.join(FAMILIES)})"}
            padded = DataCollatorForLanguageModeling(self.trainers[0].processing_class.pad_token_id)
            self.collate = lambda rows, adapters: padded(rows)
        effective = self.trainers[0].args.per_device_train_batch_size
        self.rows_at_once, why = asked, "--micro-batch exact"
        if not exact:
            share = math.ceil(effective / self.processes.count)
            self.rows_at_once, why = choose_rows(self.base, rows, share * len(self.trainers), asked)
        many = f"{len(self.trainers)} adapters x " if len(self.trainers) > 1 else ""
        shared = f" over {self.processes.count} processes" if self.processes.count > 1 else ""
        say(
            f"each update of {many}{effective} rows{shared}: {self.rows_at_once} at once"
            f" ({why}); {facts['layers']}; attention: {facts.get('attention', 'as loaded')};"
            f" first {self.prefix} tokens, the same in all rows, computed once"
            f"{' for each adapter' if len(self.trainers) > 1 else ''}"
        )
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
        """Train all adapters, each from its checkpoint if it has one; returns the trainers' outcomes."""
        outcomes = self.run_trainers(checkpoints)
        self.computed_tokens, self.loss_tokens = self.totals(self.computed_tokens, self.loss_tokens)
        return outcomes

    def run_trainers(self, checkpoints: Sequence[str | None]) -> list[Any]:
        jobs = [partial(trainer.train, resume_from_checkpoint=at) for trainer, at in zip(self.trainers, checkpoints)]
        if len(jobs) == 1:
            return [jobs[0]()]
        with ThreadPoolExecutor(len(jobs)) as threads:
            futures = [threads.submit(self.take_part, trainer, job) for trainer, job in zip(self.trainers, jobs)]
            try:
                wait(futures)
            except BaseException as error:  # Ctrl-C
                self.error = error
                raise
        if self.error:
            raise self.error
        return [future.result() for future in futures]

    def take_part(self, trainer: Any, job: Callable[[], T]) -> T | None:
        """Run a trainer in this thread whenever it is its turn; the first error ends the adapter_group."""
        with self.turn:
            try:
                return job()
            except BaseException as error:
                self.error = self.error or error
                return None
            finally:
                self.training.discard(trainer)
                self.go_on()

    def update(self, trainer: Any, rows: Sequence[EncodedRow], items: Any) -> Any:
        """Gradients of one update into the trainer's adapter, once every trainer has come this far; returns the loss.

        items: the number of loss tokens in `rows`.
        """
        with self.turn:
            self.waiting[trainer] = rows, items
            self.go_on()
            self.turn.wait_for(lambda: self.error or trainer not in self.waiting)
            if self.error:
                raise self.error
            return self.losses.pop(trainer)

    def go_on(self) -> None:
        """Make the updates if nobody is left to wait for."""
        if not self.error and self.waiting and len(self.waiting) == len(self.training):
            try:
                self.make_updates()
            except BaseException as error:
                self.error = error
            self.waiting.clear()
        self.turn.notify_all()

    # --- passes ---

    def make_updates(self) -> None:
        """Losses and gradients of all updates that wait, in as few passes as memory allows."""
        import torch

        from util.inference.local_model import batched

        work = [
            (number, row)
            for number, trainer in enumerate(self.trainers)
            if trainer in self.waiting
            for row in self.processes.own(self.waiting[trainer][0])
            if any(label != IGNORED for label in row["labels"])  # a mask may leave a row nothing to learn
        ]
        self.begun.append(time.perf_counter())
        self.now.renew()
        while True:
            self.losses = {trainer: torch.zeros((), device=trainer.args.device) for trainer in self.waiting}
            parts = list(batched(work, self.rows_at_once))
            try:
                for part in parts:
                    self.one_pass(part)
                break
            except torch.OutOfMemoryError:
                if not self.may_shrink:
                    raise
            self.shrink(work)  # outside of `except`, which holds on to what the failed pass had computed
            for trainer in self.waiting:
                trainer.model.zero_grad()
            torch.cuda.empty_cache()
        for part in parts:
            self.count(part)
        self.exchange()

    def exchange(self) -> None:
        """Sum gradients and losses over the processes, and stop all if one was asked to."""
        import torch

        summed = []
        for trainer in self.trainers:
            if trainer in self.waiting:
                for parameter in self.trained[trainer]:
                    if parameter.grad is None:  # no row with a trained token was this process's
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

    def one_pass(self, part: Sequence[Work]) -> None:
        """Forward and backward pass over some rows, each with its own adapter."""
        self.now.begin(sorted({number for number, _ in part}))
        place = {number: i for i, number in enumerate(self.now.adapters)}
        adapters = [place[number] for number, _ in part] if len(place) > 1 else None
        trainer, items = self.present()[0]
        trainer.one_pass(self.trainers[0].model_wrapped, self.collate([row for _, row in part], adapters), items)

    def present(self) -> list[tuple[Any, Any]]:
        """The trainers whose rows are in this pass, and the loss tokens of their updates."""
        return [(trainer, self.waiting[trainer][1]) for trainer in (self.trainers[i] for i in self.now.adapters)]

    def forward(self, model: Any, inputs: dict[str, Any], of_tokens: Any) -> Any:
        """What TRL's loss head says of every token, each seen through its own adapter."""
        self.now.shared(of_tokens, self.base.dtype)
        return model(**inputs, use_cache=False, fused_lm_head=True)

    def took(self, trainer: Any, loss: Any) -> Any:
        """Count a loss towards its trainer's update, and stop when it is no number."""
        value = loss.item()  # TRL has waited for the forward pass already
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} at update {trainer.state.global_step + 1}; the last checkpoint is kept. Lower"
                f" --learning-rate (now {trainer.args.learning_rate:g}) or look at the rows"
            )
        self.losses[trainer] += loss.detach()
        return loss

    def count(self, part: Sequence[Work]) -> None:
        rows = [row for _, row in part]
        fronts = len({number for number, _ in part})
        self.computed_tokens += sum(len(row["input_ids"]) for row in rows) - self.prefix * (len(rows) - fronts)
        self.loss_tokens += sum(len(row["labels"]) - row["labels"].count(IGNORED) for row in rows)

    def shrink(self, work: Sequence[Work]) -> None:
        """Ask for less memory: half the rows at once; with one row, recompute."""
        before, self.rows_at_once = self.rows_at_once, max(1, self.rows_at_once // 2)
        if before > 1:
            say(f"out of GPU memory with {before} rows at once: going on with {self.rows_at_once}")
        elif not self.recompute:
            self.base.gradient_checkpointing_enable({"use_reentrant": False})
            self.recompute = True
            say("out of GPU memory with one row at once: going on with recompute (gradient checkpointing)")
        else:
            longest = max(len(row["input_ids"]) for _, row in work)
            raise UserError(
                f"out of GPU memory with one row of up to {longest} tokens, even with recompute: lower"
                " --max-seq-length, or take a larger GPU or a smaller base model; checkpoints are kept"
            )


# --- how many at once --------------------------------------------------------------------------------


def choose_rows(model: Any, rows: Sequence[EncodedRow], effective: int, asked: int) -> tuple[int, str]:
    """How many of an update's `effective` rows go at once, and why."""
    fitting, free = room(model, rows, effective)
    if fitting <= asked:
        return asked, f"{asked} asked, room for {fitting} by an estimate for {free / 2**30:.0f} GiB"
    return fitting, f"{asked} asked, room for {fitting} in {free / 2**30:.0f} GiB; --micro-batch exact keeps {asked}"


def room(model: Any, rows: Sequence[EncodedRow], effective: int) -> tuple[int, int]:
    """How many of an update's `effective` rows fit at once by estimate, and in how many free bytes."""
    lengths = [len(row["input_ids"]) for row in rows]
    prefix = shared_prefix(rows) if knows(model) else 0
    each = bytes_per_token(model.config.get_text_config(), model.dtype.itemsize) * (1 if knows(model) else 1.5)
    free = free_memory(model.device)
    return rows_that_fit(lengths, prefix, effective, each, free), free


def why_apart(model: Any, rows: Sequence[EncodedRow], effective: int, adapters: int, exact: bool) -> str | None:
    """Why several adapters, with `effective` rows an update each, go one after the other; None if they go together."""
    if exact:
        return "--micro-batch exact"
    if not knows(model):
        return f"the fast path knows {', '.join(FAMILIES)}"
    fitting, free = room(model, rows, effective * adapters)
    if fitting <= effective:
        return f"room for {fitting} rows at once in {free / 2**30:.0f} GiB, an update has {effective}"
    return None


def same_weights(model: Any) -> Any:
    """A model for one adapter more: its weights are the very tensors of `model`."""
    weights = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


# --- what it came to ---------------------------------------------------------------------------------

FLOPS = (
    "4 x linear parameters of the frozen layers a token computed + 4 x output head a loss token:"
    " forward and input gradient; LoRA, attention, recompute and padding not counted"
)


def useful_flops(adapter_group: AdapterGroup) -> float:
    """Arithmetic that the updates so far could not do without, by the formula `FLOPS`."""
    model = adapter_group.base
    head = model.get_output_embeddings().weight
    outer = {id(head), id(model.get_input_embeddings().weight)}
    layers = sum(p.numel() for p in model.parameters() if p.ndim == 2 and not p.requires_grad and id(p) not in outer)
    return 4.0 * (layers * adapter_group.computed_tokens + head.numel() * adapter_group.loss_tokens)


def speed_report(adapter_group: AdapterGroup, seconds: float) -> dict[str, Any]:
    """What the manifests of the adapter_group's adapters say about speed, beside tokens/s and peak memory.

    `seconds` are the whole training's; an update's are the median, which the first ones and checkpoints do not move
    (None where fewer than two updates were left to make).
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
