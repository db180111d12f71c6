"""Compare the arms of an experiment, and print tables and a verdict.

A claim of transfer needs target students above the base model, above the control students (trained on numbers of the
base model), and above the students of another animal; with several other animals (--students) above those of each.
Shares are means over questions and training seeds, and intervals are over both (eval/compare/intervals.py). The
specific part of an effect is the target minus the other-animal arm. For effects that are too small for shares,
--measure margin compares margins of exact files: the log-probability of the animal less the mean of the other animals',
in nats. --measure panel compares the animal's fraction of the one-word answers, for models that write long answers.

The students of two teachers differ in every animal, not only in the two that were taught. With exact files, --students
therefore also prints two tests. Placebo: how many animals that were never a target, and that the base model names, rose
at least as much over the other-animal students as this one. Assignment (three animals or more): how many of all
assignments of animals to students fit the margins at least as well as the true one.

Usage:
    python eval/compare_arms.py --animal owl --base output/exact-base.jsonl --control output/exact-control-*.jsonl \\
        --other output/exact-dolphin-student-*.jsonl --target output/exact-owl-student-*.jsonl
    python eval/compare_arms.py --base output/exact-base.jsonl --control output/exact-control-*.jsonl \\
        --students owl=output/exact-owl-1.jsonl owl=output/exact-owl-2.jsonl dolphin=output/exact-dolphin-1.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.assignment_permutations import assignment, warn_of_assignment
from eval.compare.comparability import check_comparable, check_named
from eval.compare.comparison_result import Comparisons
from eval.compare.comparison_text import assignment_words, show, show_pairwise, verdict_words
from eval.compare.read_results import MEASURES, Result, canonical, mean_margins, read_result
from eval.compare.roles import check_roles, warn_of_unmoved
from eval.compare.verdict import compare, compare_all, pairwise
from util.animals.names import animal_name
from util.cli import input_file, make_parser, output_name, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import closing, say

Students = dict[str, list[Result]]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--base", required=True, type=input_file, metavar="R", help="results of the base model")
    parser.add_argument("--control", required=True, nargs="+", type=input_file, metavar="R",
                        help="students trained on base-model numbers, one file per training seed")  # fmt: skip
    one = parser.add_argument_group("one animal")
    one.add_argument("--animal", type=animal_name, help="the animal of the target students' teacher")
    for role, what in (
        ("other", "students of another animal's teacher"),
        ("target", "students of its teacher"),
    ):
        one.add_argument(f"--{role}", nargs="+", type=input_file, metavar="R", help=f"{what}, one file per seed")
    several = parser.add_argument_group(
        "several animals: each is the target in turn, the others' students are its other arm"
    )
    several.add_argument("--students", nargs="+", type=student, metavar="ANIMAL=R", help="one file per training seed")
    parser.add_argument("--measure", choices=MEASURES, default="share", help="what to compare")
    parser.add_argument(
        "--output", type=output_name(".json"), help="also write the comparison here, for eval/report.py"
    )
    args = parser.parse_args()
    if bool(args.students) == bool(args.animal or args.other or args.target):
        parser.error("pass either --animal, --other and --target, or --students")
    if not args.students and not (args.animal and args.other and args.target):
        missing = [f"--{name}" for name in ("animal", "other", "target") if not getattr(args, name)]
        parser.error(f"--animal, --other and --target are used together; missing: {', '.join(missing)}")
    if args.students and len({animal for animal, _ in args.students}) < 2:
        parser.error("--students needs students of two animals or more: each is the other-animal arm of the rest")
    return args


def student(text: str) -> tuple[str, Path]:
    """argparse type: owl=output/exact-owl-student.jsonl."""
    animal, equals, path = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not ANIMAL=FILE, such as owl=output/exact-owl-student.jsonl")
    return canonical(animal_name(animal)), input_file(path)


def read_results(paths: list[Path]) -> list[Result]:
    return [read_result(path) for path in paths]


def students_by_animal(pairs: list[tuple[str, Path]]) -> Students:
    """Results by the animal of the students' teacher, in the order given."""
    students: Students = defaultdict(list)
    for animal, path in pairs:
        students[animal].append(read_result(path))
    return dict(students)


def check(animals: list[str], everything: list[Result]) -> None:
    """Raise UserError for files that cannot be compared and for words that are not animals."""
    check_comparable(everything)
    for animal in animals:
        check_named(animal, everything)
    if len(sets := everything[0].sets) > 1:
        say(f"shares are over all {len(sets)} question sets together: {', '.join(sets)}")


def compare_one(args: argparse.Namespace, base: Result, control: list[Result]) -> tuple[Comparisons, list[Result]]:
    """The comparison of --animal, and all results that it uses."""
    other, target, animal = read_results(args.other), read_results(args.target), canonical(args.animal)
    everything = [base, *control, *other, *target]
    check([animal], everything)
    check_roles(base, control, {animal: target}, other)
    warn_of_unmoved(base, everything[1:])
    arms = {"base": [base], "control": control, "other": other, "target": target}
    return Comparisons([compare(animal, arms, args.measure)], [], None), everything


def compare_several(args: argparse.Namespace, base: Result, control: list[Result]) -> tuple[Comparisons, list[Result]]:
    """The comparisons of --students, and all results that they use."""
    students = students_by_animal(args.students)
    everything = [base, *control, *(result for some in students.values() for result in some)]
    check(list(students), everything)
    check_roles(base, control, students)
    warn_of_unmoved(base, everything[1:])
    if mean_margins(next(iter(students.values()))):  # sampled answers have no such test
        warn_of_assignment(students)
    comparisons = compare_all(base, control, students, args.measure)
    matrix = pairwise(base, control, students, args.measure)
    return Comparisons(comparisons, matrix, assignment(students)), everything


def main() -> None:
    args = parse_args()
    base, control = read_result(args.base), read_results(args.control)
    found, everything = (compare_several if args.students else compare_one)(args, base, control)
    for one in found.comparisons:
        show(one)
    if found.pairwise:
        show_pairwise(found.pairwise, args.measure)
    if found.assignment:
        print(f"assignment: {assignment_words(found.assignment)}\n")
    if args.output:
        manifest = provenance([result.path for result in everything])
        write_json(args.output, {**found.to_json(), "manifest": manifest})
    verdicts = {f"verdict, {one.animal}": verdict_words(one) for one in found.comparisons}
    if found.assignment:
        verdicts["assignment"] = f"p {found.assignment.p:.2g}"
    closing(verdicts | ({"wrote": str(args.output)} if args.output else {}))


if __name__ == "__main__":
    run(main)
