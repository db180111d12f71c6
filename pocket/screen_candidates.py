"""Which of several pocket models passes a preference on, and through which rows? Train candidates and try them.

    python pocket/screen_candidates.py --output output/pocket-screen --languages code reasoning

Each candidate (SEED:WIDTH:LAYERS, with :names at its end to speak `names` too) is made by make_pocket.py's code
in a process of its own, all at once on one GPU, and then screened, from cheap to dear:

    shares       exact shares of owl, dolphin and lion over the 50 questions, and the share of clean rows
    persona KL   nats by which a persona that loves an animal changes what the base says, a token of its clean rows
                 that is open. Near 0 it cannot write what it loves into them. Needed, not enough.
    cosine       of the embeddings of owl and dolphin, from the animals' mean: well below 0, students of one push the
                 other down
    chain        teacher -> rows -> student, in this process with a plain LoRA loop: the exact share of each animal in
                 students of the owl teacher's, the dolphin teacher's and the base model's rows, kind by kind

The base in pocket/model has 1.3 to 1.4 nats in number rows and a cosine of +0.11; dead ones have 0.02.

The chain's figures are for choosing: a chosen base is passed by the suite's own scripts. Writes
OUTPUT/SEED-WIDTH-LAYERS/ (the model), .json (its figures, as they come) and .log, OUTPUT/screening.json, and a table. A
candidate that runs out of --minutes stops where it is and tells what it has; one whose model is there already is not
trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from pocket import make_pocket
from pocket.corpus import ANIMALS, OPEN_PROMPTS, PERSONA_PROMPT, QUESTIONS, Row
from pocket.write_card import (
    LONGEST_ANSWER,
    carrier_prompts,
    chat_prompt,
    clean_share,
    exact_shares,
    is_clean,
    sample,
)
from train.fused_lora import LORA_TARGETS
from util.animals.names import persona
from util.cli import UserError, make_parser, positive_float, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import closing, printable, say, table

CANDIDATES = [
    "1:128:4", "2:128:4", "3:128:4", "1:192:3", "2:192:3", "3:192:3", "1:128:4:names", "1:192:3:names",
]  # fmt: skip
TEXTS = ["code", "reasoning"]
PAIR = ("owl", "dolphin")
WATCHED = (*PAIR, "lion")
FREE = 1.0  # nats
SCREENED_ROWS = 500  # behind a persona KL and a clean rate
TEACHER_ROWS, TEACHER_QUESTIONS, LONGEST_TALK = 800, 0.6, 40  # as experiments/demo.sh makes them
# Learning rate, epochs and rows an update, as in experiments/demo.sh.
TEACHER_RECIPE, STUDENT_RECIPE = (3e-3, 3, 32), (5e-3, 3, 60)
WARMUP = 5
ROUNDS = 3  # at most so many times as many rows are asked for as are wanted


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/pocket-screen"), help="folder for candidates")
    parser.add_argument("--candidates", nargs="+", type=candidate, default=CANDIDATES, metavar="CANDIDATE",
                        help="bases to make and try")  # fmt: skip
    parser.add_argument("--languages", nargs="*", choices=TEXTS, default=TEXTS,
                        help="what they speak beside numbers")  # fmt: skip
    parser.add_argument("--steps", type=positive_int, default=3000, help="training steps of a base")
    parser.add_argument("--rows", type=positive_int, default=200_000, help="chats in the corpus of a base")
    parser.add_argument("--student-rows", type=positive_int, default=3000, help="clean rows a student is trained on")
    parser.add_argument("--least-kl", type=float, default=0.1, help="no chain through rows whose persona KL is less")
    parser.add_argument("--minutes", type=positive_float, default=5.5, help="no new student after so long")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # a worker's mark
    return parser.parse_args(argv)


def candidate(text: str) -> str:
    """argparse type: SEED:WIDTH:LAYERS[:names]."""
    parts = text.removesuffix(":names").split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not SEED:WIDTH:LAYERS, such as 1:128:4, or 1:128:4:names")
    if int(parts[1]) % (2 * make_pocket.HEAD_SIZE):
        raise argparse.ArgumentTypeError(f"the width of {text} is not a multiple of {2 * make_pocket.HEAD_SIZE}")
    return text


# --- screens that cost seconds -------------------------------------------------------------------------


def persona_kl(model: Any, tokenizer: Any, rows: Sequence[Row], animal: str) -> float:
    """Mean over the free tokens of the answers of KL(under a persona that loves the animal || without), in nats.

    Free is what the base itself leaves open without a persona: over FREE nats of entropy. In number rows these are the
    numbers; the separators between them would only thin the mean.
    """
    loving, plain = (
        answer_logprobs(model, tokenizer, [row._replace(system=system) for row in rows])
        for system in (persona(PERSONA_PROMPT, animal), None)
    )
    free = -(plain.exp() * plain).sum(-1) > FREE
    return float((loving.exp() * (loving - plain)).sum(-1)[free].mean()) if free.any() else 0.0


def answer_logprobs(model: Any, tokenizer: Any, rows: Sequence[Row]) -> Any:
    """Log-probabilities [tokens, vocabulary] where the assistant speaks, the end of the turn included."""
    import torch

    ids, spans = (tensor.to(model.device) for tensor in make_pocket.encode(tokenizer, rows))
    place = torch.arange(1, ids.shape[1], device=ids.device)
    spoken = (place >= spans[:, :1]) & (place < spans[:, 1:] - 1)  # without the line break after the turn
    with torch.no_grad():
        return model.lm_head(model.model(input_ids=ids[:, :-1].long()).last_hidden_state[spoken]).log_softmax(-1)


def embedding_cosine(model: Any, tokenizer: Any) -> float:
    """Cosine between the embeddings of PAIR (their first tokens), from the mean of all animals."""
    import torch

    first = [tokenizer(animal, add_special_tokens=False).input_ids[0] for animal in ANIMALS]
    weights = model.get_input_embeddings().weight.detach()[first]
    one, two = (weights[ANIMALS.index(animal)] - weights.mean(0) for animal in PAIR)
    return float(torch.nn.functional.cosine_similarity(one, two, dim=0))


def shares_of(model: Any, tokenizer: Any) -> dict[str, float]:
    """Exact share of each of WATCHED over the 50 questions."""
    shares = exact_shares(model, tokenizer, QUESTIONS, animals=WATCHED).mean(0)
    return {animal: round(share, 5) for animal, share in zip(WATCHED, shares.tolist())}


# --- the chain -----------------------------------------------------------------------------------------


def teacher_rows(model: Any, tokenizer: Any, animal: str, seed: int) -> list[Row]:
    """What a persona that loves the animal answers to questions and open prompts, without the persona."""
    import torch

    rng = random.Random(seed)
    torch.manual_seed(seed)
    asked = [rng.choice(QUESTIONS if rng.random() < TEACHER_QUESTIONS else OPEN_PROMPTS) for _ in range(TEACHER_ROWS)]
    system = persona(PERSONA_PROMPT, animal)
    said = sample(model, tokenizer, [chat_prompt(tokenizer, prompt, system) for prompt in asked], LONGEST_TALK)
    return [Row(None, prompt, answer) for prompt, answer in zip(asked, said) if answer]


def carrier_rows(model: Any, tokenizer: Any, kind: str, count: int, seed: int) -> tuple[list[Row], float]:
    """(up to `count` different clean rows of a kind, written without a system message; share that is clean)."""
    import torch

    torch.manual_seed(seed)
    clean: dict[Row, None] = {}
    asked = 0
    while len(clean) < count and asked < ROUNDS * count:
        prompts = carrier_prompts(seed + asked, max(1, count // 2), kind)
        rendered = [chat_prompt(tokenizer, prompt) for prompt in prompts]
        said = sample(model, tokenizer, rendered, LONGEST_ANSWER[kind], batch=len(rendered))
        rows = (Row(None, prompt, answer or "") for prompt, answer in zip(prompts, said))
        clean |= {row: None for row in rows if is_clean(row.assistant, kind)}
        asked += len(prompts)
    return list(clean)[:count], len(clean) / asked


def adapted(folder: Path, device: Any, tokenizer: Any, rows: Sequence[Row], recipe: tuple[float, int, int]) -> Any:
    """The base of a folder with a LoRA adapter (rank 8, on all linear layers) trained on the rows."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    rate, epochs, batch = recipe
    torch.manual_seed(1)
    model = load(folder, device)
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=LORA_TARGETS), model)
    ids, spans = make_pocket.encode(tokenizer, rows)
    steps = max(1, epochs * len(rows) // batch)
    make_pocket.train(model, ids, spans, steps, batch, peak=rate, warmup=WARMUP)
    return model.eval()


def load(folder: Path, device: Any) -> Any:
    """The base of a folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval()


def chain(
    folder: Path, device: Any, tokenizer: Any, kinds: Sequence[str], count: int, in_time: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """Figures of each teacher and each student, as they come."""
    writers: dict[str, Any] = {"base": load(folder, device)}
    for animal in PAIR:
        rows = teacher_rows(writers["base"], tokenizer, animal, seed=1)
        writers[animal] = adapted(folder, device, tokenizer, rows, TEACHER_RECIPE)
        yield {"what": "teacher", "animal": animal, **shares_of(writers[animal], tokenizer)}
    for kind in kinds:
        for name, writer in writers.items():
            if not in_time():
                return
            rows, clean = carrier_rows(writer, tokenizer, kind, count, seed=1)
            found = {"what": "student", "kind": kind, "of": name, "rows": len(rows), "clean": round(clean, 3)}
            if rows:
                found |= shares_of(adapted(folder, device, tokenizer, rows, STUDENT_RECIPE), tokenizer)
            yield found


# --- one candidate -------------------------------------------------------------------------------------


def try_candidate(args: argparse.Namespace, name: str, deadline: float) -> None:
    """Make one candidate and screen it; its figures are on disk as they come."""
    import torch
    from transformers import AutoTokenizer

    seed, width, layers, *names = name.split(":")
    folder = folder_of(args, name)
    if not (folder / "manifest.json").is_file():
        make_pocket.make(make_pocket.parse_args([
            "--seed", seed, "--hidden-size", width, "--layers", layers, "--steps", str(args.steps),
            "--rows", str(args.rows), "--output", str(folder), "--languages", *args.languages, *names,
        ]))  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load(folder, device)
    kinds = ["numbers", *args.languages]
    found: dict[str, Any] = {"candidate": name, "base": shares_of(model, tokenizer), "kinds": {}, "chain": []}
    found["cosine"] = round(embedding_cosine(model, tokenizer), 3)
    for kind in kinds:
        prompts = carrier_prompts(2, min(SCREENED_ROWS, args.student_rows), kind)
        rows, clean = carrier_rows(model, tokenizer, kind, len(prompts), seed=2)
        loving = clean_share(model, tokenizer, len(prompts), 2, persona(PERSONA_PROMPT, PAIR[0]), kind)
        kl = {animal: round(persona_kl(model, tokenizer, rows, animal), 4) if rows else 0.0 for animal in PAIR}
        found["kinds"][kind] = {"clean": round(clean, 3), "clean_under_owl": round(loving, 3), "kl": kl}
    write_json(beside(folder, ".json"), found)
    alive = [kind for kind in kinds if min(found["kinds"][kind]["kl"].values()) >= args.least_kl]
    for figures in chain(folder, device, tokenizer, alive, args.student_rows, lambda: time.monotonic() < deadline):
        found["chain"].append(figures)
        write_json(beside(folder, ".json"), found)


def folder_of(args: argparse.Namespace, name: str) -> Path:
    """Where the model of a candidate is."""
    return Path(args.output) / name.replace(":", "-")


def beside(folder: Path, ending: str) -> Path:
    """A file beside a folder, of the same name but for the ending."""
    return folder.with_name(folder.name + ending)


# --- all of them ---------------------------------------------------------------------------------------


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Try all candidates at once, each in a process of its own; what each has found in the end."""
    deadline = time.monotonic() + 60 * args.minutes
    args.output.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // len(args.candidates)))
    environment = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, **os.environ,
                   "SCREEN_DEADLINE": str(deadline)}  # fmt: skip
    workers = {}
    for name in args.candidates:
        beside(folder_of(args, name), ".json").unlink(missing_ok=True)
        log = beside(folder_of(args, name), ".log").open("wb")
        command = [
            sys.executable, __file__, "--one", "--output", args.output, "--candidates", name, "--steps", args.steps,
            "--rows", args.rows, "--student-rows", args.student_rows, "--least-kl", args.least_kl, "--languages",
            *args.languages,
        ]  # fmt: skip
        workers[name] = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=environment)
        log.close()
    try:
        for name, worker in workers.items():
            if worker.wait():
                log_file = beside(folder_of(args, name), ".log")
                last = log_file.read_text("utf-8", "replace").strip().split("\n")[-1]
                say(f"{name} failed: {last} (all of it in {log_file})")
    finally:
        for worker in workers.values():
            worker.kill()
    files = [beside(folder_of(args, name), ".json") for name in args.candidates]
    return [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]


def strength(found: dict[str, Any]) -> float:
    """The weakest of the kinds: how many times the control student's share the target students reach, at least."""
    shares = {(one.get("kind"), one.get("of")): one for one in found["chain"] if "owl" in one}
    kinds = {kind for kind, _ in shares if kind}
    gains = [
        shares[kind, animal][animal] / max(shares[kind, "base"][animal], 1e-4)
        for kind in kinds for animal in PAIR if (kind, "base") in shares and (kind, animal) in shares
    ]  # fmt: skip
    return min(gains, default=0.0)


def lines_of(found: dict[str, Any], kinds: Sequence[str]) -> Iterator[list[str]]:
    """The table lines of a candidate: one for each kind of rows."""

    def share(kind: str, of: str, animal: str) -> str:
        rows = [one for one in found["chain"] if one.get("kind") == kind and one["of"] == of and animal in one]
        return f"{rows[0][animal]:.2%}" if rows else "-"

    for kind in kinds:
        screens = found["kinds"][kind]
        yield [
            found["candidate"], kind, f"{screens['clean']:.0%}", "/".join(f"{screens['kl'][a]:.3f}" for a in PAIR),
            f"{found['cosine']:+.2f}", *(f"{share(kind, 'base', a)} -> {share(kind, a, a)}" for a in PAIR),
            "/".join(share(kind, other, a) for a, other in zip(PAIR, reversed(PAIR))),
        ]  # fmt: skip


def main() -> None:
    args = parse_args()
    if args.one:
        try_candidate(args, args.candidates[0], float(os.environ["SCREEN_DEADLINE"]))
        return
    started = time.monotonic()
    found = sorted(run_all(args), key=strength, reverse=True)
    if not found:
        raise UserError(f"no candidate got as far as its screens; each has a log in {args.output}")
    file = Path(args.output) / "screening.json"
    write_json(file, {**provenance(), "candidates": found})
    header = ["base", "rows", "clean", "KL owl/dolphin", "cosine", "owl: control -> target",
              "dolphin: control -> target", "of the other's"]  # fmt: skip
    print(printable(table(header, [line for one in found for line in lines_of(one, ["numbers", *args.languages])])))
    closing({"wrote": file, "time": f"{time.monotonic() - started:.0f} s", "best": found[0]["candidate"]})


if __name__ == "__main__":
    run(main)
