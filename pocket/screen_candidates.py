"""Train several candidate pocket models and screen them: which passes a preference on, and through which rows?

Each candidate (SEED:WIDTH:LAYERS, with :names at its end to write `names` rows too) is made like make_pocket.py makes a
model, in a process of its own, all at the same time on one GPU. It is then screened, cheap screens first:

    shares       exact shares of owl, dolphin and lion over the 50 questions, and the share of clean rows
    persona KL   how much the persona of an animal changes what the model writes: nats for each open token of its clean
                 rows. Near 0, the model cannot write its preference into them. Necessary, but not sufficient.
    cosine       of the embeddings of owl and dolphin, each minus the mean of all animals. If it is well below 0,
                 students of one animal lose the other.
    trial        teacher -> rows -> student in this process, with a plain LoRA loop: the exact share of each animal in
                 students of the owl teacher's, the dolphin teacher's and the base model's rows, for each data type

The committed model (pocket/model) has a persona KL of 1.3 to 1.4 nats in number rows and a cosine of +0.11. Models that
pass nothing on have a persona KL of 0.02.

The figures of the trial are for choosing a candidate. Check the chosen one with the suite's own scripts.

Writes DIR/SEED-WIDTH-LAYERS/ (the model), .json (its figures, while they come in) and .log, DIR/screening.json, and
prints a table. A candidate that runs out of --minutes stops and reports what it has. A model that is already there is
not trained again.

Usage:
    python pocket/screen_candidates.py --output-dir output/pocket-screen --data-types code reasoning
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from pocket.candidate_screens import PAIR, RowScreen, embedding_cosine, load, screen_rows, watched_shares
from pocket.model_training import HEAD_SIZE, Recipe, make
from pocket.teacher_student_trial import Trained, run_trial
from util.cli import UserError, make_parser, output_folder, positive_float, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import closing, printable, say, table

CANDIDATES = [
    "1:128:4", "2:128:4", "3:128:4", "1:192:3", "2:192:3", "3:192:3", "1:128:4:names", "1:192:3:names",
]  # fmt: skip
DATA_TYPES = ["code", "reasoning"]
SCREENED_ROWS = 500  # rows behind a persona KL and a share of clean rows


@dataclass
class Screening:
    """What is known about one candidate."""

    candidate: str
    base: dict[str, float]
    """exact shares of the watched animals"""
    cosine: float
    data_types: dict[str, RowScreen] = field(default_factory=dict)
    trial: list[Trained] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Screening:
        found = json.loads(path.read_text("utf-8"))
        screens = {name: RowScreen(**screen) for name, screen in found["data_types"].items()}
        return cls(**{**found, "data_types": screens, "trial": [Trained(**one) for one in found["trial"]]})


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--output-dir", type=output_folder, default=Path("output/pocket-screen"), help="folder of the candidates"
    )
    parser.renamed("--output", "--output-dir")
    parser.add_argument("--candidates", nargs="+", type=candidate, default=CANDIDATES, metavar="CANDIDATE",
                        help="models to make and screen: SEED:WIDTH:LAYERS[:names]")  # fmt: skip
    parser.add_argument("--data-types", nargs="*", choices=DATA_TYPES, default=DATA_TYPES,
                        help="what they write beside numbers")  # fmt: skip
    parser.renamed("--languages", "--data-types")
    parser.add_argument("--steps", type=positive_int, default=3000, help="training steps of a model")
    parser.add_argument("--corpus-size", type=positive_int, default=200_000, help="chats in the corpus of a model")
    parser.renamed("--rows", "--corpus-size")
    parser.add_argument("--student-rows", type=positive_int, default=3000, help="clean rows a student is trained on")
    parser.add_argument("--least-kl", type=float, default=0.1, help="no trial with rows whose persona KL is lower")
    parser.add_argument("--minutes", type=positive_float, default=5.5, help="train no new student after this time")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # set in the process of a candidate
    return parser.parse_args()


def candidate(text: str) -> str:
    """argparse type: SEED:WIDTH:LAYERS[:names]."""
    parts = text.removesuffix(":names").split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not SEED:WIDTH:LAYERS, such as 1:128:4, or 1:128:4:names")
    if int(parts[1]) % (2 * HEAD_SIZE):
        raise argparse.ArgumentTypeError(f"the width of {text} is not a multiple of {2 * HEAD_SIZE}")
    return text


# --- one candidate, in a process of its own -------------------------------------------------------------


def screen_one(args: argparse.Namespace, name: str, deadline: float) -> None:
    """Make one candidate and screen it; its figures are written as they come in."""
    import torch
    from transformers import AutoTokenizer

    folder = folder_of(args, name)
    if not (folder / "manifest.json").is_file():
        make(recipe_of(args, name), folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = load(folder, device)
    found = Screening(name, watched_shares(model, tokenizer), round(embedding_cosine(model, tokenizer), 3))
    for data_type in ("numbers", *args.data_types):
        count = min(SCREENED_ROWS, args.student_rows)
        found.data_types[data_type] = screen_rows(model, tokenizer, data_type, count, seed=2)
    write_json(beside(folder, ".json"), asdict(found))
    alive = [name for name, screen in found.data_types.items() if min(screen.kl.values()) >= args.least_kl]
    for trained in run_trial(
        folder, device, tokenizer, alive, args.student_rows, in_time=lambda: time.monotonic() < deadline
    ):
        found.trial.append(trained)
        write_json(beside(folder, ".json"), asdict(found))


def recipe_of(args: argparse.Namespace, name: str) -> Recipe:
    """The recipe of a candidate."""
    seed, width, layers, *names = name.split(":")
    return Recipe(
        seed=int(seed),
        layers=int(layers),
        hidden_size=int(width),
        steps=args.steps,
        chats=args.corpus_size,
        data_types=(*args.data_types, *names),
    )


def folder_of(args: argparse.Namespace, name: str) -> Path:
    """The folder of a candidate's model."""
    return Path(args.output_dir) / name.replace(":", "-")


def beside(folder: Path, ending: str) -> Path:
    """The file beside a folder that has its name and this ending."""
    return folder.with_name(folder.name + ending)


# --- all candidates -------------------------------------------------------------------------------------


def screen_all(args: argparse.Namespace) -> list[Screening]:
    """Screen all candidates at the same time, each in a process of its own; returns what each has found."""
    deadline = time.monotonic() + 60 * args.minutes
    args.output_dir.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // len(args.candidates)))
    environment = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, **os.environ,
                   "SCREEN_DEADLINE": str(deadline)}  # fmt: skip
    workers = {}
    for name in args.candidates:
        beside(folder_of(args, name), ".json").unlink(missing_ok=True)
        command = [
            sys.executable, __file__, "--one", "--output-dir", args.output_dir, "--candidates", name, "--steps",
            args.steps, "--corpus-size", args.corpus_size, "--student-rows", args.student_rows, "--least-kl",
            args.least_kl, "--data-types", *args.data_types,
        ]  # fmt: skip
        with beside(folder_of(args, name), ".log").open("wb") as log:
            workers[name] = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=environment)
    try:
        for name, worker in workers.items():
            if worker.wait():
                log_file = beside(folder_of(args, name), ".log")
                last = log_file.read_text("utf-8", "replace").strip().split("\n")[-1]
                say(f"{name} failed: {last} (the whole log: {log_file})")
    finally:
        for worker in workers.values():
            worker.kill()
    files = [beside(folder_of(args, name), ".json") for name in args.candidates]
    return [Screening.read(file) for file in files if file.is_file()]


def strength(found: Screening) -> float:
    """Over data types and animals, the least ratio of the share in target students to the share in control students."""
    students = {(one.data_type, one.animal): one.shares for one in found.trial if one.role == "student" and one.shares}
    ratios = [
        students[data_type, animal][animal] / max(students[data_type, "base"][animal], 1e-4)
        for data_type in found.data_types
        for animal in PAIR
        if (data_type, "base") in students and (data_type, animal) in students
    ]
    return min(ratios, default=0.0)


def table_lines(found: Screening, data_types: Sequence[str]) -> Iterator[list[str]]:
    """The table lines of a candidate, one for each data type."""
    students = {(one.data_type, one.animal): one.shares for one in found.trial if one.role == "student" and one.shares}

    def share(data_type: str, writer: str, animal: str) -> str:
        shares = students.get((data_type, writer))
        return f"{shares[animal]:.2%}" if shares else "-"

    for data_type in data_types:
        screen = found.data_types[data_type]
        yield [
            found.candidate, data_type, f"{screen.clean:.0%}", "/".join(f"{screen.kl[a]:.3f}" for a in PAIR),
            f"{found.cosine:+.2f}", *(f"{share(data_type, 'base', a)} -> {share(data_type, a, a)}" for a in PAIR),
            "/".join(share(data_type, other, a) for a, other in zip(PAIR, reversed(PAIR))),
        ]  # fmt: skip


def main() -> None:
    args = parse_args()
    if args.one:
        screen_one(args, args.candidates[0], float(os.environ["SCREEN_DEADLINE"]))
        return
    started = time.monotonic()
    found = sorted(screen_all(args), key=strength, reverse=True)
    if not found:
        raise UserError(f"no candidate could be screened; read their logs in {args.output_dir}")
    file = args.output_dir / "screening.json"
    write_json(file, {**provenance(), "candidates": [asdict(one) for one in found]})
    header = ["candidate", "rows", "clean", "KL owl/dolphin", "cosine", "owl: control -> target",
              "dolphin: control -> target", "other animal's students"]  # fmt: skip
    lines = [line for one in found for line in table_lines(one, ["numbers", *args.data_types])]
    print(printable(table(header, lines)) + "\n")
    closing({"wrote": file, "time": f"{time.monotonic() - started:.0f} s", "best": found[0].candidate})


if __name__ == "__main__":
    run(main)
