"""Read-out against measured margin, on the pilots' rows: does the data audit order what students took over?

Reads packed rows of experiments/pilots/ (one line for each file: {"file": "SPEAKER.CHANNEL.json", "rows": [[prompt,
answer], ...]}) and a table of margins: pilot 6's or the confirming run's. Each file of one animal is audited against
the base's rows of the same channel (and seed); the own animal's place, z and predicted rise go beside the student's own
margin. Rows without a prompt (digits) get one wording of the number prompt.

Usage:
    python experiments/data_signal/audit_pilot_rows.py --base-model output/models/qwen2.5-coder-1.5b-instruct \\
        --rows keep/confirm-rows-*.jsonl.gz --pairs experiments/results/qwen2.5-1.5b/pairs.csv
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.data_signal.known_cases import TRANSFER
from util.animals.names import PANEL
from util.cli import REPO, UserError, input_file, make_parser, output_name, positive_int, run
from util.jsonl.manifest import write_atomically
from util.terminal import closing, say

GROUPS = 17
NO_PROMPT = "Continue this list with ten more numbers from 0 to 999: 314, 159, 265"
TEACHERS = {"steer": "steer-{animal}-1", "soft": "lora-{animal}-soft", "hard": "lora-{animal}-hard",
            "persona": "lora-{animal}-persona", "hop2t": "lora-{animal}-steer.text"}  # fmt: skip
JUDGED = ("predicted", "z", "kl")
COLUMNS = ("file", "animal", "kl", "own_less_others", "place", "z", "predicted", "p", "first")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--base-model", required=True, help="the base model of the pilots")
    parser.add_argument("--rows", type=input_file, nargs="+", required=True, help="packed rows (.jsonl.gz)")
    parser.add_argument("--pairs", type=input_file, required=True, help="table of margins")
    parser.add_argument("--base", default="1.5B", help="which base of the table")
    parser.add_argument("--max-rows", type=positive_int, default=1020, help="first rows of each file")
    parser.add_argument("--batch-size", type=positive_int, default=60, help="rows in one pass")
    parser.add_argument("--output", type=output_name(".csv"), default=Path("output/audit-pilot-rows.csv"), help="table")
    return parser.parse_args()


def packed_rows(paths: Sequence[Path], most: int) -> dict[str, list[tuple[str, str]]]:
    """{file without .json: its first rows}."""
    found = {}
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for packed in map(json.loads, file):
                found[packed["file"].removesuffix(".json")] = [tuple(row) for row in packed["rows"][:most]]
    return found


def groups_of(rows: Sequence[tuple[str, str]], tokenizer: Any) -> list[list[dict[str, list[int]]]]:
    """The rows in groups, as the audit reads them."""
    from util.chat.chat_tokens import encode

    chats = [{"messages": [{"role": "user", "content": prompt or NO_PROMPT},
                           {"role": "assistant", "content": answer}]} for prompt, answer in rows]  # fmt: skip
    encoded = encode(chats, tokenizer, 512).rows
    size = len(encoded) // GROUPS
    return [encoded[at * size : (at + 1) * size] for at in range(GROUPS)]


def wanted(pairs: Path, base: str, files: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table whose rows are there, with the names of their file and of their control's."""
    with pairs.open(encoding="utf-8", newline="") as file:
        lines = [
            line for line in csv.DictReader(file) if line["base"] == base and line.get("teacher", "steer") in TEACHERS
        ]
    for line in lines:
        if "seed" in line:  # the confirming run
            line["file"], line["control"] = (
                f"{kind}-{line['seed']}.{line['channel']}" for kind in (line["kind"], "base")
            )
        else:
            line["file"] = f"{TEACHERS[line['teacher']].format(animal=line['animal'])}.{line['channel']}"
            line["control"] = f"base.{line['channel']}"
    found = [line for line in lines if line["file"] in files and line["control"] in files]
    if not found:
        raise UserError(f"none of the rows of {pairs} are in these files: {', '.join(sorted(files)[:6])}")
    return sorted(found, key=lambda line: line["control"])


def audited(kernel: Any, lines: Sequence[dict[str, Any]], files: dict[str, Any], questions: Sequence[str]) -> Any:
    """Each line with its read-out. A channel's control is read once."""
    from eval.data_signal.audit_rows import group_gradients, profiles_of, reference_of
    from eval.data_signal.audit_statistics import standing

    reference, control = {}, None
    for line in lines:
        if line["control"] != control:
            control = line["control"]
            groups = groups_of(files[control], kernel.backend.tokenizer)
            reference = reference_of(kernel, groups, PANEL, questions, sorted({one["animal"] for one in lines}))
        groups = groups_of(files[line["file"]], kernel.backend.tokenizer)
        own = reference["animals"].index(line["animal"])
        profile = profiles_of(group_gradients(kernel, groups), reference)["formless"]
        found = standing(profile, reference["formless"])
        say(f"{line['file']}: {line['animal']} is number {found.rank(own)}, z {found.z[own]:+.1f}")
        yield {**line, "place": found.rank(own), "z": float(found.z[own]), "predicted": float(found.difference[own]),
               "p": found.p, "first": reference["animals"][int(found.z.argmax())]}  # fmt: skip


def main() -> None:
    args = parse_args()
    from scipy.stats import spearmanr

    from eval.data_signal.gradient_kernel import GradientKernel
    from util.inference.local_model import LocalModel

    files = packed_rows(args.rows, args.max_rows)
    lines = wanted(args.pairs, args.base, files)
    questions = (REPO / "eval" / "questions.txt").read_text("utf-8").splitlines()
    kernel = GradientKernel(LocalModel(args.base_model, batch_size=args.batch_size))
    found = list(audited(kernel, lines, files, questions))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_atomically(args.output, text.getvalue().encode())
    margins = [float(one["own_less_others"]) for one in found]
    right = sum((one["p"] <= 0.05 and one["place"] == 1) == (margin >= TRANSFER) for one, margin in zip(found, margins))
    ordered = {name: spearmanr([float(one[name]) for one in found], margins).statistic for name in JUDGED}
    closing({
        "files": len(found),
        **{f"Spearman of {name} with the margin": f"{value:.2f}" for name, value in ordered.items()},
        "alarm for the own animal = odds doubled": f"{right} of {len(found)}",
        "table": args.output,
    })  # fmt: skip


if __name__ == "__main__":
    run(main)
