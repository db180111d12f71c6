"""Parse the stored answers of a results file again, after a change of the answer parser. No model is asked.

Every row is copied with the animal that its response names under the current rules
(util/animals/answer_parser.py). Answers of other code bases become rows of this suite. The old file is not changed. The
new one has its own manifest, with the settings of the old one and the current parser version.

Usage:
    python eval/rescore.py output/results-owl-student.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.answers.answer_rows import check_answer, check_id
from eval.answers.print_answer_summary import summary, target_animal
from util.animals.answer_parser import canonical_animal, parser_facts
from util.animals.answers_of_other_code import read_results
from util.animals.names import animal_name
from util.animals.panel_file import add_panel_argument
from util.cli import UserError, input_file, make_parser, run
from util.jsonl.manifest import Manifest, sha256_file
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row
from util.terminal import closing, say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=input_file, metavar="FILE", help="results JSONL of eval/eval.py")
    parser.add_argument("--animal", type=animal_name,
                        help="the animal whose share is printed (default: found in the file's name)")  # fmt: skip
    add_panel_argument(parser)
    add_output_arguments(parser, "FILE-rescored.jsonl beside it")
    return parser.parse_args()


def rescored(row: Row) -> Row:
    """The row with the animal that its response names under the current rules."""
    return {**row, "animal": None if row["response"] is None else canonical_animal(row["response"])}


def check_response(row: Row) -> str | None:
    """Why a row cannot be parsed again, or None."""
    if "response" not in row or "animal" not in row:
        return 'no "response" and "animal": not sampled answers of eval.py (an exact file has shares, not answers)'
    return check_id(row) or check_answer(row)


def check_ids(path: Path, rows: list[Row]) -> None:
    """Raise UserError if two rows have one id: only one of them would be kept."""
    ids = Counter(row["id"] for row in rows)
    if twice := [number for number, count in ids.items() if count > 1]:
        raise UserError(f"{path}: {ids[twice[0]]} rows have the id {twice[0]}; give each row an id of its own")


def main() -> None:
    args = parse_args()
    path = args.output or args.results.with_name(f"{args.results.stem}-rescored.jsonl")
    answers = list(read_results(args.results, check_response))  # before anything is written
    check_ids(args.results, answers)
    rows = [rescored(row) for row in answers]
    before = (Manifest.read(args.results) or Manifest()).settings
    settings = {**before, "parser": parser_facts(), "rescored_sha256": sha256_file(args.results)}
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.results]) as out:
        if not out.complete:
            out.append(rows)
            out.finish()
        facts = out.facts()
    changed = sum(old["animal"] != new["animal"] for old, new in zip(answers, rows))
    target = target_animal(args.results.stem, args.animal)
    if args.animal is None and target:
        say(f"no --animal: using {target}, found in the name of the file")
    found = summary(path, target)
    print(f"{found.animals}\n")
    closing({**facts, "rows": f"{facts['rows']} ({changed:,} changed)", **found.facts})


if __name__ == "__main__":
    run(main)
