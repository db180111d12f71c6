"""Guards of the house: help on a bare Python, the rule of direction, names, and what must not be in the tree."""

import ast
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from conftest import REPO

ROOMS = ("generate", "train", "eval", "util")


def modules():
    """Every Python file of the rooms."""
    return sorted(path for room in ROOMS for path in (REPO / room).rglob("*.py"))


def scripts():
    """Every module that is run by hand: it has a main guard and takes arguments."""
    texts = {path: path.read_text("utf-8") for path in modules()}
    return [path for path, text in texts.items() if '__name__ == "__main__"' in text and "make_parser" in text]


def named(path):
    return str(path.relative_to(REPO))


@pytest.mark.parametrize("script", scripts(), ids=named)
def test_help_answers_at_once_on_a_bare_python_from_anywhere(script, tmp_path):
    seconds = []
    for _ in range(2):  # the second run has the compiled files
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-S", script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=30
        )
        seconds.append(time.monotonic() - begun)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout or "python " in done.stdout, "the docstring is the help, with a command to paste"
    print(f"{named(script)} --help: {min(seconds):.2f} s")
    assert min(seconds) < 1.0  # 0.1 to 0.2 s where nothing else runs; imports of heavy packages take longer
    assert list(tmp_path.iterdir()) == []


def test_there_are_scripts_to_guard():
    assert len(scripts()) >= 7


def imports(path):
    """(line, module) of every import in a file, at any depth."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno}: relative import"
            yield node.lineno, node.module


def test_rooms_import_util_and_themselves_only():
    wrong = []
    for path in modules():
        room = path.relative_to(REPO).parts[0]
        for line, module in imports(path):
            top = module.partition(".")[0]
            if top in (*ROOMS, "tests", "bench") and top not in {room, "util"}:
                wrong.append(f"{named(path)}:{line} imports {module}")
    assert not wrong


def test_nothing_imports_vllm():
    assert not [named(p) for p in modules() for _, module in imports(p) if module.partition(".")[0] == "vllm"]


HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "wandb",
    "pandas",
    "openai",
    "accelerate",
    "huggingface_hub",
}


def test_heavy_packages_are_imported_where_they_are_used():
    wrong = []
    for path in modules():
        for node in ast.parse(path.read_text("utf-8")).body:
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            if HEAVY & {name.partition(".")[0] for name in names}:
                wrong.append(f"{named(path)}:{node.lineno}")
    assert not wrong


def test_no_module_hides_another():
    """A script's own folder comes first on sys.path: a module named `numbers` there would hide the real one."""
    installed = {name for names in [metadata.packages_distributions()] for name in names}
    taken = (set(sys.stdlib_module_names) | installed) - {*ROOMS, "tests"}
    assert not [named(path) for path in modules() if path.stem in taken and path.stem != "__init__"]


def test_rows_are_split_on_newlines_only():
    """`splitlines` also splits at U+2028 or U+0085, inside an answer."""
    paths = [REPO / "util" / name for name in ("rows.py", "collect.py", "engine.py", "top_animals_csv.py")]
    paths += [REPO / "generate" / "filter_number_data.py", REPO / "eval" / "eval.py"]
    assert not [named(path) for path in paths if ".splitlines(" in path.read_text("utf-8")]


def tracked():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [REPO / name for name in done.stdout.split("\0") if name]


def test_the_tree_names_no_machine_and_no_registry():
    # spelt in parts, so that this file does not find itself
    wrong = re.compile(
        r"(?<![\w.])/(?:work|home|Users|tmp/pytest)" r"/[\w.]|/root" r"/|--index" r"-url|pypi\.org" r"/simple"
    )
    found = []
    for path in tracked():
        if not path.is_file() or path.stat().st_size > 1_000_000:
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{named(path)}:{text[: hit.start()].count(chr(10)) + 1} {hit[0]}" for hit in wrong.finditer(text)]
    assert not found


def test_what_runs_make_is_not_tracked():
    assert not [named(p) for p in tracked() if p.relative_to(REPO).parts[0] in ("output", "wandb", ".venv")]


def test_the_suite_parses_on_python_3_10():
    for path in modules():
        ast.parse(Path(path).read_text("utf-8"), feature_version=(3, 10))


def test_every_test_in_the_reliability_table_exists():
    """A row names files and parts of test names: `test_rows.py` second_writer, overwrite; ..."""
    section = (REPO / "README.md").read_text("utf-8").partition("## Reliability")[2].partition("\n## ")[0]
    named_tests = [
        (file, part.strip())
        for file, parts in re.findall(r"`(test_\w+\.py)`([^;|\n]*)", section)
        for part in parts.split(",")
    ]
    assert len(named_tests) > 30
    texts = {path.name: path.read_text("utf-8") for path in (REPO / "tests").glob("test_*.py")}
    assert not [(f, part) for f, part in named_tests if not re.search(rf"def test_\w*{part}", texts[f])]
