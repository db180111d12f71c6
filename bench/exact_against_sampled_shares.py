"""Check exact shares and tree samples against independent samples, and time them.

Usage:
    python bench/exact_against_sampled_shares.py
    python bench/exact_against_sampled_shares.py --adapter output/demo-seed-42/owl-student/seed-42/final \\
        output/demo-seed-42/dolphin-student/seed-42/final --output output/bench-exact.json

For the model and for each adapter on it, the local backend draws 200,000 independent answers to the 50 questions. The
exact share of every animal above 0.1% should be inside the Wilson interval of its sampled share: at 95% for each animal
(one in twenty may be outside) and at 95% for all of them together (Bonferroni; none may be outside). Then the same
answers are split into 100 lots of one question each. Each lot is compared with a lot drawn from the tree with its own
seed: the chi-square p-values of the answer texts should be uniform (Kolmogorov-Smirnov). The seconds are those of
eval.py as a whole process.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.chi_square import contingency
from bench.measured_runs import run_measured, script_command
from eval.answers.answer_rows import COVERAGE, NODE_BUDGET, Question, read_questions
from util.animals.answer_parser import canonical_animal
from util.cli import REPO, make_parser, output_name, positive_int, run
from util.inference.backend_interface import AnswerTree, InferenceBackend, Request, Sampling, row_seed
from util.jsonl.manifest import provenance, write_json
from util.terminal import say, table

QUESTIONS = REPO / "eval" / "questions.txt"
SAMPLING = Sampling(max_tokens=16)
SMALLEST = 0.001  # smaller shares are not compared
LEVEL = 0.05
EXACT_SECONDS, TREE_SECONDS = 10.0, 5.0
TREE_ANSWERS = 1000  # to each question


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, default=REPO / "pocket" / "model", help="model folder")
    parser.add_argument("--adapter", type=Path, nargs="*", default=[], help="adapter folders to check too")
    parser.add_argument("--answers", type=positive_int, default=200_000, help="independent answers per model")
    parser.add_argument(
        "--seed-count", type=positive_int, default=100, help="lots of answers to compare, each with its own seed"
    )
    parser.add_argument("--output", type=output_name(".json"), help="also write the results to this JSON file")
    parser.renamed("--seeds", "--seed-count")
    return parser.parse_args()


# --- answers -----------------------------------------------------------------------------------------


def independent_answers(backend: InferenceBackend, questions: Sequence[Question], each: int) -> list[list[str]]:
    """`each` independent answers to every question."""
    requests = [
        Request(tuple(range(place * each, (place + 1) * each)), question.messages, row_seed(1, place))
        for place, question in enumerate(questions)
    ]
    results = sorted(backend.generate(requests, SAMPLING), key=lambda result: result.request.ids)
    return [[answer.text for answer in result.answers] for result in results]


def shares_of(tree: AnswerTree, questions: Sequence[Question]) -> tuple[dict[str, float], float]:
    """(exact share of each animal, uncovered) as eval.py --exact finds them."""
    from eval.answers.answer_tree import answer_distributions, distribution_row, mean_shares

    texts = [question.text for question in questions]
    found = answer_distributions(tree, texts, SAMPLING.max_tokens, COVERAGE, NODE_BUDGET)
    shares, _, uncovered = mean_shares([distribution_row(i, one, canonical_animal) for i, one in enumerate(found)])
    return shares, uncovered


# --- comparisons -------------------------------------------------------------------------------------


def outside(shares: dict[str, float], counts: Counter[str | None], alpha: float) -> list[str]:
    """The animals whose exact share is outside the Wilson interval (level 1 - alpha) of their sampled share."""
    from scipy.stats import binomtest

    missed = []
    for animal, share in shares.items():
        interval = binomtest(counts[animal], counts.total()).proportion_ci(1 - alpha, method="wilson")
        if not interval.low <= share <= interval.high:
            missed.append(animal)
    return missed


def chi_square_p(one: Counter[str], other: Counter[str]) -> float:
    """p-value of the hypothesis that two lots of answers have the same distribution. Rare texts share a cell."""
    from scipy.stats import chi2_contingency

    cells = contingency(one, other)
    return float(chi2_contingency(cells).pvalue) if len(cells[0]) > 1 else 1.0


def lot_p_values(
    backend: InferenceBackend, questions: Sequence[Question], answers: list[list[str]], seeds: int
) -> list[float]:
    """p-values of `seeds` lots of independent answers, each compared with as many answers drawn from the tree."""
    from eval.answers.answer_tree import sample_answers

    rounds = -(-seeds // len(questions))
    size = len(answers[0]) // rounds
    found = []
    for seed in range(seeds):
        place, start = seed % len(questions), seed // len(questions) * size
        tree = backend.answer_tree([questions[place].messages])
        (drawn,) = sample_answers(tree, [size], SAMPLING.max_tokens, seed)
        found.append(chi_square_p(Counter(answers[place][start : start + size]), drawn))
    return found


def measure_model(args: argparse.Namespace, adapter: Path | None) -> list[dict[str, Any]]:
    """The table rows of one model: exact shares and tree samples, both compared with independent samples."""
    from scipy.stats import kstest

    from util.inference.local_model import LocalModel

    questions = read_questions([QUESTIONS])
    backend = LocalModel(str(args.model), adapter, batch_size=512)
    say(f"{backend.name}: {args.answers:,} answers ...")
    answers = independent_answers(backend, questions, -(-args.answers // len(questions)))
    shares, uncovered = shares_of(backend.answer_tree([question.messages for question in questions]), questions)
    compared = {animal: share for animal, share in shares.items() if share > SMALLEST}
    counts = Counter(canonical_animal(text) for some in answers for text in some)
    singly, together = (outside(compared, counts, alpha) for alpha in (LEVEL, LEVEL / len(compared)))
    p_values = lot_p_values(backend, questions, answers, args.seed_count)
    uniform, low = float(kstest(p_values, "uniform").pvalue), sum(p < LEVEL for p in p_values)
    missed = (
        f"{len(together)} of {len(compared)} animals outside ({len(singly)} at 95% each: {', '.join(singly) or '-'})"
    )
    return [
        {
            "part": f"shares, {backend.name}",
            "figure": missed,
            "target": f"0 outside at 95% together ({1 - LEVEL / len(compared):.4%} each)",
            "passed": not together,
            "uncovered": uncovered,
            "shares": compared,
            "counts": {animal: counts[animal] for animal in compared},
            "answers": counts.total(),
        },
        {
            "part": f"tree samples, {backend.name}",
            "figure": f"KS p {uniform:.3f}; {low} of {args.seed_count} chi-squares under {LEVEL}",
            "target": f"KS p over {LEVEL}",
            "passed": uniform > LEVEL,
            "p_values": p_values,
        },
    ]


def measure_seconds(args: argparse.Namespace, part: str, most: float | None, *arguments: object) -> dict[str, Any]:
    """The table row of one run of eval.py as a separate process."""
    say(f"{part} ...")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "question.txt").write_text("Your favorite animal, in one word:\n")
        found = run_measured(script_command("eval/eval.py", "--model", args.model.resolve(), *arguments), Path(folder))
    figure = f"{found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s of CPU), {found['peak_megabytes']:.0f} MB"
    passed = most is None or found["seconds"] < most
    return {"part": part, "figure": figure, "target": f"under {most:.0f} s" if most else "-", "passed": passed, **found}


def main() -> int:
    args = parse_args()
    machine = {"cores": os.cpu_count(), "load_before": os.getloadavg()}
    tree = ("--sampler", "tree", "--epochs", TREE_ANSWERS)
    one = ("--sampler", "tree", "--epochs", 1, "--questions-file", "question.txt")
    results = [
        measure_seconds(args, "50 questions, exact, with margins", EXACT_SECONDS, "--exact"),
        measure_seconds(args, f"50 x {TREE_ANSWERS:,} tree samples", TREE_SECONDS, *tree),
        measure_seconds(args, "one tree sample: imports and the model", None, *one),
    ]
    for adapter in [None, *args.adapter]:
        results += measure_model(args, adapter)
    if args.output:
        write_json(args.output, {**provenance(), "machine": machine, "results": results})
    header = ("part", "figure", "target", "passed")
    print(table(header, [[result[name] for name in header] for result in results]))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    run(main)
