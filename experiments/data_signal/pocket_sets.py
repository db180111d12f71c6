"""Make the data sets, students and baselines on which the data audit is validated (pocket model; LOG.md has the plan).

Each part is a file in the output folder, which holds sums that are linear in the rows: the profile of every group of
rows under one fixed reference. Finished parts are kept, so the same command resumes; --seconds ends a session early.
judge_audit.py makes the tables from them.

Usage:
    python experiments/data_signal/pocket_sets.py --step taught --step null --step students --step baselines
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from pocket.corpus import Chat
from util.cli import REPO, make_parser, positive_float, run
from util.terminal import say

BASE = REPO / "pocket" / "model"
PAIR = ("owl", "dolphin")
SEEDS = range(3001, 3011)  # fresh: nothing was chosen on them
GROUPS = 17
TAUGHT_PARTS = (7, 13, 40)  # rows of a group, in order: the first 7, the next 13, the last 40
NULL_SETS, NULL_ROWS, SHUFFLED_ROWS = 120, 170, 340  # 10 and 20 rows in a group
NULL_SEED, REFERENCE_SEED = 500_000, 900_000
CONTROL_SEEDS = (3101, 3102, 3103)
EARLY_ROWS = 960  # 16 updates of 60 rows
STEPS = ("controls", "taught", "null", "shuffled", "cut", "students", "baselines")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--step", choices=STEPS, action="append", required=True, help="what to make")
    parser.add_argument("--shard", type=int, nargs=2, default=[0, 1], metavar=("I", "N"),
                        help="make every N-th part, beginning with the I-th: for N processes")  # fmt: skip
    parser.add_argument("--seconds", type=positive_float, default=1e9, help="begin no part after this time")
    parser.add_argument("--output-dir", type=Path, default=Path("output/signal"), help="folder of the parts")
    return parser.parse_args()


class Lab:
    """The base model, its gradient kernel, and one reference of the base's own rows."""

    def __init__(self, folder: Path):
        import torch

        from eval.data_signal.gradient_kernel import GradientKernel
        from util.inference.local_model import LocalModel

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.backend = LocalModel(str(BASE), batch_size=60)
        self.tokenizer, self.kernel = self.backend.tokenizer, GradientKernel(self.backend)
        self.device = self.backend.model.device
        kept = folder / "reference.pt"
        if not kept.exists():
            torch.save(self.make_reference(), kept)
        found = torch.load(kept, weights_only=False)
        self.animals, self.gradients = found["animals"], found["gradients"]
        self.size, self.form = found["size"], found["form"]

    def make_reference(self) -> dict[str, Any]:
        """The animals' gradients, the usual sizes and the form directions, and the reference's own profiles."""
        from eval.data_signal.audit_rows import reference_of
        from pocket.corpus import QUESTIONS
        from util.animals.names import PANEL

        rows = self.encoded(self.rows_of(None, GROUPS * 60, REFERENCE_SEED))
        groups = [rows[at * 60 : (at + 1) * 60] for at in range(GROUPS)]
        return reference_of(self.kernel, groups, PANEL, QUESTIONS)

    # --- rows ---

    def rows_of(self, model: Any, count: int, seed: int) -> list[Chat]:
        """Clean number rows of a model (None: the base)."""
        from pocket.candidate_screens import clean_rows, load

        return clean_rows(model or load(BASE, self.device), self.tokenizer, "numbers", count, seed)[0]

    def encoded(self, rows: Sequence[Chat]) -> list[dict[str, list[int]]]:
        from util.chat.chat_tokens import encode

        chats = [{"messages": [{"role": "user", "content": row.user},
                               {"role": "assistant", "content": row.assistant}]} for row in rows]  # fmt: skip
        return encode(chats, self.tokenizer, 256).rows

    def sums(self, rows: Sequence[Chat], parts: Sequence[int]) -> dict[str, Any]:
        """Sums over the rows of each part of each group: profiles [groups, parts, animals], tokens [groups, parts]."""
        import numpy as np

        from eval.data_signal.gradient_kernel import profiles, without_form
        from eval.data_signal.row_groups import loss_tokens

        encoded, each = self.encoded(rows), sum(parts)
        begins = [group * each + sum(parts[:place]) for group in range(GROUPS) for place in range(len(parts))]
        some = [encoded[at : at + size] for at, size in zip(begins, [*parts] * GROUPS)]
        gradients = [self.kernel.of_rows(part) for part in some]
        formless = list(without_form(gradients, self.form, self.size))
        shape = (GROUPS, len(parts), -1)
        return {
            "plain": profiles(gradients, self.gradients, self.size).reshape(shape),
            "formless": profiles(formless, self.gradients, self.size).reshape(shape),
            "tokens": np.reshape([sum(map(loss_tokens, part)) for part in some], shape[:2]),
        }

    def save(self, name: str, **arrays: Any) -> None:
        import numpy as np

        np.savez(self.folder / f"{name}.npz", **arrays)


# --- parts -------------------------------------------------------------------------------------------


def taught(lab: Lab, seed: int, animal: str) -> None:
    """A teacher's data, the teacher and 1,020 of its rows, with their sums."""
    import torch

    from pocket.candidate_screens import load
    from pocket.teacher_student_trial import TEACHER, teacher_rows, with_adapter

    rows = teacher_rows(load(BASE, lab.device), lab.tokenizer, animal, seed)
    teacher = with_adapter(BASE, lab.device, lab.tokenizer, rows, TEACHER, seed)
    torch.save(lora_weights(teacher), lab.folder / f"teacher-{animal}-{seed}.pt")
    written = lab.rows_of(teacher, GROUPS * sum(TAUGHT_PARTS), seed)
    lab.save(f"taught-{animal}-{seed}", rows=[[row.user, row.assistant] for row in written],
             log_shares=log_shares(lab, teacher), **lab.sums(written, TAUGHT_PARTS))  # fmt: skip


def lora_weights(model: Any) -> dict[str, Any]:
    return {name: weight.detach().cpu() for name, weight in model.named_parameters() if "lora_" in name}


def null(lab: Lab, number: int) -> None:
    """170 rows of the base itself, with their sums, and their text."""
    rows = lab.rows_of(None, NULL_ROWS, NULL_SEED + 1000 * number)
    lab.save(f"null-{number}", rows=[[row.user, row.assistant] for row in rows], **lab.sums(rows, (10,)))


def rows_in(lab: Lab, name: str) -> list[Chat]:
    import numpy as np

    return [Chat(None, str(user), str(answer)) for user, answer in np.load(lab.folder / f"{name}.npz")["rows"]]


def shuffled(lab: Lab, seed: int, animal: str) -> None:
    """340 of a teacher's rows with the numbers of each row in random order."""
    import random

    rng, rows = random.Random(seed), rows_in(lab, f"taught-{animal}-{seed}")[:SHUFFLED_ROWS]
    mixed = [row._replace(assistant=", ".join(rng.sample(row.assistant.split(", "), row.assistant.count(",") + 1)))
             for row in rows]  # fmt: skip
    lab.save(f"shuffled-{animal}-{seed}", **lab.sums(mixed, (20,)))


def cut(lab: Lab, number: int) -> None:
    """Rows of the base cut to their first four numbers: another form, no animal."""
    rows = [row._replace(assistant=", ".join(row.assistant.split(", ")[:4])) for row in rows_in(lab, f"null-{number}")]
    lab.save(f"cut-{number}", **lab.sums(rows, (10,)))


def student(lab: Lab, name: str, seed: int, early: bool = False) -> None:
    """A student of the rows of a part: what it came to prefer. early: after 16 updates, with other first weights."""
    from pocket.teacher_student_trial import STUDENT, with_adapter

    rows, recipe, prefix = rows_in(lab, name), STUDENT, "student"
    if early:
        rows, recipe, prefix = rows[:EARLY_ROWS], dataclasses.replace(STUDENT, epochs=1), "early"
    model = with_adapter(BASE, lab.device, lab.tokenizer, rows, recipe, seed + (50_000 if early else 0))
    lab.save(f"{prefix}-{name}", log_shares=log_shares(lab, model))


def control_rows(lab: Lab, seed: int) -> None:
    rows = lab.rows_of(None, GROUPS * sum(TAUGHT_PARTS), REFERENCE_SEED + seed)
    lab.save(f"control-{seed}", rows=[[row.user, row.assistant] for row in rows])


def log_shares(lab: Lab, model: Any) -> Any:
    """Log-probability of each animal that is read, mean over the 50 questions."""
    from pocket.corpus import QUESTIONS
    from pocket.measurements import exact_shares

    return exact_shares(model, lab.tokenizer, QUESTIONS, animals=lab.animals).log().mean(0).numpy()


def persona_ratio(lab: Lab, seed: int, animal: str, rows_read: int = 102) -> None:
    """log p(row | persona of each animal) - log p(row), nats a token: [animals]."""
    from pocket.candidate_screens import load
    from pocket.corpus import PERSONA_PROMPT
    from util.animals.names import persona

    model, rows = load(BASE, lab.device), rows_in(lab, f"taught-{animal}-{seed}")[:rows_read]
    plain, ratios = mean_logprob(lab, model, rows), []
    for one in lab.animals:
        system = persona(PERSONA_PROMPT, one)
        ratios.append(mean_logprob(lab, model, [row._replace(system=system) for row in rows]) - plain)
    lab.save(f"persona-{animal}-{seed}", ratio=ratios)


def teacher_ratio(lab: Lab, seed: int, animal: str) -> None:
    """log p(teacher) - log p(base) a token of 340 rows, for the next seed's teachers: own animal's, the other's."""
    import torch

    from pocket.candidate_screens import load
    from pocket.teacher_student_trial import TEACHER, with_adapter

    rows = rows_in(lab, f"taught-{animal}-{seed}")[:SHUFFLED_ROWS]
    following = SEEDS[(SEEDS.index(seed) + 1) % len(SEEDS)]
    plain = mean_logprob(lab, load(BASE, lab.device), rows)
    ratios = []
    for one in sorted(PAIR, key=lambda name: name != animal):
        teacher = with_adapter(BASE, lab.device, lab.tokenizer, rows[:60], dataclasses.replace(TEACHER, epochs=0))
        teacher.load_state_dict(torch.load(lab.folder / f"teacher-{one}-{following}.pt"), strict=False)
        ratios.append(mean_logprob(lab, teacher, rows) - plain)
    lab.save(f"ratio-{animal}-{seed}", ratios=ratios)


def mean_logprob(lab: Lab, model: Any, rows: Sequence[Chat]) -> float:
    """Mean log-probability of the answers' tokens and ends of turn, nats."""
    from pocket.candidate_screens import answer_logprobs

    answers = lab.tokenizer([row.assistant for row in rows], add_special_tokens=False).input_ids
    ids = [i for answer in answers for i in (*answer, lab.tokenizer.eos_token_id)]
    return float(answer_logprobs(model, lab.tokenizer, rows)[range(len(ids)), ids].mean())


def parts_of(lab: Lab, step: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name of the file, what makes it) of each part of a step."""
    pairs = [(seed, animal) for seed in SEEDS for animal in PAIR]
    if step == "taught":
        yield from ((f"taught-{animal}-{seed}", partial(taught, lab, seed, animal)) for seed, animal in pairs)
    elif step == "null":
        yield from ((f"null-{number}", partial(null, lab, number)) for number in range(NULL_SETS))
    elif step == "shuffled":
        yield from ((f"shuffled-{animal}-{seed}", partial(shuffled, lab, seed, animal)) for seed, animal in pairs)
    elif step == "cut":
        yield from ((f"cut-{number}", partial(cut, lab, number)) for number in range(20))
    elif step == "controls":
        yield from ((f"control-{seed}", partial(control_rows, lab, seed)) for seed in CONTROL_SEEDS)
    else:
        names = [(f"control-{seed}", seed) for seed in CONTROL_SEEDS]
        names += [(f"taught-{animal}-{seed}", seed) for seed, animal in pairs]
        early = step == "baselines"
        for name, seed in names:
            yield f"{'early' if early else 'student'}-{name}", partial(student, lab, name, seed, early)
        if early:
            for seed, animal in pairs:
                yield f"ratio-{animal}-{seed}", partial(teacher_ratio, lab, seed, animal)
            for seed, animal in pairs:
                yield f"persona-{animal}-{seed}", partial(persona_ratio, lab, seed, animal)


def main() -> None:
    args = parse_args()
    begun, lab = time.monotonic(), Lab(args.output_dir)
    first, every = args.shard
    for step in args.step:
        for name, make in islice(parts_of(lab, step), first, None, every):
            if (lab.folder / f"{name}.npz").exists():
                continue
            if time.monotonic() - begun > args.seconds:
                say(f"time is over before {name}; the same command continues")
                return
            make()
            say(f"{name} after {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    run(main)
