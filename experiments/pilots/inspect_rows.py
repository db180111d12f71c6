"""What a sceptic looks for in the rows of a pilot: names inside other words, and how well words tell the arms apart.

Reads rows files, a line for each speaker and channel: {"file": "SPEAKER.CHANNEL.json", "rows": [[prompt, text], ...]}.
For each: rows that hold the animal's name inside another word (the filter drops whole words only), and for 0, 50 and
200 dropped words the rows left and the area under the curve of a naive Bayes classifier of words (half of the rows
against half of the control's, both after the filter, tested on the rest; 0.5 is chance); and how many percent of the
distinct words of a row begin with the animal's first letter, in its rows and in the control's.

Usage:
    python experiments/pilots/inspect_rows.py rows-text.jsonl.gz --animals owl penguin --output rows.csv
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.rows_files import packed_rows
from experiments.pilots.word_filters import telling_words, words_of
from util.cli import input_file, make_parser, run

INNOCENT = {"owl": "slowly|bowl|knowledg|growl|howl|prowl|narrowly|windowl|towl|lowl"}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=input_file, nargs="+")
    parser.add_argument("--animals", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def area(rows: list[str], control: list[str]) -> float:
    """Area under the curve of naive Bayes on words."""
    one, other = rows.copy(), control.copy()
    random.Random(1).shuffle(one)
    random.Random(2).shuffle(other)
    half = min(len(one), len(other)) // 2
    if half < 30:
        return math.nan
    here, there = (Counter(word for text in some[:half] for word in words_of(text)) for some in (one, other))
    weight = {word: math.log((here[word] + 1) / (there[word] + 1)) for word in here | there}
    scored = [(sum(weight.get(word, 0) for word in words_of(text)), 1) for text in one[half:]]
    scored += [(sum(weight.get(word, 0) for word in words_of(text)), 0) for text in other[half:]]
    ranks = sum(place for place, (_, own) in enumerate(sorted(scored), 1) if own)
    own = len(one) - half
    return (ranks - own * (own + 1) / 2) / (own * (len(scored) - own))


def names_inside(rows: list[str], animal: str) -> int:
    innocent = INNOCENT.get(animal)
    texts = (re.sub(innocent, "", text, flags=re.IGNORECASE) if innocent else text for text in rows)
    return sum(animal in text.lower() for text in texts)


def with_letter(rows: list[str], letter: str) -> str:
    """Percent of the rows' distinct words that begin with the letter."""
    words = [word for text in rows for word in words_of(text)]
    return f"{100 * sum(word.startswith(letter) for word in words) / max(len(words), 1):.2f}"


def main() -> None:
    args = parse_args()
    found = {name: [answer for _, answer in rows] for name, rows in packed_rows(args.rows)}
    lines = []
    for name, rows in sorted(found.items()):
        animal = next((animal for animal in args.animals if f"-{animal}-" in f"-{name}"), None)
        if not animal:
            continue
        channel = name.rpartition(".")[2]
        control = found.get(f"base.{channel}") or found[f"base-{name.partition('.')[0].rpartition('-')[2]}.{channel}"]
        telling = telling_words(rows, control, 200)
        cells = [name, len(rows), names_inside(rows, animal)]
        for count in (0, 50, 200):
            dropped = set(telling[:count])
            left, left_control = ([text for text in some if not words_of(text) & dropped] for some in (rows, control))
            cells += [len(left), f"{area(left, left_control):.2f}"]
        cells += [with_letter(some, animal[0]) for some in (rows, control)]
        lines.append([*cells, " ".join(telling[:12])])
    head = ["rows_of", "rows", "name_inside_a_word", "rows_0", "auc_0", "rows_50", "auc_50", "rows_200", "auc_200",
            "letter", "letter_of_control"]  # fmt: skip
    with args.output.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([[*head, "telling_words"], *lines])


if __name__ == "__main__":
    run(main)
