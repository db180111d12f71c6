"""Lists the runs of an experiment, as the files that its students' measurements will be. Nothing is run.

Usage:
    python experiments/list_runs.py teacher_strength --model pocket
    python experiments/list_runs.py all --model qwen7b
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from experiments.experiment_yaml import read_experiments
from util.cli import REPO, make_parser, run


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("names", metavar="NAME[,NAME...]", help="experiments, or all")
    parser.add_argument("--model", default="pocket", help="a model of experiments/models.yaml")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.chdir(REPO)  # as in the workflow, paths are relative to the repository
    for experiment in read_experiments(args.names, args.model):
        print(f"{experiment.name}: {len(experiment.runs)} students and {len(experiment.controls)} control students")
        for one in (*experiment.runs, *experiment.controls):
            print(f"  {one.exact}")


if __name__ == "__main__":
    run(main)
