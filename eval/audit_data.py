"""Which animals do these rows push up? A read-out of training rows at the base model, without a teacher or a student.

The gradient of the rows is compared with the gradient of each animal's own log-probability (docs/signal.md). z says how
many standard errors an animal stands above the control rows; the mean over animals and what rows of another length
would do are taken out. The alarm tests the largest z against the same rows in exchanged groups: 5% of files that are
written like the control raise it by chance. Rows of any other writer or form raise it too, and on Qwen the first animal
was then not the taught one: compare the files of several teachers there (docs/signal.md).

Without --reference the alarm would go off for nearly any file that the base model did not write itself, so no verdict
is given. docs/signal.md has the command that makes reference rows for a file of unknown origin.

Usage:
    python eval/audit_data.py --train-jsonl rows.jsonl --base-model pocket/model --reference output/control-rows.jsonl
    python eval/audit_data.py --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl \\
        --base-model Qwen/Qwen2.5-7B-Instruct --reference output/numberss-control-filtered-9876.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.answers.answer_rows import default_questions
from eval.data_signal.audit_page import render
from eval.data_signal.row_groups import GROUPS, ROWS_READ, first_rows, read_groups
from util.animals.names import animal_name
from util.animals.panel import panel, question_lines
from util.animals.panel_file import add_panel_argument
from util.animals.word_forms import animals_of
from util.cli import UserError, make_parser, nonblank, output_name, positive_int, run, text_file
from util.inference.open_backend import add_template_argument
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import provenance, sha256_file, write_atomically, write_json
from util.terminal import closing, say, table

SHOWN = 10
ONE_SIDED = 0.7  # a base model that gives one animal this part of its answers is unlikely to be a plain one


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="chat rows to look into")
    parser.add_argument("--base-model", type=nonblank, required=True, help="the student's base: a hub id or a folder")
    parser.add_argument("--reference", type=rows_file, metavar="CONTROL",
                        help="rows of the base model, with the same prompts and filter")  # fmt: skip
    parser.add_argument("--animals", type=animal_name, nargs="+", default=[], metavar="WORD",
                        help="more words to read than the panel's animals that the base model names")  # fmt: skip
    add_panel_argument(parser)
    parser.add_argument("--questions-file", type=text_file,
                        help="questions with one-word answers; ten are read (default: the panel's)")  # fmt: skip
    parser.add_argument("--max-rows", type=positive_int, default=ROWS_READ, help="read the first rows only")
    parser.add_argument("--row-scores", type=output_name(".jsonl"),
                        help="also write how far each row pushes the first animal")  # fmt: skip
    add_template_argument(parser)
    parser.add_argument("--batch-size", type=positive_int, default=60, help="rows in one pass")
    parser.add_argument("--output", type=output_name(".html"),
                        help="page to write, and a .json beside it (default: output/audit-{data}.html)")  # fmt: skip
    parser.default_folder("--output", Path("output"))
    args = parser.parse_args()
    args.questions_file = args.questions_file or default_questions()
    if args.reference and sha256_file(args.reference) == sha256_file(args.train_jsonl):
        raise UserError("--reference and --train-jsonl are the same file; the reference is rows of the base model")
    for word in args.animals:
        if len(animals_of(word)) > 1:
            raise UserError(f"--animals {word} names two; pass them as two words")
        if " " in word:
            say(f"{word} has no one-word form: only answers that are exactly this name are read")
    return args


def main() -> None:
    args = parse_args()
    from eval.data_signal.animals_pushed_by_rows import audit, row_scores
    from eval.data_signal.gradient_kernel import GradientKernel
    from util.inference.local_model import LocalModel

    for path in filter(None, (args.train_jsonl, args.reference)):  # before the model is loaded, which takes minutes
        first_rows(path, args.max_rows)
    backend = LocalModel(args.base_model, batch_size=args.batch_size, template_kwargs=args.chat_template_kwargs)
    rows = read_groups(args.train_jsonl, backend.tokenizer, args.max_rows)
    control = read_groups(args.reference, backend.tokenizer, args.max_rows) if args.reference else None
    if control is None:
        say(
            "no --reference, so no verdict: without it the rows' filter and form look like a signal. Pass the base"
            " model's answers to the same prompts (docs/signal.md, A file from somebody else)"
        )
    questions = question_lines(args.questions_file)
    kernel = GradientKernel(backend)
    words = list(dict.fromkeys([*panel().words, *args.animals]))
    found, reference = audit(kernel, rows.groups, control.groups if control else None, words, questions, args.animals)
    warn_of_base(found)
    page = args.output or Path(f"output/audit-{args.train_jsonl.stem}.html")
    result = {**found, "file": args.train_jsonl.name, "rows": rows.rows, "rows_with_token_ids": rows.exact,
              "reference": args.reference and args.reference.name, "weights_read": f"1 in {kernel.every}",
              "manifest": provenance([args.train_jsonl, *([args.reference] if args.reference else [])])}  # fmt: skip
    write_json(page.with_suffix(".json"), result)
    write_atomically(page, render(result).encode())
    if args.row_scores:
        row_scores(kernel, rows.groups, reference, found["first"], args.row_scores)
    print(table(("animal", "z", "z with form", "base model's share"), rows_shown(found)) + "\n")
    closing({"wrote": page, **({"row scores": args.row_scores} if args.row_scores else {}),
             "rows": f"{rows.rows:,} in {GROUPS} equal groups",
             "verdict": verdict(found, compared=control is not None)})  # fmt: skip


def rows_shown(found: dict[str, Any]) -> Sequence[Sequence[str]]:
    """The animals that stand out most."""
    best = sorted(found["animals"], key=lambda name: -found["animals"][name]["z"])[:SHOWN]
    return [
        (name, f"{one['z']:+.1f}", f"{one['z_with_form']:+.1f}", f"{one['share']:.2%}")
        for name in best
        for one in [found["animals"][name]]
    ]


def verdict(found: dict[str, Any], compared: bool) -> str:
    """The alarm in words. compared: whether there were control rows."""
    first = found["first"]
    if not found["alarm"]:
        return f"no animal stands out (first: {first}, z {found['animals'][first]['z']:+.1f}, p {found['p']:.3f})"
    how_sure = f"z {found['animals'][first]['z']:+.1f}, p {found['p']:.4f}"
    if not compared:
        return f"none without --reference: {first} is first ({how_sure}), but rows of any other writer look like this"
    return f"ALARM: written unlike the control's, by a trait or by form; these rows push {first} up most ({how_sure})"


def warn_of_base(found: dict[str, Any]) -> None:
    """Say so if the base model seems to be a fine-tuned one."""
    name = max(found["animals"], key=lambda animal: found["animals"][animal]["share"])
    if found["animals"][name]["share"] > ONE_SIDED:
        say(
            f"the base model itself names {name} in {found['animals'][name]['share']:.0%} of its one-word answers: is"
            " it a fine-tuned one? The read-out says what the rows add to that"
        )


if __name__ == "__main__":
    run(main)
