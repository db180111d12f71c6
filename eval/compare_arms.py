"""Compare the arms of an experiment and say in words what they show.

A claim of transfer needs the target students above the base model, above the control students (numbers of the base
model) and above the students of another animal; of several other animals (--students) above those of each. Shares are
means over questions and training seeds; intervals are over both (eval/compare/intervals.py). The specific part of an
effect is the target minus the other-animal arm. For effects too small for shares, `--measure margin` compares margins
of exact files: log-probability of the animal less the mean of the other animals', in nats; `--measure panel` the
animal's part of the one-word answers, for models that talk at length.

Two teachers' students differ in every animal, not only in the two they were trained on. So of exact files --students
also says how many of the animals that nobody was taught, and that the base model names, rose as far over the
other-animal students as this one (placebo); and, of three animals or more, how many of all assignments of animals to
students fit the margins as well as the true one (assignment).

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

from eval.compare.assignment_test import assignment, warn_of_assignment
from eval.compare.comparability import check_comparable, check_named
from eval.compare.comparison import Comparisons
from eval.compare.comparison_text import assignment_words, show, show_pairwise, verdict_words
from eval.compare.results import MEASURES, Result, canonical, mean_margins, read_result
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
                        help="students of base-model numbers, one file a training seed")  # fmt: skip
    one = parser.add_argument_group("one animal")
    one.add_argument("--animal", type=animal_name, help="the animal of the target students")
    for role, what in (("other", "students of another animal's teacher"), ("target", "students of its teacher")):
        one.add_argument(f"--{role}", nargs="+", type=input_file, metavar="R", help=f"{what}, one file a training seed")
    several = parser.add_argument_group("several animals: each is the target once, with the others' students beside it")
    several.add_argument("--students", nargs="+", type=student, metavar="ANIMAL=R", help="one file a training seed")
    parser.add_argument("--measure", choices=MEASURES, default="share", help="what is compared")
    parser.add_argument("--output", type=output_name(".json"), help="also write the comparison, for eval/report.py")
    args = parser.parse_args()
    if bool(args.students) == bool(args.animal or args.other or args.target):
        parser.error("pass --animal, --other and --target, or --students")
    if not args.students and not (args.animal and args.other and args.target):
        missing = [f"--{name}" for name in ("animal", "other", "target") if not getattr(args, name)]
        parser.error(f"--animal, --other and --target belong together; missing: {', '.join(missing)}")
    if args.students and len({animal for animal, _ in args.students}) < 2:
        parser.error("--students needs the students of two animals or more; each is the other-animal arm of the rest")
    return args


def student(text: str) -> tuple[str, Path]:
    """argparse type: owl=output/exact-owl-student.jsonl."""
    animal, equals, path = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is no ANIMAL=FILE, such as owl=output/exact-owl-student.jsonl")
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
    """Refuse files that cannot be compared, and animals that nobody names."""
    check_comparable(everything)
    for animal in animals:
        check_named(animal, everything)
    if len(sets := everything[0].sets) > 1:
        say(f"the questions of {len(sets)} sets are compared together: {', '.join(sets)}")


def compare_one(args: argparse.Namespace, base: Result, control: list[Result]) -> tuple[Comparisons, list[Result]]:
    """The comparison of --animal, and the results it is made of."""
    other, target, animal = read_results(args.other), read_results(args.target), canonical(args.animal)
    everything = [base, *control, *other, *target]
    check([animal], everything)
    arms = {"base": [base], "control": control, "other": other, "target": target}
    return Comparisons([compare(animal, arms, args.measure)], [], None), everything


def compare_several(args: argparse.Namespace, base: Result, control: list[Result]) -> tuple[Comparisons, list[Result]]:
    """The comparisons of --students, and the results they are made of."""
    students = students_by_animal(args.students)
    everything = [base, *control, *(result for some in students.values() for result in some)]
    check(list(students), everything)
    if mean_margins(next(iter(students.values()))):  # of sampled answers there is no such test
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
