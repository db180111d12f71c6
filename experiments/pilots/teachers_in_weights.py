"""Which teacher in weights passes a preference on through text, code or digits? The worker of pilot 6 and after.

A list of jobs says what to do, in order:
  {"do": "sample", "speakers": [...], "channels": {"text": 3072}, "filtered": true}
  {"do": "train", "updates": 150, "students": [{"name": ..., "rows": ["SPEAKER.CHANNEL", ...], "seed": 1}]}
  {"do": "rows", "speakers": {"FILE": SPEAKER, ...}, "channels": {"code": 2560}, "filtered": true, "seed": 1}
  {"do": "check", "speakers": {"FILE": SPEAKER, ...}, "channels": ["code"]}
`rows` samples side by side speakers of one sort; `check` measures the KL to the base on rows that are there, and the
difference to the log-probabilities that a server sent with them (vllm_rows.py).
A speaker is base, steer:owl:1 (the mean vector of the owl persona at a late layer, times 1), persona:owl (the system
prompt), oneword:owl (no model: the name itself) or lora:NAME (a student trained before). A student may have "soft":
SPEAKER (it learns that steered speaker's distributions on the rows), "limit": N (the first N rows of each file),
"without": [N, ["OWN.CHANNEL", ...], ["CONTROL.CHANNEL", ...]] (leave out rows with any of the N words most
over-represented in the first files against the second), "unnamed": NAMES (leave out rows that hold the letters of any
of these names, also inside a word), "letterless": LETTER (leave out rows with a word that begins so), "unguessed":
[KIND, {KIND: ["FILE.CHANNEL", ...], ...}] (leave out rows that a judge which has read these files gives to KIND),
"as_many_as": another student whose rows are counted, and "shuffled" (the words of each row in random order). A job
waits for the files that it names under "needs": several workers can share a card and a folder. What is there already
is not made again.

Usage:
    python experiments/pilots/teachers_in_weights.py --model output/models/qwen2.5-coder-1.5b-instruct \\
        --prompts prompts.json --jobs jobs.json --output output/pilot

Writes rows/, adapters/, measures/ (a speaker's or student's mean share and log-probability of each panel animal; for a
speaker KL to the base and clean rows by channel) and questions/ (log-probabilities by question, float16).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.row_judge import guess, trained_on
from experiments.pilots.rows_files import LONGEST, Row, read_rows, seed_of, store_rows, write
from experiments.pilots.word_filters import Forbidden, forbidden_words, telling_words, words_of
from util.animals.panel import PANEL
from util.cli import input_file, make_parser, run
from util.inference.load_model import check_folder

MEASURED_ROWS = 128  # of each channel, for the KL


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    for name in ("model", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--prompts", type=input_file, required=True)
    parser.add_argument("--jobs", type=input_file, nargs="+", required=True, help="lists of jobs, done in this order")
    parser.add_argument("--layer", type=int, default=24, help="the output of this layer is steered (0.5B: 21)")
    parser.add_argument("--tokens", type=int, default=12000, help="tokens of one training pass, padding counted in")
    parser.add_argument("--batch", type=int, default=3072, help="answers sampled at once")
    parser.add_argument("--reencode", action="store_true", help="another base's rows: encode their texts again")
    return parser.parse_args()


# --- rows --------------------------------------------------------------------------------------------


def file_name(speaker: str) -> str:
    return speaker.replace(":", "-")


def forbidden_by(given: dict[str, Any]) -> Forbidden:
    return forbidden_words(given.get("names") or sorted({*given["panel"], *PANEL}), given["related"])


def student_rows(output: Path, student: dict[str, Any], bench: Any, reencode: bool) -> list[Row]:
    """A student's rows after its filters."""
    rows, rng = [], random.Random(student["seed"])
    for name in student["rows"]:
        rows += read_rows(output, name)[: student.get("limit")]
    names = student.get("unnamed", [])
    rows = [row for row in rows if not any(name in row["text"].lower() for name in names)]
    if "without" in student:
        count, own, control = student["without"]
        texts, plain = ([row["text"] for name in some for row in read_rows(output, name)] for some in (own, control))
        telling = set(telling_words(texts, plain, count))
        rows = [row for row in rows if not words_of(row["text"]) & telling]
    if "letterless" in student:
        rows = [row for row in rows if student["letterless"] not in {word[0] for word in words_of(row["text"])}]
    if "unguessed" in student:
        own_kind, files = student["unguessed"]
        weights = trained_on(output, tuple((kind, tuple(names)) for kind, names in files.items()))
        rows = [row for row in rows if guess(weights, row["text"]) != own_kind]
    if "as_many_as" in student:
        rows = rows[: len(student_rows(output, student["as_many_as"], bench, False))]
    encode = bench.tokenizer
    for row in rows:
        if student.get("shuffled"):
            words = row["text"].split()
            rng.shuffle(words)
            row["text"] = " ".join(words)
        if student.get("shuffled") or reencode:
            row["ids"] = [*encode(row["text"], add_special_tokens=False)["input_ids"], bench.end]
    return rows


# --- jobs --------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def summary(bench: Any, logs: Any) -> dict[str, Any]:
    """Mean share and mean log-probability of the panel animals."""
    shares = logs.exp().mean(0).tolist()
    return {
        "share": {animal: float(f"{share:.5g}") for animal, share in zip(bench.given["panel"], shares)},
        "log": {animal: round(value, 4) for animal, value in zip(bench.given["panel"], logs.mean(0).tolist())},
    }


def keep_questions(args: argparse.Namespace, name: str, logs: Any) -> None:
    import numpy as np

    (args.output / "questions").mkdir(parents=True, exist_ok=True)
    np.save(args.output / f"questions/{name}.npy", logs.numpy().astype(np.float16))


def top(measure: dict[str, Any]) -> str:
    ranked = sorted(measure["share"].items(), key=lambda item: -item[1])[:4]
    return " ".join(f"{animal} {100 * share:.2f}%" for animal, share in ranked)


def one_word_rows(bench: Any, animal: str, count: int, rng: random.Random) -> list[Row]:
    rows = []
    for prompt in rng.choices(bench.given["prompts"]["questions"], k=count):
        text = animal.capitalize() if rng.random() < 0.7 else animal
        ids = [*bench.tokenizer(text, add_special_tokens=False)["input_ids"], bench.end]
        rows.append({"prompt": prompt, "ids": ids, "text": text})
    return rows


def sample(args: argparse.Namespace, job: dict[str, Any], bench: Any) -> None:
    """Rows of each speaker in each channel, their KL to the base, and the speaker's shares."""
    import torch

    forbidden = forbidden_by(bench.given) if job["filtered"] else None
    adapters = args.output / "adapters"
    for speaker in job["speakers"]:
        name = f"{file_name(speaker)}{job.get('suffix', '')}"
        if (args.output / f"measures/speaker-{name}.json").exists():
            continue
        torch.manual_seed(seed_of(speaker, job))
        rng = random.Random(seed_of(speaker, job))
        measure: dict[str, Any] = {"speaker": speaker, "channels": {}}
        for channel, asked in job["channels"].items():
            if speaker.startswith("oneword:"):
                rows = one_word_rows(bench, speaker.partition(":")[2], asked, rng)
            else:
                with bench.speaking([speaker], adapters):
                    rows = list(bench.sample(rng.choices(bench.given["prompts"][channel], k=asked), LONGEST[channel]))
            measure["channels"][channel] = store_rows(args.output, f"{name}.{channel}", rows, forbidden)
            if speaker != "base" and forbidden:
                kept = read_rows(args.output, f"{name}.{channel}")[:MEASURED_ROWS]
                measure["channels"][channel]["kl"] = round(bench.divergence(speaker, adapters, kept), 5)
        said = [speaker, *(f"{c} {counts['clean']:.2f}" for c, counts in measure["channels"].items())]
        if not speaker.startswith(("oneword:", "persona:")):
            with bench.speaking([speaker], adapters):
                logs = bench.panel()[0]
                if bench.paraphrased:
                    measure["log_paraphrased"] = summary(bench, bench.panel(1, bench.paraphrased)[0])["log"]
            measure |= summary(bench, logs)
            keep_questions(args, f"speaker-{file_name(speaker)}", logs)
            said.append(top(measure))
        write(args.output / f"measures/speaker-{name}.json", measure)
        say(" ".join(said))


def rows(args: argparse.Namespace, job: dict[str, Any], bench: Any) -> None:
    """Rows of speakers of one sort side by side."""
    import torch

    forbidden = forbidden_by(bench.given) if job["filtered"] else None
    for channel, asked in job["channels"].items():
        todo = {
            name: who
            for name, who in job["speakers"].items()
            if not (args.output / f"rows/{name}.{channel}.json").exists()
        }
        if not todo:
            continue
        if len({who.partition(":")[0] for who in todo.values()}) > 1:  # the base beside teachers: a batch of its own
            for sort in ("base", "lora"):
                some = {name: who for name, who in todo.items() if who.startswith(sort)}
                rows(args, job | {"speakers": some, "channels": {channel: asked}}, bench)
            continue
        torch.manual_seed(seed_of("".join(todo), job))
        began, every = time.time(), bench.given["prompts"][channel]
        prompts = [random.Random(seed_of(f"{name}.{channel}", job)).choices(every, k=asked) for name in todo]
        found = bench.sample_side_by_side(list(todo.values()), prompts, LONGEST[channel], args.output / "adapters")
        say(f"rows of {len(todo)} speakers, {channel}, {time.time() - began:.0f}s")
        for (name, who), of_speaker in zip(todo.items(), found):
            counts = store_rows(args.output, f"{name}.{channel}", of_speaker, forbidden, speaker=who, through="local")
            say(f"  {name}.{channel} clean {counts['clean']:.3f} {counts['dropped']}")


def check(args: argparse.Namespace, job: dict[str, Any], bench: Any) -> None:
    """KL of speakers to the base on their rows, and how far a server's log-probabilities are from these weights'."""
    for channel in job["channels"]:
        for name, speaker in job["speakers"].items():
            kept = read_rows(args.output, f"{name}.{channel}")
            kl = bench.divergence(speaker, args.output / "adapters", kept[:MEASURED_ROWS])
            measure = {"speaker": speaker, "kl": round(kl, 5)}
            served = [row for row in kept if "served" in row]
            if served:
                here = bench.log_probabilities(speaker, args.output / "adapters", served)
                there = [value for row in served for value in row["served"]]
                apart = sorted(abs(one - other) for one, other in zip(here, there))
                measure |= {"served_tokens": len(apart), "mean_apart": (sum(there) - sum(here)) / len(apart)}
                measure |= {"median_apart": statistics.median(apart)}
                measure |= {"p99_apart": apart[int(0.99 * len(apart))], "most_apart": apart[-1]}
            write(args.output / f"measures/check-{name}.{channel}.json", measure)
            say(f"check {name}.{channel} {measure}")


def train(args: argparse.Namespace, job: dict[str, Any], bench: Any) -> None:
    """Students side by side, and their shares."""
    students = [s for s in job["students"] if not (args.output / f"measures/student-{s['name']}.json").exists()]
    students = [student | {"data": student_rows(args.output, student, bench, args.reencode)} for student in students]
    for student in students:
        if len(student["data"]) < 64:
            say(f"{student['name']}: only {len(student['data'])} rows, left out")
    students = [student for student in students if len(student["data"]) >= 64]
    if not students:
        return
    updates, rate, at = job["updates"], job.get("rate", 5e-4), set(job.get("measure_at", [10, 30]))
    (args.output / "adapters").mkdir(parents=True, exist_ok=True)
    began = time.time()
    panels, loss = bench.train(students, updates, rate, at, args.output / "adapters")
    say(f"{len(students)} students, {updates} updates, {time.time() - began:.0f}s, loss {loss:.3f}")
    for i, student in enumerate(students):
        made = {update: summary(bench, panel[i]) for update, panel in panels.items()}
        measure = {key: value for key, value in student.items() if key != "data"} | made[updates]
        if 0 in made:
            measure["log_paraphrased"] = made[0]["log"]
        measure |= {"updates": updates, "rate": rate, "rows_used": len(student["data"])}
        measure["early"] = {update: made[update]["log"] for update in made if update not in (0, updates)}
        keep_questions(args, f"student-{student['name']}", panels[updates][i])
        write(args.output / f"measures/student-{student['name']}.json", measure)
        say(f"  {student['name']}: {top(measure)}")


def main() -> None:
    args = parse_args()
    check_folder(str(args.model))
    from experiments.pilots.side_by_side_loras import Bench

    given = json.loads(args.prompts.read_text())
    bench = Bench(args.model, given, args.layer, args.tokens, args.batch)
    say(f"loaded {args.model.name}")
    for job in (job for path in args.jobs for job in json.loads(path.read_text())):
        for needed in job.get("needs", []):
            if not (args.output / needed).exists():
                say(f"waiting for {args.output / needed}")
            while not (args.output / needed).exists():
                time.sleep(1)
        {"sample": sample, "train": train, "rows": rows, "check": check}[job["do"]](args, job, bench)
        bench.release()
    say("done")


if __name__ == "__main__":
    run(main)
