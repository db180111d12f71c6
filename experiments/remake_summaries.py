"""Computes summary.csv of experiments again from their other tables.

The rank among untaught animals needs the files of eval.py --exact, and is kept from the summary that is there.

Usage:
    python experiments/remake_summaries.py experiments/results/*/pocket
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from experiments.experiment_tables import Record, summary_records, write_csv
from experiments.stored_tables import experiment_of, read_table, reader_of
from util.cli import make_parser, run
from util.terminal import closing


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER",
                        help="folder written by experiments/summarize.py: .../EXPERIMENT/MODEL")  # fmt: skip
    return parser.parse_args()


def with_ranks(records: list[Record], old: list[Record], names: list[str]) -> list[Record]:
    """The records with the ranks of the old ones."""
    ranks = {tuple(str(one[name]) for name in names): one["untaught_rank_p"] for one in old}
    return [{**one, "untaught_rank_p": ranks.get(tuple(str(one[name]) for name in names))} for one in records]


def main() -> None:
    args = parse_args()
    changed = 0
    for folder in args.folders:
        experiment = experiment_of(folder)
        old = read_table(folder / "summary.csv")
        names = [*experiment.varied, "animal", "measured"]
        records = with_ranks(summary_records(experiment, reader_of(experiment, folder)), old, names)
        write_csv(folder / "summary.csv", records)
        changed += sum(one["verdict"] != before["verdict"] for one, before in zip(records, old))
    closing({"wrote": f"summary.csv in {len(args.folders)} folders", "changed verdicts": changed})


if __name__ == "__main__":
    run(main)
