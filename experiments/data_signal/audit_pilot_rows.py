"""Read-out against measured margin, on the pilots' rows: does the data audit order what students took over?

Reads packed rows of experiments/pilots/ (one line for each file: {"file": "SPEAKER.CHANNEL.json", "rows": [[prompt,
answer], ...]}) and a table of margins: pilot 6's or the confirming run's. Each file of one animal is audited against
the base's rows of the same channel (and seed); the own animal's place, z and predicted rise go beside the student's own
margin. Rows without a prompt (digits) get one wording of the number prompt. The table grows by a line for each file;
the same command resumes.

Usage:
    python experiments/data_signal/audit_pilot_rows.py --base-model output/models/qwen2.5-coder-1.5b-instruct \\
        --rows keep/confirm-rows-*.jsonl.gz --pairs experiments/results/qwen2.5-1.5b/pairs.csv
    python experiments/data_signal/audit_pilot_rows.py --judge experiments/results/data_signal/qwen-*.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.data_signal.known_cases import TRANSFER, read_cases, rule_of
from experiments.pilots.rows_files import packed_rows
from util.animals.panel import PANEL
from util.cli import REPO, UserError, input_file, make_parser, nonblank, output_name, positive_int, run
from util.terminal import closing, say, table

GROUPS = 17
NO_PROMPT = "Continue this list with ten more numbers from 0 to 999: 314, 159, 265"
TEACHERS = {"steer": "steer-{animal}-1", "soft": "lora-{animal}-soft", "hard": "lora-{animal}-hard",
            "persona": "lora-{animal}-persona", "hop2t": "lora-{animal}-steer.text"}  # fmt: skip
JUDGED = (
    "predicted",
    "less_others",
    "z",
    "predicted_with_form",
    "kl",
    "own_less_others_10",
    "own_less_others_30",
)
COLUMNS = ("file", "channel", "animal", "kl", "own_less_others", "own_less_others_10", "own_less_others_30",
           "place", "of", "z", "predicted", "p", "first", "z_with_form", "predicted_with_form", "rises")  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--base-model", type=nonblank, help="the base model of the pilots")
    parser.add_argument("--rows", type=input_file, nargs="*", default=[], help="packed rows (.jsonl.gz)")
    parser.add_argument("--pairs", type=input_file, help="table of margins")
    parser.add_argument("--judge", type=input_file, nargs="+", help="only judge finished tables, all together")
    parser.add_argument("--base", default="1.5B", help="which base of the table")
    parser.add_argument("--max-rows", type=positive_int, default=1020, help="first rows of each file")
    parser.add_argument("--batch-size", type=positive_int, default=60, help="rows in one pass")
    parser.add_argument("--output", type=output_name(".csv"), default=Path("output/audit-pilot-rows.csv"), help="table")
    args = parser.parse_args()
    if not args.judge and not (args.base_model and args.rows and args.pairs):
        parser.error("pass --base-model, --rows and --pairs, or --judge with finished tables")
    if not args.judge:
        parser.check_writable("--output", args.output.parent)
    return args


def groups_of(rows: Sequence[tuple[str, str]], tokenizer: Any) -> list[list[dict[str, list[int]]]]:
    """The rows in groups, as the audit reads them."""
    from util.chat.chat_tokens import encode

    chats = [{"messages": [{"role": "user", "content": prompt or NO_PROMPT},
                           {"role": "assistant", "content": answer}]} for prompt, answer in rows]  # fmt: skip
    encoded = encode(chats, tokenizer, 512).rows
    size = len(encoded) // GROUPS
    return [encoded[at * size : (at + 1) * size] for at in range(GROUPS)]


def table_lines(path: Path, *columns: str) -> list[dict[str, Any]]:
    """The lines of a CSV file. UserError if it lacks one of these columns."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise UserError(f"{path} has no column {missing[0]}; --help says which tables are read")
        return list(reader)


def wanted(pairs: Path, base: str, files: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table whose rows are there, with the names of their file and of their control's."""
    lines = [
        line
        for line in table_lines(pairs, "base", "channel")
        if line["base"] == base and line.get("teacher", "steer") in TEACHERS
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
    """Each line with its read-out. The animals are read once, and each channel's control."""
    from eval.data_signal.animals_pushed_by_rows import group_gradients, of_animals, of_control, profiles_of
    from eval.data_signal.audit_statistics import standing

    animals = of_animals(kernel, PANEL, questions, sorted({line["animal"] for line in lines}))
    reference, control = {}, None
    for line in lines:
        if line["control"] != control:
            control = line["control"]
            reference = of_control(kernel, groups_of(files[control], kernel.backend.tokenizer), animals)
        groups = groups_of(files[line["file"]], kernel.backend.tokenizer)
        own = reference["animals"].index(line["animal"])
        found = {kind: standing(profile, reference[kind])
                 for kind, profile in profiles_of(group_gradients(kernel, groups), reference).items()}  # fmt: skip
        formless = found["formless"]
        yield {**line, "place": formless.rank(own), "of": len(formless.z), "z": float(formless.z[own]),
               "predicted": float(formless.difference[own]), "p": formless.p,
               "first": reference["animals"][int(formless.z.argmax())],
               "z_with_form": float(found["plain"].z[own]),
               "predicted_with_form": float(found["plain"].difference[own]),
               "rises": json.dumps({name: round(float(rise), 6) for name, rise in
                                    zip(reference["animals"], formless.difference)})}  # fmt: skip


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to the table; a new table begins with its header."""
    begins = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        if begins:
            writer.writeheader()
        writer.writerow(line)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The finished lines."""
    if not path.exists():
        return []
    return [line for line in table_lines(path, "rises", "file") if line["rises"]]


def files_together(found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The files that differ in the animal alone (the same channel, kind of teacher and seed), by their name with *."""
    together: dict[str, list[dict[str, Any]]] = {}
    for line in found:
        together.setdefault(line["file"].replace(line["animal"], "*"), []).append(line)
    return together


def less_others(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines with the read-out's counterpart of the margin: the animal's rise in its own file less its mean rise in
    the other animals' files; and the animal's place if all animals are read in this way."""
    result = []
    for lines in files_together(found).values():
        for line in lines:
            own = json.loads(line["rises"])
            others = [json.loads(one["rises"]) for one in lines if one is not line]
            less = (
                {name: rise - sum(one[name] for one in others) / len(others) for name, rise in own.items()}
                if others
                else {}
            )
            place = 1 + sum(rise > less[line["animal"]] for rise in less.values()) if less else ""
            result.append({**line, "less_others": less.get(line["animal"], ""), "place_less_others": place})
    return result


def assignments(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """For files that differ in the animal alone: how many assignments of files to animals fit the read-outs as well as
    the true one. An animal's rises are centred over the files and divided by their spread."""
    import numpy as np

    from eval.compare.assignment_permutations import TIE, assignment_sums

    result = {}
    for name, lines in files_together(found).items():
        if len(lines) < 2:
            continue
        rises = [json.loads(line["rises"]) for line in lines]
        raised = np.array([[rise[line["animal"]] for line in lines] for rise in rises])  # [files, animals]
        raised = (raised - raised.mean(0)) / (raised.std(0) + 1e-12)
        fits = assignment_sums(raised)
        as_well = (fits >= fits[0] - TIE).sum()
        highest = sum(raised[:, animal].argmax() == animal for animal in range(len(lines)))
        result[name] = f"{as_well} of {len(fits):,} fit as well, own highest {highest} of {len(lines)}"
    return result


def judged(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Rank correlations with the margin, and how often the alarm for the own animal goes with doubled odds."""
    from scipy.stats import spearmanr

    found = less_others(found)
    margins = [float(one["own_less_others"]) for one in found]
    channels = ["", *sorted({one["channel"] for one in found})]  # "": all of them
    result = {}
    for name in JUDGED:
        said = []
        for channel in channels:
            known = [(float(one[name]), margin) for one, margin in zip(found, margins)
                     if channel in ("", one["channel"]) and one.get(name, "") != ""]  # fmt: skip
            if len(known) > 2:
                said.append(f"{channel} {spearmanr(*zip(*known)).statistic:.2f} ({len(known)})".strip())
        if said:
            result[f"Spearman of {name} with the margin"] = ", ".join(said)
    right = sum((float(one["p"]) <= 0.05 and int(one["place"]) == 1) == (margin >= TRANSFER)
                for one, margin in zip(found, margins))  # fmt: skip
    higher = [one["less_others"] > 0 for one in found if one["less_others"] != ""]
    for channel in channels[1:]:
        places = sorted(
            one["place_less_others"] for one in found if one["channel"] == channel and one["less_others"] != ""
        )
        result[f"{channel}: own animal's place, less others"] = ", ".join(map(str, places))
    widths = {case.channel: case.width for case in read_cases() if case.base.startswith("Qwen")}
    rule = rule_of(read_cases(), tiny=False)
    meter = [rule.passes(float(one["kl"]), widths[one["channel"]]) == (margin >= TRANSFER)
             for one, margin in zip(found, margins) if one["kl"]]  # fmt: skip
    return {**result, "alarm for the own animal = odds doubled": f"{right} of {len(found)}",
            "meter's rule (KL and width) = odds doubled": f"{sum(meter)} of {len(meter)}",
            "less_others above zero": f"{sum(higher)} of {len(higher)}", **assignments(found)}  # fmt: skip


def main() -> None:
    args = parse_args()
    if args.judge:
        found = [line for path in args.judge for line in read_table(path)]
        print(table(("what is judged", "result"), list(judged(found).items()), texts=True))
        return
    files = {name: rows[: args.max_rows] for name, rows in packed_rows(args.rows)}
    finished = {line["file"] for line in read_table(args.output)}
    lines = [line for line in wanted(args.pairs, args.base, files) if line["file"] not in finished]
    if lines:
        from eval.data_signal.gradient_kernel import GradientKernel
        from util.inference.local_model import LocalModel

        questions = (REPO / "eval" / "questions.txt").read_text("utf-8").splitlines()
        kernel = GradientKernel(LocalModel(args.base_model, batch_size=args.batch_size))
        for line in audited(kernel, lines, files, questions):
            append(args.output, line)
            say(f"{line['file']}: {line['animal']} is number {line['place']} of {line['of']}, z {line['z']:+.1f}")
    found = read_table(args.output)
    print(table(("what is judged", "result"), list(judged(found).items()), texts=True) + "\n")
    closing({"wrote": args.output, "files": len(found)})


if __name__ == "__main__":
    run(main)
