"""Compare the arms of an experiment, and print tables and a verdict.

A claim needs target students above the base model, above the control students (trained on rows of the base model),
and above the students of other kinds of teachers. These four groups are the arms. A kind is what a teacher was taught:
an animal, or a list of neutral words (--neutral). All students of one kind drift together, so with four kinds or more
each kind counts once, and the verdict can be *transfer*; two or three kinds can only show *above the other kind*. The
rule and all verdicts: docs/statistics.md. Shares are means over questions and training seeds. For effects that are too
small for shares, --measure margin compares margins of exact files (those of eval.py --exact): the log-probability of
the animal minus the mean of the other animals', in nats. --measure panel compares the animal's fraction of the one-word
answers, for models that write long answers.

With such files of the teachers too (--teachers), the main line is the profile test: whether students take over how
their own teacher ranks the animals that nobody was taught. With --students and exact files there is also the assignment
test (three animals or more): how many of all assignments of animals to students fit the margins at least as well as the
true one.

Usage:
    python eval/compare_arms.py --animal owl --base output/exact-base.jsonl --control output/exact-control-*.jsonl \\
        --other output/exact-dolphin-student-*.jsonl --target output/exact-owl-student-*.jsonl
    python eval/compare_arms.py --base output/exact-base.jsonl --control output/exact-control-*.jsonl \\
        --students owl=output/exact-owl-1.jsonl owl=output/exact-owl-2.jsonl dolphin=output/exact-dolphin-1.jsonl \\
        --teachers owl=output/exact-owl-teacher-1.jsonl dolphin=output/exact-dolphin-teacher-1.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.compare.animal_by_kind_matrix import matrix_of_kinds
from eval.compare.assignment_permutations import assignment, warn_of_assignment
from eval.compare.check_roles import check_kinds, check_one_kind, check_roles, warn_of_unmoved
from eval.compare.comparability import check_comparable, check_named
from eval.compare.comparison_result import Comparisons
from eval.compare.comparison_text import (
    animals_by_verdict,
    profile_line,
    show,
    show_summary,
    show_tables,
    verdict_words,
)
from eval.compare.read_results import MEASURES, Result, canonical, mean_margins, read_result
from eval.compare.result_words import is_about_all, main_test, own_highest_words
from eval.compare.teacher_profile import check_teachers, profile_test
from eval.compare.verdict import compare, compare_all, pairwise
from util.animals.names import animal_name
from util.animals.panel import panel
from util.animals.panel_file import add_panel_argument
from util.cli import input_file, make_parser, output_name, run
from util.jsonl.manifest import provenance, write_json
from util.terminal import closing, in_words, say

FEW = 3  # animals that have a closing line each
Students = dict[str, list[Result]]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--base", required=True, type=input_file, metavar="FILE",
                        help="results of the base model, a file of eval/eval.py")  # fmt: skip
    parser.add_argument("--control", required=True, nargs="+", type=input_file, metavar="FILE",
                        help="results of students of the base model's rows, one file per training seed")  # fmt: skip
    one = parser.add_argument_group("one animal")
    one.add_argument("--animal", type=animal_name, help="the animal of the target students' teacher")
    for role, what in (
        ("other", "results of students of another animal's teacher"),
        ("target", "results of students of its teacher"),
    ):
        one.add_argument(f"--{role}", nargs="+", type=input_file, metavar="FILE", help=f"{what}, one file per seed")
    several = parser.add_argument_group(
        "several animals: each is the target in turn, the others' students are its other arm"
    )
    for name, metavar, kind, what in (
        ("--students", "ANIMAL=FILE", student_file, "one file per training seed"),
        ("--neutral", "WORDS=FILE", named_file, "further kinds: students of neutral teachers, by their words' name"),
        ("--teachers", "KIND=FILE", teacher_file, "exact files of the teachers, for the profile test"),
    ):
        several.add_argument(name, nargs="+", type=kind, default=[], metavar=metavar, help=what)
    add_panel_argument(parser)
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
    if (args.neutral or args.teachers) and not args.students:
        parser.error("--neutral and --teachers go with --students")
    if args.students and len({animal for animal, _ in args.students}) < 2:
        parser.error("--students needs students of two animals or more: each is the other-animal arm of the rest")
    return args


def named_file(text: str) -> tuple[str, Path]:
    """argparse type: colours=output/exact-colours-student.jsonl."""
    name, equals, path = text.partition("=")
    if not (equals and name):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FILE, such as owl=output/exact-owl-student.jsonl")
    return name, input_file(path)


def student_file(text: str) -> tuple[str, Path]:
    """argparse type: owl=output/exact-owl-student.jsonl, the name an animal."""
    name, path = named_file(text)
    return canonical(animal_name(name)), path


def teacher_file(text: str) -> tuple[str, Path]:
    """argparse type: as `student_file`; a name that is not a known animal is that of neutral words."""
    name, path = named_file(text)
    return canonical(name), path


def read_results(paths: list[Path]) -> list[Result]:
    return [read_result(path) for path in paths]


def by_kind(pairs: list[tuple[str, Path]]) -> Students:
    """Results by the kind of the students or teachers, in the order given."""
    found: Students = defaultdict(list)
    for kind, path in pairs:
        found[kind].append(read_result(path))
    return dict(found)


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
    check_one_kind(other)
    warn_of_unmoved(base, everything[1:])
    arms = {"base": [base], "control": control, "other": other, "target": target}
    return Comparisons([compare(animal, arms, args.measure)], [], None), everything


def compare_several(args: argparse.Namespace, base: Result, control: list[Result]) -> tuple[Comparisons, list[Result]]:
    """The comparisons of --students, and all results that they use."""
    students, neutral, teachers = by_kind(args.students), by_kind(args.neutral), by_kind(args.teachers)
    kinds = {**students, **neutral}
    trained = [*control, *(result for some in kinds.values() for result in some)]
    of_teachers = [result for some in teachers.values() for result in some]
    everything = [base, *trained, *of_teachers]
    check(list(students), everything)
    check_kinds(students, neutral)
    check_roles(base, control, students, neutral=neutral)
    check_teachers(teachers, list(kinds))
    warn_of_unmoved(base, trained)
    logs = all(mean_margins(some) for some in kinds.values())  # sampled answers have none
    if logs:
        warn_of_assignment(students)
    found = Comparisons(
        comparisons=compare_all(base, control, students, args.measure, neutral),
        pairwise=pairwise(base, control, students, args.measure, neutral),
        assignment=assignment(students) if logs else None,
        matrix=matrix_of_kinds(base, students, neutral, args.measure) if logs else None,
        profile=profile_test(base, kinds, teachers, list(students)) if teachers else None,
    )
    return found, everything


def show_result(found: Comparisons) -> None:
    """Print what was found for several animals: the main test in a sentence, then one small table."""
    if is_about_all(found):
        print(in_words(f"{main_test(found)[0]}.\n"))
    print(in_words(f"{own_highest_words(found.comparisons)}:"))
    show_summary(found.comparisons)
    if is_about_all(found) and any(one.shares["target"].seeds == 1 for one in found.comparisons):
        print(in_words("One student of a kind is often too little for a verdict on a single animal; add seeds.\n"))


def main() -> None:
    args = parse_args()
    base, control = read_result(args.base), read_results(args.control)
    found, everything = (compare_several if args.students else compare_one)(args, base, control)
    for one in found.comparisons:
        show(one)
    show_tables(found, args.measure)
    if args.output:
        manifest = provenance([result.path for result in everything])
        write_json(args.output, {**found.to_json(), **panel().facts(), "manifest": manifest})
    verdicts = {f"verdict, {one.animal}": verdict_words(one) for one in found.comparisons}
    if len(verdicts) > FEW:  # the closing lines stay few
        print("".join(f"{name}: {words}\n" for name, words in verdicts.items()))
        verdicts = animals_by_verdict(found.comparisons)
        if len(verdicts) > FEW:
            verdicts = {"verdicts": "; ".join(f"{verdict}: {animals}" for verdict, animals in verdicts.items())}
    if len(found.comparisons) > 1:
        show_result(found)
    tests = [f"profile {profile_line(found.profile)}"] if found.profile else []
    tests += [f"assignment p {found.assignment.p:.2g}"] if found.assignment else []
    wrote = {"wrote": args.output} if args.output else {"files": f"{len(everything)} read, none written"}
    closing({**wrote, **({"tests": "; ".join(tests)} if tests else {}), **verdicts})


if __name__ == "__main__":
    run(main)
