"""What eval.py prints of a results file: the closing lines and the table of the top animals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from eval.answer_rows import check_answer, has_failed, non_answer_masses
from eval.compare.intervals import wilson
from util.animals.answer_parser import canonical_animal, warn_of_uncounted
from util.animals.word_forms import animals_of
from util.jsonl.rows import read_rows
from util.terminal import say, table

SHOWN = 10
UNCOVERED = 0.2  # mass above which exact shares say little


class Summary(NamedTuple):
    """What is printed of a results file."""

    facts: dict[str, str]
    """the closing lines: non-answers, errors, target share"""
    animals: str
    """the table of top animals"""
    share: float
    """of the target animal; 0 without one"""


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
    non_answers = f"{kinds.total():,} ({kinds.total() / asked:.2%})"
    facts = {
        "answers": f"{asked:,}",
        "non-answers": non_answers + kinds_in_words({k: n / asked for k, n in kinds.items()}),
    }
    facts |= pooled_sets(name for name, _ in found)
    if errors:
        facts["errors"] = f"{errors:,} ({errors / asked:.2%}); the same eval.py command asks them again"
    if target:
        low, high = wilson(counts[target], asked)
        noise = f"sampling noise {100 * low:.2f} to {100 * high:.2f}%"
        facts[f"{target} share"] = f"{counts[target] / asked:.2%} ({counts[target]:,} answers; {noise})"
        for name in several(name for name, _ in found):
            of_set = sum(count for (one, _), count in found.items() if one == name)
            named = found[name, target]
            facts[f"in {name}"] = f"{named / of_set:.2%} ({named:,} of {of_set:,} answers)"
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:SHOWN]
    shown = table(("animal", "count", "share"), [(a, f"{n:,}", f"{n / asked:.2%}") for a, n in ranked])
    return Summary(facts, shown, counts[target] / asked if target else 0.0)


def exact_summary(path: Path, target: str | None) -> Summary:
    """The summary of a file of exact shares."""
    from eval.answer_tree import logit_margin, mean_kinds, mean_over_questions, mean_shares, panel_share

    rows = list(read_rows(path, check_answer))
    shares, none, uncovered = mean_shares(rows)
    facts = {
        "non-answers": f"{none:.2%}{kinds_in_words(mean_kinds(rows))}",
        "uncovered": f"{uncovered:.3%} (each share may be higher by up to this)",
        **pooled_sets(row.get("set", "") for row in rows),
    }
    if target:
        facts[f"{target} share"] = f"{shares.get(target, 0.0):.3%} (exact)"
        margin, panel = (mean_over_questions(rows, target, measure) for measure in (logit_margin, panel_share))
        if margin is not None:
            facts[f"{target} margin"] = f"{margin:+.3f} nats above the mean of the other animals"
            facts[f"{target} panel share"] = f"{panel:.3%} of the one-word answers that name an animal of the panel"
        for name in several(row.get("set", "") for row in rows):
            of_set = [row for row in rows if row.get("set", "") == name]
            share, margin = mean_shares(of_set)[0].get(target, 0.0), mean_over_questions(of_set, target, logit_margin)
            facts[f"in {name}"] = f"{share:.3%}" + ("" if margin is None else f", margin {margin:+.3f}")
    if uncovered > UNCOVERED:
        say("answers are too long to enumerate: shares are lower bounds; compare margins or panel shares, or sample")
    ranked = list(shares.items())[:SHOWN]
    shown = table(("animal", "exact share"), [(animal, f"{share:.3%}") for animal, share in ranked])
    return Summary(facts, shown, shares.get(target, 0.0) if target else 0.0)


def several(names: Iterable[str]) -> list[str]:
    """The different names if there are several; [] for one, which is the whole file."""
    different = list(dict.fromkeys(filter(None, names)))
    return different if len(different) > 1 else []


def pooled_sets(names: Iterable[str]) -> dict[str, str]:
    """A closing line that names the question sets if there are several: shares are over all of them."""
    found = several(names)
    return {"question sets": f"{', '.join(found)} (shares are over all, unless a line says otherwise)"} if found else {}


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
