"""The documents: the README's size, links and anchors, paths that are named, and every published command parses."""

import ast
import re
import shlex
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import REPO

from util.inference.backend_interface import adapter_name
from util.jsonl.rows import slug

FOLDERS = ("generate", "train", "eval", "util", "pocket", "experiments", "bench", "tests", "docs", ".ci")
OLD = re.compile(r"as of commit `?[0-9a-f]{7}")  # said right before a block whose commands are not today's


@lru_cache(maxsize=1)
def documents():
    """Every Markdown file of the suite by its path, without those that are filled in or generated."""
    found = [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md"), *(REPO / "pocket").rglob("*.md")]
    found += (REPO / "experiments").rglob("*.md")
    return {path: path.read_text("utf-8") for path in found if path.name != "card.md"}


def named(path):
    return str(path.relative_to(REPO))


def test_the_readme_is_short():
    text = (REPO / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1600


# --- links and paths ---------------------------------------------------------------------------------


def anchors(text):
    """The anchors of a page, as GitHub makes them of its headings, and those that are written out."""
    found, fenced = set(re.findall(r'<a id="([^"]+)">', text)), False
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        if not fenced and (heading := re.match(r"#+ +(.+)", line)):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "").lower()
            found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


def test_every_link_and_anchor_exists():
    missing = []
    for page, text in documents().items():
        for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", re.sub(r"(?s)```.*?```", "", text)):
            if re.match(r"[a-z]+:", target):
                continue
            place, _, anchor = target.partition("#")
            path = (page.parent / place).resolve() if place else page
            if not path.exists():
                missing.append(f"{named(page)}: {target}")
            elif anchor and anchor not in anchors(path.read_text("utf-8")):
                missing.append(f"{named(page)}: no anchor {target}")
    assert not missing


def test_every_page_of_docs_is_linked():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page, text in documents().items()
        for target in re.findall(r"\]\(([^)\s:]+)\)", text)
    }
    assert not {page for page in documents() if page.parent == REPO / "docs"} - linked


def test_every_path_in_backticks_exists():
    files, missing = {path.name for folder in FOLDERS for path in (REPO / folder).rglob("*.py")}, []
    for page, text in documents().items():
        for name in re.findall(r"`([\w.\-]+/[\w./\-]*)`", text):
            if name.split("/")[0] in FOLDERS and not (REPO / name).exists():
                missing.append(f"{named(page)}: {name}")
        missing += [f"{named(page)}: {name}" for name in re.findall(r"`(\w+\.py)`", text) if name not in files]
    assert not missing


# --- commands ----------------------------------------------------------------------------------------

SCRIPT = r"(?:generate|train|eval|util|pocket|experiments|bench)/[\w/]+\.py"
END = {"|", ";", "&", "&&", "||", ">", "<", ">>", "2>", "do", "done", ")", "("}


def shell_blocks(text):
    """The shell commands of a page: code blocks (but those marked as of an older commit) and code in sentences."""
    for found in re.finditer(r"(?ms)^(?P<before>[^\n]*\n+)?```(?:bash|sh)?\n(?P<code>.*?)^```", text):
        if not OLD.search(found["before"] or ""):
            yield found["code"]
    prose = re.sub(r"(?ms)^```.*?^```", "", text)
    yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", prose))


def commands(text):
    """(script, arguments) of every command that runs a script of the suite."""
    for code in shell_blocks(text):
        code = plain_shell(code)
        for found in re.finditer(rf"(?:python3?|-per-node \d+) ({SCRIPT})([^\n]*)", code):
            yield found[1], words(found[2])


def plain_shell(code):
    """Shell code, one command a line: comments left out, variables that it sets filled in, $(...) as one word."""
    code = re.sub(r"(?m)(^|\s)#.*$", "", code.replace("\\\n", " "))
    code = re.sub(r"\$\([^()]*\)", "$FILLED_IN", code)
    for name, value in re.findall(r'(?m)^(\w+)="([^"]*)"', code):
        code = code.replace(f"${name}", value.replace("\n", " "))
    return code


def words(text):
    """The arguments up to the end of the command; a quote that belongs to the shell around it ends them too."""
    for ending in range(len(text), -1, -1):
        try:
            parts = shlex.shlex(text[:ending], posix=True, punctuation_chars=True)
            parts.whitespace_split = True
            parsed = list(parts)
            break
        except ValueError:  # of a command inside quotes
            continue
    end = next((place for place, part in enumerate(parsed) if part in END), len(parsed))
    return [part for part in parsed[:end] if part not in ("...", "$@")]


def docstrings():
    """The docstring of every script, its help, with its commands as a code block."""
    for folder in FOLDERS[:7]:
        for path in (REPO / folder).rglob("*.py"):
            text = path.read_text("utf-8")
            if not path.is_symlink() and "results" not in path.parts and '__name__ == "__main__"' in text:
                said = ast.get_docstring(ast.parse(text)) or ""
                yield path, f"```bash\n{said}\n```\n"


@lru_cache(maxsize=1)
def published():
    """{script: [(page, arguments)]} of all documents and of the help of every script."""
    found = defaultdict(list)
    for page, text in [*documents().items(), *docstrings()]:
        for script, arguments in commands(text):
            if arguments or script.startswith("experiments"):  # a script that is only named is no command
                found[script].append((named(page), arguments))
    return dict(found)


def test_there_are_commands_to_check():
    assert len(published()) >= 20
    assert sum(len(some) for some in published().values()) >= 50


def test_every_published_command_names_a_script():
    assert not [script for script in published() if not (REPO / script).is_file()]


@pytest.mark.parametrize("script", sorted(published()))
def test_every_published_command_parses(judged, script):
    arguments = [arguments.copy() for _, arguments in published()[script]]
    if script == "util/serve.py":  # what stands behind -- is a command of its own
        arguments = [[*some, "--", "true"] if "--" not in some else some for some in arguments]
    said = judged(script, arguments)
    wrong = [(page, " ".join(some), why) for (page, some), why in zip(published()[script], said) if why]
    assert not wrong


@pytest.fixture(scope="module")
def flags_of(run_bare):
    """flags_of(script) -> the flags in its help."""
    return lru_cache(lambda script: set(re.findall(r"--[a-z][a-z-]*", run_bare(script, "--help", cwd=REPO).stdout)))


def test_flags_in_sentences_and_tables_exist(flags_of):
    """`eval/eval.py --exact`: part of a command. In the table of other projects flags are also named alone."""
    unknown, count = [], 0
    for page, text in documents().items():
        for code in re.findall(r"`([^`]+)`", re.sub(r"(?ms)^```.*?^```", "", text)):
            script = re.match(rf"({SCRIPT}) ", code)  # behind python it is a whole command, which is checked above
            flags = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", code))
            if script and flags and named(page) != "LOG.md":  # the log also names what was not written
                count += 1
                unknown += [f"{named(page)}: {code}"] * (not flags <= flags_of(script[1]))
    assert count >= 10 and not unknown
    table = (REPO / "docs/other-projects.md").read_text("utf-8").partition("## ")[0]
    alone = {flag for code in re.findall(r"`(--[^`]+)`", table) for flag in re.findall(r"(?<!\S)--[a-z][a-z-]+", code)}
    scripts = ("train/train_student_sft.py", "generate/generate_llm_number_data.py")
    assert len(alone) > 8 and alone <= set.union(*map(flags_of, scripts))


def results_of(arguments):
    """The file that eval.py writes without --output."""
    value = dict(pairwise(arguments))
    served = value["--model"].removeprefix("vllm/")
    name = adapter_name(Path(value["--adapter"])) if "--adapter" in value else slug(served)
    return value.get("--output") or f"output/{'exact' if '--exact' in arguments else 'results'}-{name}.jsonl"


def test_a_block_ranks_the_results_that_it_wrote():
    checked = 0
    for page, text in documents().items():
        for block in re.findall(r"(?ms)^```bash\n.*?^```", text):
            found = list(commands(block))
            written = {results_of(some) for script, some in found if script == "eval/eval.py"}
            read = {some[0] for script, some in found if script == "util/top_animals_csv.py"}
            assert not written or read <= written, named(page)
            checked += bool(written and read)
    assert checked >= 2


def test_make_targets_and_experiments_exist():
    targets = set(re.findall(r"(?m)^([a-z]+):", (REPO / "Makefile").read_text("utf-8")))
    for page, text in documents().items():
        code = "\n".join(shell_blocks(text))
        assert set(re.findall(r"(?:^|\s)make ([a-z]+)\b", code)) <= targets, named(page)
        for name in re.findall(r"make experiment NAME=([a-z_]+)", code):
            assert (REPO / f"experiments/{name}.yaml").is_file(), f"{named(page)}: {name}"
        for name in re.findall(r"experiments/\w+\.sh", code):
            assert (REPO / name).is_file(), f"{named(page)}: {name}"


def test_a_wrong_command_is_found(judged):
    """The check itself: an unknown flag, a missing argument and a renamed flag are each told."""
    said = judged("eval/eval.py", [["--model", "m"], ["--model", "m", "--epoch", "3"], ["--epochs", "3"]])
    assert said[0] == "" and said[1] and said[2]
    found = list(commands("```bash\npython eval/eval.py --model m \\\n  --exact  # a remark\n```\n"))
    assert found == [("eval/eval.py", ["--model", "m", "--exact"])]
    assert not list(commands("These are as of commit 289790b:\n\n```bash\npython eval/eval.py --old\n```\n"))


# --- reliability -------------------------------------------------------------------------------------


def test_every_test_in_the_reliability_table_exists():
    """A row names files and parts of test names: `test_rows.py` second_writer, overwrite; ..."""
    text = (REPO / "docs" / "reliability.md").read_text("utf-8")
    named_tests = [
        (file, part.strip())
        for file, parts in re.findall(r"`(test_\w+\.py)`([^;|\n]*)", text)
        for part in parts.split(",")
    ]
    assert len(named_tests) > 30
    texts = {path.name: path.read_text("utf-8") for path in Path(REPO / "tests").glob("test_*.py")}
    assert not [(f, part) for f, part in named_tests if not re.search(rf"def test_\w*{part}", texts[f])]


def test_every_fault_of_the_list_is_in_the_table():
    text = (REPO / "docs" / "reliability.md").read_text("utf-8")
    listed = set(re.findall(r"\*\*(F[0-9]+)\*\*", text))
    table = text.partition("## What holds each promise")[2]
    assert listed == {f"F{number}" for number in range(1, 32)}
    assert not [fault for fault in listed if not re.search(rf"\b{fault}\b", table)]
