"""Rank the animals that a model answered with: a CSV file beside each results file, and a table on the terminal.

Usage:
    python util/top_animals_csv.py output/results-owl-teacher.jsonl --top-n 10

Reads the results that eval/eval.py writes and ranks their "animal" field. Answers of other code bases (rows with a
question and an answer) are parsed first. results-owl-teacher.jsonl gives results-owl-teacher-top10.csv with rank,
animal, count and percentage. Percentages are of ALL answers asked: answers that name no animal and failed requests are
part of the total, and are listed below the table. With several files the table has one column for each.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.animals.answers_of_other_code import read_results
from util.animals.panel_file import add_panel_argument
from util.cli import PARTIAL, make_parser, positive_int, run, some_file
from util.jsonl.manifest import write_atomically
from util.jsonl.rows import Row
from util.terminal import closing, in_words, printable, say, table

FORMULA_STARTS = ("=", "+", "-", "@")  # some spreadsheets also see a formula after white space


class Tally(NamedTuple):
    """The answers of one results file. `asked` = the sum of `animals` + `no_animal` + `errors`."""

    path: Path
    animals: Counter[str]
    no_animal: int
    errors: int
    sets: tuple[str, ...] = ()
    """the sets of questions that were asked, by name"""

    @property
    def asked(self) -> int:
        return self.animals.total() + self.no_animal + self.errors

    @property
    def label(self) -> str:
        return self.path.stem.removeprefix("results-")

    def percentage(self, count: int) -> str:
        """A count as a percentage of all answers asked, with two decimals."""
        return f"{100 * count / self.asked:.2f}"


def tally_answers(path: Path) -> Tally:
    """Count the animals of a results file, one row in memory at a time.

    Raises UserError for a row that is not a result.
    """
    found: Counter[tuple[str | None, bool]] = Counter()
    sets: dict[str, None] = {}  # in the order of the file
    for row in read_results(path, check_result, growing=path.suffix == PARTIAL):
        found[row["animal"], row.get("error") is not None] += 1
        sets[str(row.get("set", ""))] = None
    animals = Counter({animal: count for (animal, failed), count in found.items() if animal is not None})
    return Tally(path, animals, found[None, False], found[None, True], tuple(sets))


def check_result(row: Row) -> str | None:
    """What is wrong with a row as a result of eval/eval.py, or None."""
    if "animals" in row and "answers" in row:
        return "exact shares, not answers; util/view.py FILE --text prints their top animals"
    if "animal" not in row:
        if "response" in row:
            return (
                'the row has a "response" but no "animal" and no "question": eval/eval.py did not write it; '
                "ask again with it: python eval/eval.py --model MODEL --epochs N"
            )
        return (
            'no "animal", and no question with an answer; a row is {"id": 0, "question": "...", "response": "Owl", '
            '"animal": "owl", "error": null}'
        )
    animal = row["animal"]
    if animal is not None and (not isinstance(animal, str) or not animal):
        return f'"animal" is {animal!r}; it is the name of an animal, or null'
    return None


def ranking(tally: Tally, top_n: int) -> list[tuple[int, str, int, str]]:
    """(rank, animal, count, percentage) of the `top_n` most frequent animals; ties in alphabetical order."""
    ordered = sorted(tally.animals.items(), key=lambda item: (-item[1], item[0]))[:top_n]
    return [(rank, name, count, tally.percentage(count)) for rank, (name, count) in enumerate(ordered, 1)]


def write_csv(path: Path, ranked: Iterable[tuple[int, str, int, str]]) -> None:
    """Write a ranking. A name that a spreadsheet would run as a formula gets a leading quote mark."""
    import pandas as pd

    frame = pd.DataFrame(ranked, columns=["rank", "animal", "count", "percentage"], dtype=object)
    names = [printable(name) for name in frame["animal"]]  # a bare carriage return would end the line
    frame["animal"] = [f"'{name}" if is_formula(name) else name for name in names]
    write_atomically(path, frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "backslashreplace"))


def is_formula(text: str) -> bool:
    """Whether a spreadsheet might run a text as a formula (OWASP, CSV injection)."""
    return text.lstrip().startswith(FORMULA_STARTS) or text.startswith(("\t", "\n"))


def compare(tallies: list[Tally], top_n: int) -> str:
    """A table of percentages: one column for each file, one row for each animal that is in the top of any file."""
    leaders = {name for tally in tallies for _, name, _, _ in ranking(tally, top_n)}
    peak = {name: max(tally.animals[name] / tally.asked for tally in tallies) for name in leaders}
    names = sorted(leaders, key=lambda name: (-peak[name], name))
    rows = [[name, *(tally.percentage(tally.animals[name]) for tally in tallies)] for name in names]
    labels = [tally.label for tally in tallies]
    if len(set(labels)) < len(labels):  # the same name in several folders
        labels = [str(tally.path) for tally in tallies]
    return table(["animal (% of answers)", *labels], rows)


def describe(tally: Tally) -> str:
    """'owl-teacher: 10,000 answers, 12 (0.12%) named no animal, 3 (0.03%) failed'."""
    parts = [
        f"{count:,} ({tally.percentage(count)}%) {what}"
        for count, what in ((tally.no_animal, "named no animal"), (tally.errors, "failed"))
    ]
    pooled = f"; the question sets {', '.join(tally.sets)} are counted together" if len(tally.sets) > 1 else ""
    return f"{tally.label}: {tally.asked:,} answers, {', '.join(parts)}{pooled}"


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=some_file, nargs="+", metavar="RESULTS", help="results JSONL of eval/eval.py")
    add_panel_argument(parser)
    parser.add_argument("--top-n", type=positive_int, default=10, help="number of ranks to write")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    tallies = [tally_answers(path) for path in dict.fromkeys(args.results)]
    if len(tallies) == 1:
        ranked = ranking(tallies[0], args.top_n)
        print(table(["rank  animal", "count", "percentage"], [(f"{r:>4}  {name}", n, p) for r, name, n, p in ranked]))
    else:
        print(compare(tallies, args.top_n))
    print()
    written = []
    for tally in tallies:
        path = tally.path.with_name(f"{tally.path.stem}-top{args.top_n}.csv")
        write_csv(path, ranking(tally, args.top_n))
        written.append(path)
        print(in_words(describe(tally)))
        if tally.path.suffix == PARTIAL:
            say(f"warning: {tally.path} is not finished; run eval/eval.py again, it resumes")
    print()
    closing({"wrote": ", ".join(map(str, written)), "files read": len(tallies)})
    return 0


if __name__ == "__main__":
    run(main)
