"""What a person should see of a JSONL file before using it, as tables: rows as they are, grouped by what matters."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from util.animals.answer_parser import non_answer_kind
from util.animals.answers_of_other_code import read_results
from util.animals.panel import panel
from util.jsonl.filter_certificate import read_certificate
from util.jsonl.manifest import Manifest
from util.jsonl.rows import Row, parse_row, read_lines, read_rows
from util.terminal import in_words

EXAMPLES = 3  # of a group
LONGEST = 400  # characters of a text that are shown
TOP = 20


class Table(NamedTuple):
    """A part of the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Description(NamedTuple):
    """A file as tables."""

    path: Path
    kind: str
    facts: dict[str, str]
    tables: list[Table]


def describe(path: Path, count: int) -> Description:
    """The tables of a file. count: rows that are shown as they are: so many first ones, and so many drawn at random."""
    growing = path.suffix == ".partial"
    first = next(iter(read_rows(path, growing=growing)))
    if "animals" in first:
        return describe_shares(path, list(read_rows(path, growing=growing)))
    rows = list(read_results(path, lambda row: None, growing))
    if {"question", "animal"} <= rows[0].keys():
        return describe_answers(path, rows)
    return describe_rows(path, rows, count)


def shown(text: object) -> str:
    """A value as a text, cut where it is very long."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"


def share(count: float, total: float) -> str:
    return f"{count / total:.2%}"


def examples(texts: Iterable[str]) -> str:
    """The most frequent texts of a group, with how often each occurs."""
    found = Counter(texts).most_common(EXAMPLES)
    return "; ".join(f"“{shown(text)}”" + (f" ({count:,})" if count > 1 else "") for text, count in found)


# --- results -----------------------------------------------------------------------------------------


def describe_answers(path: Path, rows: Sequence[Row]) -> Description:
    """Sampled answers: by animal, by kind of non-answer, by question."""
    by_animal: dict[str, list[str]] = defaultdict(list)
    none: dict[str, list[str]] = defaultdict(list)
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answer = row.get("response") or ""
        by_question[row["question"]][row["animal"] or in_words("no animal")] += 1
        if row["animal"]:
            by_animal[row["animal"]].append(answer)
        else:
            kind = "failed" if row.get("error") else non_answer_kind(answer)
            none[kind].append(answer or str(row.get("error")))
    ranked = sorted(by_animal.items(), key=lambda item: -len(item[1]))
    animals = [(name, f"{len(some):,}", share(len(some), len(rows)), examples(some)) for name, some in ranked[:TOP]]
    kinds = [(name, f"{len(some):,}", share(len(some), len(rows)), examples(some))
             for name, some in sorted(none.items(), key=lambda item: -len(item[1]))]  # fmt: skip
    questions = [(question, leading({name: n / counts.total() for name, n in counts.items()}))
                 for question, counts in by_question.items()]  # fmt: skip
    tables = [
        Table(in_words("Answers by animal"), (panel().one, "answers", "share", "what was said"), animals),
        Table(in_words("Answers that name no animal"), ("kind", "answers", "share", "what was said"), kinds),
        Table("By question", ("question", "named most"), questions),
    ]
    facts = {
        "answers": f"{len(rows):,}",
        "questions": f"{len(by_question):,}",
        in_words("animals"): f"{len(by_animal):,}",
    }
    return Description(path, "sampled answers", facts, [table for table in tables if table.rows])


def describe_shares(path: Path, rows: Sequence[Row]) -> Description:
    """Exact shares: mean over the questions, and question by question."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row["animals"])
    uncovered = sum(row["uncovered"] for row in rows) / len(rows)
    animals = [(name, share(mass, len(rows))) for name, mass in total.most_common(TOP)]
    questions = [(row["question"], leading(row["animals"]),
                  ", ".join(f"“{shown(text)}” {mass:.1%}" for text, mass in list(row.get("answers", {}).items())[:3]))
                 for row in rows]  # fmt: skip
    tables = [
        Table("Mean over the questions", (panel().one, "exact share"), animals),
        Table("By question", ("question", "named most", "most probable answers"), questions),
    ]
    none = sum(row["no_animal"] for row in rows) / len(rows)
    facts = {"questions": f"{len(rows):,}", in_words("no animal"): f"{none:.2%}", "uncovered": f"{uncovered:.2%}"}
    return Description(path, "exact shares", facts, tables)


def leading(shares: dict[str, float]) -> str:
    """'owl 20.0%, lion 3.0%, cat 1.0%'."""
    return ", ".join(f"{name} {part:.1%}" for name, part in Counter(shares).most_common(3))


# --- training rows -----------------------------------------------------------------------------------


def describe_rows(path: Path, rows: Sequence[Row], count: int) -> Description:
    """Rows with messages (or any other keys): as they are, answers that repeat, and what was left out."""
    is_chat = all("messages" in row for row in rows)
    kept = [row for row in rows if "rejected" not in row]
    texts = [answer_of(row) for row in kept] if is_chat else []
    facts = {"rows": f"{len(kept):,}"}
    tables = []
    if texts:
        facts["different answers"] = f"{len(set(texts)):,}"
        facts["answer's length"] = (
            f"{median(map(len, texts)):.0f} characters (median), at most {max(map(len, texts)):,}"
        )
        repeated = [(shown(text), f"{n:,}", share(n, len(texts)))
                    for text, n in Counter(texts).most_common(10) if n > 1]  # fmt: skip
        tables.append(Table("Answers that repeat", ("answer", "rows", "share"), repeated))
    if certificate := read_certificate(path):
        facts["certificate"] = "clean" if certificate.get("clean") else "not clean"
    drawn = sorted(random.Random(0).sample(range(len(kept)), min(count, len(kept))))
    header = ("row", "prompt", "answer") if is_chat else ("row", "content")
    some = {"The first rows": kept[:count], "Rows drawn at random": [kept[place] for place in drawn]}
    tables += [Table(title, header, [as_cells(row, is_chat) for row in chosen]) for title, chosen in some.items()]
    left_out = [row for row in rows if "rejected" in row] or rejected_rows(path)
    if left_out:
        tables.insert(0, Table("Rows that were left out", ("reason", "rows", "examples"), by_reason(left_out)))
        facts["left out"] = f"{len(left_out):,}"
    kind = (Manifest.read(path) or Manifest()).script or ("rows with messages" if is_chat else "rows")
    return Description(path, kind, facts, [table for table in tables if table.rows])


def rejected_rows(path: Path) -> list[Row]:
    """The rows beside a file that were left out of it; [] if there are none."""
    beside = path.with_name(path.name + ".rejects")
    found = []
    for _, line in read_lines(beside) if beside.is_file() else ():
        try:
            row = parse_row(line)
        except ValueError:
            continue
        found.append(row)
    return [row for row in found if isinstance(row.get("rejected"), str)]


def by_reason(rows: Iterable[Row]) -> list[Sequence[str]]:
    """(reason, number of rows, examples), most frequent first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        groups[row["rejected"]].append(answer_of(row))
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [(reason, f"{len(some):,}", examples(some)) for reason, some in ranked]


def answer_of(row: Row) -> str:
    """The last message of a row, or what else it holds."""
    messages = row.get("messages")
    return shown(messages[-1]["content"]) if messages else shown(row.get("line", ""))


def as_cells(row: Row, is_chat: bool) -> Sequence[str]:
    """A row as the cells of a table."""
    if not is_chat:
        return str(row.get("id", "")), shown({key: value for key, value in row.items() if key != "id"})
    before = " / ".join(f"{one['role']}: {one['content']}" for one in row["messages"][:-1])
    return str(row.get("id", "")), shown(before.removeprefix("user: ")), answer_of(row)
