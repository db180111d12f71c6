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

from util.checks.machine_checks import numbers_of

ROOMS = ("generate", "train", "eval", "util", "pocket")


def modules():
    """Every Python file of the rooms."""
    return sorted(path for room in ROOMS for path in (REPO / room).rglob("*.py") if not path.is_symlink())


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


ABOVE = {"util": set(), "generate": {"util"}, "train": {"util"}, "eval": {"util"}}  # what each may import beside itself


def module_name(path):
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def house():
    """Every Python file of the suite but its tests: {module name: path}."""
    rooms = (*ROOMS, "bench", "experiments")
    found = (path for room in rooms for path in (REPO / room).rglob("*.py") if not path.is_symlink())
    return {module_name(path): path for path in found if "results" not in path.parts}


def imported_modules(path, known):
    """(line, module) for every module of the suite that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inside if name in known] or [node.module]
            yield from ((node.lineno, module) for module in modules if module in known)


def test_rooms_import_util_and_themselves_only():
    known = house()
    wrong = []
    for name, path in known.items():
        room = name.partition(".")[0]
        for line, module in imported_modules(path, known):
            if room in ABOVE and module.partition(".")[0] not in {room, *ABOVE[room]}:
                wrong.append(f"{named(path)}:{line} imports {module}")
    assert not wrong


def test_no_script_imports_a_script():
    known = house()
    run_by_hand = {name for name, path in known.items() if '__name__ == "__main__"' in path.read_text("utf-8")}
    wrong = [
        f"{named(path)}:{line} imports {module}"
        for path in known.values()
        for line, module in imported_modules(path, known)
        if module in run_by_hand
    ]
    assert not wrong


def test_there_is_no_import_circle():
    """At any depth: an import inside a function counts too, one for type checkers alone does not."""
    known = house()
    graph = {name: {module for _, module in imported_modules(path, known)} for name, path in known.items()}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                graph[name] -= {part.module for part in node.body if isinstance(part, ast.ImportFrom)}
    circles = []

    def walk(name, way):
        if name in way:
            circles.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for module in sorted(graph[name]):
                walk(module, [*way, name])
            done.add(name)

    done: set[str] = set()
    for name in sorted(graph):
        walk(name, [])
    assert not circles


def test_scripts_and_functions_stay_short():
    long_scripts = [f"{named(p)}: {len(p.read_text('utf-8').splitlines())} lines" for p in scripts() if
                    len(p.read_text("utf-8").splitlines()) > 300]  # fmt: skip
    long_functions = [
        f"{named(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in house().values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60
    ]
    assert not long_scripts and not long_functions


def test_no_module_reads_a_file_of_a_room_above_it():
    """Data lies at or below the floor that reads it; eval/questions*.txt, which the plan places, is the exception."""
    wrong = []
    for name, path in house().items():
        room = name.partition(".")[0]
        if room not in ABOVE:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.BinOp)
                and isinstance(node.op, ast.Div)
                and ast.unparse(node).startswith("REPO / '")
            ):
                place = ast.unparse(node).split("'")[1]
                questions = room == "generate" and "question" in path.read_text("utf-8")
                if (
                    place in ("generate", "train", "eval", "pocket")
                    and place != room
                    and not (questions and place == "eval")
                ):
                    wrong.append(f"{named(path)}:{node.lineno} {ast.unparse(node)}")
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
    paths = [*(REPO / "util" / "jsonl").glob("*.py"), *(REPO / "util" / "inference").glob("*.py")]
    paths += [
        REPO / "util" / "top_animals_csv.py",
        REPO / "generate" / "filter_number_data.py",
        REPO / "eval" / "eval.py",
    ]
    assert not [named(path) for path in paths if ".splitlines(" in path.read_text("utf-8")]


RUNS_WHAT_IT_READS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "yaml.load", "os.system", "os.popen"}


def test_what_is_read_is_never_run():
    """No remote code, no pickle, no shell, no evaluation, and no template of a user's in anything but `fill`."""
    wrong = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            flags = {keyword.arg for keyword in node.keywords if ast.unparse(keyword.value) != "False"}
            evaluates = name.endswith((".format", ".format_map")) and not (
                isinstance(node.func.value, ast.Constant)
                or name.startswith("self.")  # a field holds a constant of ours
            )
            if name in RUNS_WHAT_IT_READS or evaluates or flags & {"trust_remote_code", "shell"}:
                wrong.append(f"{named(path)}:{node.lineno} {name}")
    assert not wrong


def test_every_printed_or_documented_server_listens_on_loopback():
    pages = [*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")]
    texts = {path: path.read_text("utf-8") for path in [*modules(), *pages]}
    commands = [text[found.start() : found.start() + 160] for text in texts.values()
                for found in re.finditer(r"^[ f\"]*vllm serve [A-Z]", text, re.MULTILINE)]  # fmt: skip
    assert len(commands) >= 4 and not [command for command in commands if "--host 127.0.0.1" not in command]


def pins(name):
    """{package: version} of a requirements or lock file."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (REPO / name).read_text("utf-8"), re.MULTILINE))


def test_the_lock_holds_every_pin_with_hashes():
    # spelt in the lock as the registry does: huggingface-hub
    wanted = {name.replace("_", "-"): version for name, version in pins("requirements-cpu.txt").items()}
    del wanted["torch"]  # its CPU build comes from another place
    locked = pins("requirements-cpu.lock")
    assert wanted.items() <= locked.items(), "run: make lock"
    text = (REPO / "requirements-cpu.lock").read_text("utf-8")
    entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(entries) >= len(locked) > 50 and all("--hash=sha256:" in entry for entry in entries)


# The first version without the advisory.
MENDED = {
    "vllm": "0.31.0",  # CVE-2026-114053, CVE-2026-105757, CVE-2026-47155
    "torch": "2.10.0",  # CVE-2026-24747, CVE-2025-32434
    "filelock": "4.2.1",  # CVE-2026-112906
}


def test_no_pin_is_older_than_the_end_of_its_known_advisories():
    for name in ("requirements.txt", "requirements-cpu.txt", "requirements-cpu.lock"):
        found = {package: version for package, version in pins(name).items() if package in MENDED}
        assert "filelock" in found
        for package, version in found.items():
            assert numbers_of(version) >= numbers_of(MENDED[package]), f"{name}: {package}"


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
