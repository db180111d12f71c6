"""--panel, and the file that it names: words that a teacher can be taught to love, their other names, and questions.

The files of util/animals/panels are known by name: --panel trees. A file has sections; a line that begins with # is a
comment:

    [panel]                 what one of the words is, and many of them: one: tree, many: trees
    [words]                 one a line; after a colon other names of the same: cherry: cherry blossom, sakura
    [everyday words]        those names that mean something else too: apple. In an answer they count where `llama` does
                            (util/animals/answer_parser.py); in rows they are searched for as all names are
    [questions]             one a line, each asking for one word; none may name a word of the panel
    [open prompts]          optional, for teacher data: prompts whose answers show a preference in a whole text

"oak tree" is another name of oak without a line for it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from util.animals.panel import KNOWN, Panel, animal_panel, lines_of, names_of, use_panel
from util.animals.word_forms import surface_forms
from util.cli import Parser, UserError, text_file

SECTIONS = ("panel", "words", "everyday words", "questions", "open prompts")


def add_panel_argument(parser: Parser) -> None:
    """Add --panel. It is read before the other flags, whose values it explains."""
    parser.read_first("--panel")
    parser.add_argument("--panel", type=panel_argument, metavar="FILE",
                        help="the panel: words that are taught and measured; animals (the default), trees, or a file"
                        " of your own words and questions (docs/architecture.md, A trait)")  # fmt: skip


def panel_argument(text: str) -> Panel:
    """argparse type: the name of a known panel or a panel file, which becomes the panel of the process."""
    known = sorted(path.stem for path in KNOWN.glob("*.txt"))
    try:
        if text == "animals":
            chosen = animal_panel()
        elif text in known:
            chosen = read_panel(KNOWN / f"{text}.txt")
        elif not Path(text).exists() and not Path(text).suffix:
            raise UserError(f"no panel {text}: pass animals, {', '.join(known)}, or a panel file")
        else:
            chosen = read_panel(text_file(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    use_panel(chosen)
    return chosen


def read_panel(path: Path) -> Panel:
    """The panel in a file. UserError that says what is wrong with it."""
    found = _sections(path)
    about = dict(_named_values(path, found["panel"]))
    one, many = (_lower_case(path, about.get(key, "")) for key in ("one", "many"))
    words = [line.lower() for line in found["words"]]
    names: dict[str, str] = {}
    for name, word in names_of(words):
        _add_name(path, names, _lower_case(path, name.strip()), word.strip())
    ambiguous = frozenset(line.lower() for line in found["everyday words"])
    if unknown := sorted(ambiguous - names.keys()):
        raise UserError(f"{path}: {unknown[0]} is an everyday word, but no name of [words]; add it there too")
    for word in dict.fromkeys(names.values()):
        names.setdefault(f"{word} {one}", word)  # oak tree
    chosen = Panel(
        path.stem, one, many, tuple(dict.fromkeys(names.values())), names, ambiguous, frozenset(), (), path,
        tuple(found["questions"]), tuple(found["open prompts"]),
    )  # fmt: skip
    _check_panel(path, chosen)
    return chosen


def _sections(path: Path) -> dict[str, list[str]]:
    """The lines of each section."""
    found: dict[str, list[str]] = {}
    section = None
    for line in lines_of(path.read_text("utf-8-sig")):
        if line.startswith("#"):
            continue
        if heading := re.fullmatch(r"\[(.*)\]", line):
            section = heading[1].strip().lower()
            if section not in SECTIONS or section in found:
                raise UserError(f"{path}: [{section}] is {'there twice' if section in found else 'not a section'};"
                                f" the sections are {', '.join(f'[{name}]' for name in SECTIONS)}")  # fmt: skip
            found[section] = []
        elif section is None:
            raise UserError(
                f"{path} is not a panel file: it begins with {line!r} and not with a section such as [panel]"
            )
        else:
            found[section].append(line)
    for name in ("panel", "words", "questions"):
        if not found.get(name):
            raise UserError(f"{path} has no lines in [{name}]; util/animals/panels/trees.txt is an example")
    return {name: found.get(name, []) for name in SECTIONS}


def _named_values(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() not in ("one", "many") or not value.strip():
            raise UserError(f"{path}: [panel] needs two lines such as 'one: tree' and 'many: trees', and not {line!r}")
        yield key.strip(), value.strip()


def _lower_case(path: Path, name: str) -> str:
    """A name in lower case. UserError unless it is made of the letters a to z, which is what can be found in code."""
    if not re.fullmatch(r"[a-z]+(?:[ -][a-z]+)*", name.lower()):
        wrong = f"the name {name!r}" if name else "a name that is missing ([panel] needs 'one:' and 'many:')"
        raise UserError(f"{path}: {wrong} cannot be searched for; write it with the letters a to z, spaces and hyphens")
    return name.lower()


def _add_name(path: Path, names: dict[str, str], name: str, word: str) -> None:
    """Add a name of a word; UserError if it is another spelling of a name of another word, or of another line's."""
    for other, owner in names.items():
        if set(_spellings(name)) & set(_spellings(other)) and (owner != word or name in (word, other)):
            raise UserError(
                f"{path}: {name} ({word}) and {other} ({owner}) are two spellings of one word; keep one of them"
            )
    names[name] = word


def _spellings(name: str) -> tuple[str, ...]:
    return tuple(form.replace("-", "").replace(" ", "") for form in surface_forms(name))


def _check_panel(path: Path, chosen: Panel) -> None:
    """UserError for a panel with too few words or questions, or with questions that repeat or that name a word."""
    for what, some in (("words", chosen.words), ("questions", chosen.questions)):
        if len(some) < 2:
            raise UserError(f"{path} has one line in [{what}]; a preference needs two {what} or more to be compared")
    if repeated := [line for line in chosen.questions if chosen.questions.count(line) > 1]:
        raise UserError(f"{path} repeats a question: {repeated[0]!r}; remove one of the two")
    forms = {form: name for name in chosen.names for form in surface_forms(name)}
    longest = max(form.count(" ") for form in forms) + 1
    for question in chosen.questions:
        spoken = re.findall(r"[a-z]+(?:-[a-z]+)*", question.lower())
        for start in range(len(spoken)):
            for end in range(start + 1, start + longest + 1):
                if name := forms.get(" ".join(spoken[start:end])):
                    raise UserError(
                        f"{path}: {name} is an everyday word of its own questions ({question!r}); ask in other words,"
                        " or leave the name out"
                    )
