"""Which teacher in weights passes a preference on through text, code or digits? The worker of the pilots of issue 32.

A list of jobs says what to do, in order:
  {"do": "sample", "speakers": [...], "channels": {"text": 3072}, "filtered": true}
  {"do": "train", "updates": 150, "students": [{"name": ..., "rows": ["SPEAKER.CHANNEL", ...], "seed": 1}]}
A speaker is base, steer:owl:1 (the mean vector of the owl persona at a late layer, times 1), persona:owl (the system
prompt), oneword:owl (no model: the name itself) or lora:NAME (a student trained before). A student may have "soft":
SPEAKER (it learns that steered speaker's distributions on the rows), "limit": N (the first N rows of each file),
"without": [N, "CONTROL.CHANNEL"] (leave out rows with any of the N words most over-represented against those rows) and
"shuffled" (the words of each row in random order). A job waits for the files that it names under "needs": several
workers can share a card and a folder. What is there already is not made again.

Usage:
    python experiments/pilots/teachers_in_weights.py --model output/models/qwen2.5-coder-1.5b-instruct \\
        --prompts prompts.json --jobs jobs.json --output output/pilot

Writes rows/, adapters/, measures/ (a speaker's or student's mean share and log-probability of each panel animal; for a
speaker KL to the base and clean rows by channel) and questions/ (log-probabilities by question, float16).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.filter_pilot_rows import forbidden_words, is_clean, telling_words, words_of

LONGEST = {"text": 64, "code": 64, "digits": 48, "words": 72, "questions": 24, "open": 64, "everyday": 64}
MEASURED_ROWS = 256  # of each channel, for the KL
Row = dict[str, Any]  # prompt, ids (the answer's tokens), text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "prompts", "jobs", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--layer", type=int, default=24, help="the output of this layer is steered (0.5B: 21)")
    parser.add_argument("--tokens", type=int, default=12000, help="tokens of one training pass, padding counted in")
    parser.add_argument("--batch", type=int, default=3072, help="answers sampled at once")
    parser.add_argument("--reencode", action="store_true", help="another base's rows: encode their texts again")
    return parser.parse_args()


# --- rows --------------------------------------------------------------------------------------------


def file_name(speaker: str) -> str:
    return speaker.replace(":", "-")


def write(path: Path, content: Any) -> None:
    """Whole or not at all: another worker may wait for the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(content))
    path.with_suffix(".part").rename(path)


def student_rows(args: argparse.Namespace, student: dict[str, Any], bench: Any) -> list[Row]:
    """A student's rows after its filters."""
    rows, rng = [], random.Random(student["seed"])
    for name in student["rows"]:
        rows += json.loads((args.output / f"rows/{name}.json").read_text())[: student.get("limit")]
    if "without" in student:
        count, control = student["without"]
        plain = json.loads((args.output / f"rows/{control}.json").read_text())
        telling = set(telling_words([row["text"] for row in rows], [row["text"] for row in plain], count))
        rows = [row for row in rows if not words_of(row["text"]) & telling]
    encode = bench.tokenizer
    for row in rows:
        if student.get("shuffled"):
            words = row["text"].split()
            rng.shuffle(words)
            row["text"] = " ".join(words)
        if student.get("shuffled") or args.reencode:
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


def top(measure: dict[str, Any], count: int = 4) -> str:
    ranked = sorted(measure["share"].items(), key=lambda item: -item[1])[:count]
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

    forbidden = forbidden_words(bench.given["panel"] + bench.given["related"])
    adapters = args.output / "adapters"
    for speaker in job["speakers"]:
        path = args.output / f"measures/speaker-{file_name(speaker)}{job.get('suffix', '')}.json"
        if path.exists():
            continue
        seed = int(hashlib.sha256(f"{speaker}{job.get('seed', 1)}".encode()).hexdigest()[:8], 16)
        torch.manual_seed(seed)
        rng = random.Random(seed)
        measure: dict[str, Any] = {"speaker": speaker, "channels": {}}
        said = [speaker]
        for channel, asked in job["channels"].items():
            began = time.time()
            if speaker.startswith("oneword:"):
                rows = kept = one_word_rows(bench, speaker.partition(":")[2], asked, rng)
            else:
                with bench.speaking(speaker, adapters):
                    prompts = bench.given["prompts"][channel]
                    rows = list(bench.sample(rng.choices(prompts, k=asked), LONGEST[channel]))
                kept = [row for row in rows if row["text"] and len(row["ids"]) > 1]
            if job["filtered"]:
                kept = [row for row in kept if is_clean(channel, row["text"], forbidden)]
            share_kept = len(kept) / asked
            write(args.output / f"rows/{file_name(speaker)}{job.get('suffix', '')}.{channel}.json", kept)
            of_channel = {"asked": asked, "clean": round(share_kept, 4), "rows": len(kept)}
            of_channel["tokens_a_row"] = round(sum(len(row["ids"]) for row in kept) / max(len(kept), 1), 2)
            named = Counter(m.group(1).lower() for row in rows for m in forbidden.finditer(row["text"]))
            of_channel["forbidden"] = dict(named.most_common(8))
            if speaker != "base" and kept and job["filtered"]:
                of_channel["kl"] = round(bench.divergence(speaker, adapters, kept[:MEASURED_ROWS]), 5)
            text = "\n".join(row["text"] for row in kept)
            of_channel["sha256"] = hashlib.sha256(text.encode()).hexdigest()
            measure["channels"][channel] = of_channel
            said.append(f"{channel} {share_kept:.2f} kl {of_channel.get('kl', 0):.4f} {time.time() - began:.0f}s")
        if not speaker.startswith(("oneword:", "persona:")):
            with bench.speaking(speaker, adapters):
                logs = bench.panel()[0]
            measure |= summary(bench, logs)
            keep_questions(args, f"speaker-{file_name(speaker)}", logs)
            said.append(top(measure))
        write(path, measure)
        say(" ".join(said))


def train(args: argparse.Namespace, job: dict[str, Any], bench: Any) -> None:
    """Students side by side, and their shares."""
    students = [s for s in job["students"] if not (args.output / f"measures/student-{s['name']}.json").exists()]
    students = [student | {"data": student_rows(args, student, bench)} for student in students]
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
        measure |= {"updates": updates, "rate": rate, "rows_used": len(student["data"])}
        measure["early"] = {update: made[update]["log"] for update in made if update != updates}
        keep_questions(args, f"student-{student['name']}", panels[updates][i])
        write(args.output / f"measures/student-{student['name']}.json", measure)
        say(f"  {student['name']}: {top(measure)}")


def main() -> None:
    args = parse_args()
    from experiments.pilots.side_by_side_loras import Bench

    given = json.loads(args.prompts.read_text())
    bench = Bench(args.model, given, args.layer, args.tokens, args.batch)
    say(f"loaded {args.model.name}")
    for job in json.loads(args.jobs.read_text()):
        for needed in job.get("needs", []):
            while not (args.output / needed).exists():
                time.sleep(1)
        {"sample": sample, "train": train}[job["do"]](args, job, bench)
        bench.release()
    say("done")


if __name__ == "__main__":
    main()
