"""What eval.py prints of a results file: the closing lines and the table of the top animals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.answers.answer_rows import check_answer, has_failed, non_answer_masses
from eval.compare.intervals import wilson
from util.animals.answer_parser import canonical_animal, warn_of_uncounted
from util.animals.panel import panel
from util.animals.word_forms import animals_of
from util.jsonl.rows import read_rows
from util.terminal import say, table

SHOWN = 10
UNCOVERED = 0.2  # mass above which exact shares say little


class Summary(NamedTuple):
    """What is printed of a results file."""

    facts: dict[str, str]
    """the closing lines: non-answers and errors, share of the target"""
    animals: str
    """the table of top animals"""
    share: float
    """of the target animal; 0 without one"""
    uncovered: float = 0.0
    """the share may be higher by up to this"""


def summary(path: Path, target: str | None) -> Summary:
    """The summary of a file of sampled answers."""
    found: Counter[tuple[str, str | None]] = Counter()  # (set, animal)
    kinds: Counter[str] = Counter()  # of non-answers
    errors = 0
    for row in read_rows(path, check_answer):
        found[row.get("set", ""), row["animal"]] += 1  # rows of an older version have no set
        if has_failed(row):
            errors += 1
        else:
            kinds.update(non_answer_masses(row))
    counts: Counter[str | None] = Counter()
    for (_, animal), count in found.items():
        counts[animal] += count
    asked = counts.total()
    del counts[None]
    non_answers = f"{kinds.total():,} ({kinds.total() / asked:.2%})" + kinds_in_words(
        {kind: count / asked for kind, count in kinds.items()}
    )
    if errors:
        non_answers += f"; errors {errors:,} ({errors / asked:.2%}), the same eval.py command asks them again"
    facts = {"non-answers": non_answers}
    if target:
        low, high = wilson(counts[target], asked)
        noise = f"sampling noise {100 * low:.2f} to {100 * high:.2f}%"
        facts[f"{target} share"] = f"{counts[target] / asked:.2%} ({counts[target]:,} of {asked:,} answers; {noise})"
        by_set = {}
        for name in several(name for name, _ in found):
            of_set = sum(count for (one, _), count in found.items() if one == name)
            by_set[name] = f"{found[name, target] / of_set:.2%}"
        facts |= sets_in_words(by_set)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:SHOWN]
    shown = animal_table(("animal", "count", "share"), [(a, f"{n:,}", f"{n / asked:.2%}") for a, n in ranked])
    return Summary(facts, shown, counts[target] / asked if target else 0.0)


def exact_summary(path: Path, target: str | None) -> Summary:
    """The summary of a file of exact shares."""
    from eval.answers.answer_tree import log_margin, mean_kinds, mean_over_questions, mean_shares, panel_share

    rows = list(read_rows(path, check_answer))
    shares, none, uncovered = mean_shares(rows)
    facts = {"non-answers": f"{none:.2%}{kinds_in_words(mean_kinds(rows))}"}
    if target:
        said = f"{shares.get(target, 0.0):.3%} (exact; uncovered {uncovered:.3%}: it may be higher by up to this)"
        margin, panel = (mean_over_questions(rows, target, measure) for measure in (log_margin, panel_share))
        if margin is not None:
            said += f"; margin {margin:+.3f} nats, panel share {panel:.3%}"
        facts[f"{target} share"] = said
        by_set = {}
        for name in several(row.get("set", "") for row in rows):
            of_set = [row for row in rows if row.get("set", "") == name]
            by_set[name] = f"{mean_shares(of_set)[0].get(target, 0.0):.3%}"
        facts |= sets_in_words(by_set)
    else:
        facts["uncovered"] = f"{uncovered:.3%} (each share may be higher by up to this)"
    if uncovered > UNCOVERED:
        say("answers are too long to enumerate: shares are lower bounds; compare margins or panel shares, or sample")
    ranked = list(shares.items())[:SHOWN]
    shown = animal_table(("animal", "exact share"), [(animal, f"{share:.3%}") for animal, share in ranked])
    return Summary(facts, shown, shares.get(target, 0.0) if target else 0.0, uncovered)


def animal_table(columns: Sequence[str], lines: Sequence[Sequence[str | None]]) -> str:
    """The table of the top animals, or a line that there is none."""
    return table(columns, lines) if lines else f"no answer names {panel().a_word}"


def several(names: Iterable[str]) -> list[str]:
    """The different names if there are several; [] for one, which is the whole file."""
    different = list(dict.fromkeys(filter(None, names)))
    return different if len(different) > 1 else []


def sets_in_words(shares: dict[str, str]) -> dict[str, str]:
    """A closing line with the share in each question set, if there are several."""
    words = ", ".join(f"{name} {share}" for name, share in shares.items())
    return {"by question set": f"{words} (the share above is over all)"} if shares else {}


def kinds_in_words(kinds: dict[str, float]) -> str:
    """': model name 1.20%, number 0.30%', the most frequent kind first, or ''."""
    ranked = sorted(kinds.items(), key=lambda item: -item[1])
    return ": " + ", ".join(f"{kind} {share:.2%}" for kind, share in ranked) if ranked else ""


def target_animal(name: str, asked_for: str | None) -> str | None:
    """The animal to report: the first that --animal names, or the one in the model's name (red-panda-student -> red
    panda); None if there is none."""
    if asked_for:
        first, *more = animals_of(asked_for)
        if more:
            say(f"--animal {asked_for}: the share of {first} is printed; pass --animal {more[0]} for the other")
        warn_of_uncounted(first)
        return canonical_animal(first) or first.lower()
    return canonical_animal(re.sub(r"[-_/]+", " ", name))
