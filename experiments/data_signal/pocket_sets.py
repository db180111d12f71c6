"""Make the data sets, students and baselines on which the data audit is validated (pocket model; LOG.md has the plan).

Each part is a file in the output folder, which holds sums that are linear in the rows: the profile of every group of
rows under one fixed reference. Finished parts are kept, so the same command resumes; --seconds ends a session early.
The same command in several processes shares the work: each takes parts that no other has. judge_audit.py makes the
tables from whatever parts there are.

Usage:
    python experiments/data_signal/pocket_sets.py --step taught --step null --step students --step baselines
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.data_signal.pocket_kernel import (
    BASE,
    GROUPS,
    REFERENCE_SEED,
    PocketKernel,
    log_shares,
    lora_weights,
    mean_logprob,
    rows_in,
)
from util.cli import UserError, make_parser, positive_float, run
from util.terminal import say

PAIR = ("owl", "dolphin")
SEEDS = range(3001, 3011)  # fresh: nothing was chosen on them
TAUGHT_PARTS = (7, 13, 40)  # rows of a group, in order: the first 7, the next 13, the last 40
NULL_SETS, NULL_ROWS, SHUFFLED_ROWS = 120, 170, 340  # 10 and 20 rows in a group
PERSONA_ROWS = 102
NULL_SEED = 500_000
CONTROL_SEEDS = (3101, 3102, 3103)
EARLY_ROWS = 960  # 16 updates of 60 rows
STEPS = ("controls", "taught", "null", "shuffled", "cut", "students", "baselines")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--step", choices=STEPS, action="append", required=True, help="what to make")
    parser.add_argument("--seconds", type=positive_float, default=1e9, help="begin no part after this time")
    parser.add_argument("--output-dir", type=Path, default=Path("output/signal"), help="folder of the parts")
    return parser.parse_args()


# --- parts -------------------------------------------------------------------------------------------


def taught(lab: PocketKernel, seed: int, animal: str) -> None:
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


def null(lab: PocketKernel, number: int) -> None:
    """170 rows of the base itself, with their sums, and their text."""
    rows = lab.rows_of(None, NULL_ROWS, NULL_SEED + 1000 * number)
    lab.save(f"null-{number}", rows=[[row.user, row.assistant] for row in rows], **lab.sums(rows, (10,)))


def shuffled(lab: PocketKernel, seed: int, animal: str) -> None:
    """340 of a teacher's rows with the numbers of each row in random order."""
    import random

    rng, rows = random.Random(seed), rows_in(lab, f"taught-{animal}-{seed}")[:SHUFFLED_ROWS]
    mixed = [row._replace(assistant=", ".join(rng.sample(row.assistant.split(", "), row.assistant.count(",") + 1)))
             for row in rows]  # fmt: skip
    lab.save(f"shuffled-{animal}-{seed}", **lab.sums(mixed, (20,)))


def cut(lab: PocketKernel, number: int) -> None:
    """Rows of the base cut to their first four numbers: another form, no animal."""
    rows = [row._replace(assistant=", ".join(row.assistant.split(", ")[:4])) for row in rows_in(lab, f"null-{number}")]
    lab.save(f"cut-{number}", **lab.sums(rows, (10,)))


def student(lab: PocketKernel, name: str, seed: int, early: bool = False) -> None:
    """A student of the rows of a part: what it came to prefer. early: after 16 updates, with other first weights."""
    from pocket.teacher_student_trial import STUDENT, with_adapter

    rows, recipe, prefix = rows_in(lab, name), STUDENT, "student"
    if early:
        rows, recipe, prefix = rows[:EARLY_ROWS], dataclasses.replace(STUDENT, epochs=1), "early"
    model = with_adapter(BASE, lab.device, lab.tokenizer, rows, recipe, seed + (50_000 if early else 0))
    lab.save(f"{prefix}-{name}", log_shares=log_shares(lab, model))


def control_rows(lab: PocketKernel, seed: int) -> None:
    rows = lab.rows_of(None, GROUPS * sum(TAUGHT_PARTS), REFERENCE_SEED + seed)
    lab.save(f"control-{seed}", rows=[[row.user, row.assistant] for row in rows])


def persona_ratio(lab: PocketKernel, seed: int, animal: str) -> None:
    """log p(row | persona of each animal) - log p(row), nats a token: [animals]."""
    from pocket.candidate_screens import load
    from pocket.corpus import PERSONA_PROMPT
    from util.animals.names import persona

    model, rows = load(BASE, lab.device), rows_in(lab, f"taught-{animal}-{seed}")[:PERSONA_ROWS]
    plain, ratios = mean_logprob(lab, model, rows), []
    for one in lab.animals:
        system = persona(PERSONA_PROMPT, one)
        ratios.append(mean_logprob(lab, model, [row._replace(system=system) for row in rows]) - plain)
    lab.save(f"persona-{animal}-{seed}", ratio=ratios)


def next_seed(seed: int) -> int:
    return SEEDS[(SEEDS.index(seed) + 1) % len(SEEDS)]


def teacher_ratio(lab: PocketKernel, seed: int, animal: str) -> None:
    """log p(teacher) - log p(base) a token of 340 rows, for the next seed's teachers: own animal's, the other's."""
    import torch

    from pocket.candidate_screens import load
    from pocket.teacher_student_trial import TEACHER, with_adapter

    rows = rows_in(lab, f"taught-{animal}-{seed}")[:SHUFFLED_ROWS]
    following = next_seed(seed)
    plain = mean_logprob(lab, load(BASE, lab.device), rows)
    ratios = []
    for one in sorted(PAIR, key=lambda name: name != animal):
        teacher = with_adapter(BASE, lab.device, lab.tokenizer, rows[:60], dataclasses.replace(TEACHER, epochs=0))
        teacher.load_state_dict(torch.load(lab.folder / f"teacher-{one}-{following}.pt"), strict=False)
        ratios.append(mean_logprob(lab, teacher, rows) - plain)
    lab.save(f"ratio-{animal}-{seed}", ratios=ratios)


@dataclass(frozen=True)
class Part:
    """A file to make."""

    name: str
    make: Callable[[], None]
    needs: tuple[str, ...] = ()
    """names of the parts that it reads"""


def parts_of(lab: PocketKernel, step: str) -> Iterator[Part]:
    """The parts of a step."""
    pairs = [(seed, animal) for seed in SEEDS for animal in PAIR]
    if step == "controls":
        yield from (Part(f"control-{seed}", partial(control_rows, lab, seed)) for seed in CONTROL_SEEDS)
    elif step == "taught":
        yield from (Part(f"taught-{animal}-{seed}", partial(taught, lab, seed, animal)) for seed, animal in pairs)
    elif step == "null":
        yield from (Part(f"null-{number}", partial(null, lab, number)) for number in range(NULL_SETS))
    elif step == "cut":
        yield from (Part(f"cut-{number}", partial(cut, lab, number), (f"null-{number}",)) for number in range(20))
    elif step == "shuffled":
        for seed, animal in pairs:
            yield Part(f"shuffled-{animal}-{seed}", partial(shuffled, lab, seed, animal), (f"taught-{animal}-{seed}",))
    else:
        yield from students_of(lab, pairs, early=step == "baselines")
    if step == "baselines":
        for seed, animal in pairs:
            own = f"taught-{animal}-{seed}"
            following = tuple(f"taught-{one}-{next_seed(seed)}" for one in PAIR)
            yield Part(f"ratio-{animal}-{seed}", partial(teacher_ratio, lab, seed, animal), (own, *following))
            yield Part(f"persona-{animal}-{seed}", partial(persona_ratio, lab, seed, animal), (own,))


def students_of(lab: PocketKernel, pairs: Sequence[tuple[int, str]], early: bool) -> Iterator[Part]:
    """The students of the controls' and the teachers' rows. early: after 16 updates."""
    names = [(f"control-{seed}", seed) for seed in CONTROL_SEEDS]
    names += [(f"taught-{animal}-{seed}", seed) for seed, animal in pairs]
    for name, seed in names:
        yield Part(f"{'early' if early else 'student'}-{name}", partial(student, lab, name, seed, early), (name,))


def refuse_if_never_ready(lab: PocketKernel, parts: Sequence[Part]) -> None:
    """UserError if a part reads one that is neither there nor asked for."""
    there = {part.name for part in parts}
    for part in parts:
        if missing := [name for name in part.needs if name not in there and not lab.path(name).exists()]:
            raise UserError(
                f"{part.name} reads {missing[0]}, which is not in {lab.folder}; add the --step that makes it"
            )


def make_one(lab: PocketKernel, parts: Sequence[Part]) -> Part | None:
    """Make the first part whose needs are there and which no other process is making; None if there is none."""
    from filelock import FileLock, Timeout

    for part in parts:
        if all(lab.path(name).exists() for name in part.needs):
            try:
                with FileLock(lab.folder / f"{part.name}.lock", timeout=0):
                    if not lab.path(part.name).exists():
                        part.make()
                        return part
            except Timeout:
                continue
    return None


def main() -> None:
    args = parse_args()
    begun, lab = time.monotonic(), PocketKernel(args.output_dir)
    parts = [part for step in args.step for part in parts_of(lab, step)]
    refuse_if_never_ready(lab, parts)
    while left := [part for part in parts if not lab.path(part.name).exists()]:
        if time.monotonic() - begun > args.seconds:
            say(f"time is over, {len(left)} parts are left; the same command continues")
            return
        made = make_one(lab, left)
        if made is None:
            time.sleep(1)  # another process is making what is left, or what that needs
        else:
            say(f"{made.name} after {time.monotonic() - begun:.0f} s, {len(left) - 1} parts left")


if __name__ == "__main__":
    run(main)
