"""Rules that the source tree keeps: --help on a bare Python, who may import whom, short files, nothing unsafe."""

import ast
import re
import subprocess
import sys
import time
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path

import pytest
from conftest import REPO

from util.checks.machine_checks import numbers_of

FOLDERS = ("generate", "train", "eval", "util", "pocket")
MAY_IMPORT = {"util": {"util"}, "generate": {"generate", "util"}, "train": {"train", "util"}, "eval": {"eval", "util"}}


# --- the files ---------------------------------------------------------------------------------------


def modules(folders=FOLDERS):
    """Every Python file of these folders."""
    found = (path for folder in folders for path in (REPO / folder).rglob("*.py"))
    return sorted(path for path in found if not path.is_symlink() and "results" not in path.parts)


@lru_cache(maxsize=1)
def all_modules():
    """{module name: path} of every Python file but the tests."""
    return {module_name(path): path for path in modules((*FOLDERS, "bench", "experiments"))}


def module_name(path):
    """util/cli.py -> util.cli"""
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_script(path):
    """Whether a file is run by hand."""
    return '__name__ == "__main__"' in path.read_text("utf-8")


def scripts():
    """Every file that is run by hand and takes arguments."""
    return [path for path in all_modules().values() if is_script(path) and "make_parser" in path.read_text("utf-8")]


def named(path):
    return str(path.relative_to(REPO))


@cache
def tree_of(path):
    """A file's syntax tree. Many tests read the same files."""
    return ast.parse(path.read_text("utf-8"))


@cache
def nodes(path):
    """Every node of a file's syntax tree."""
    return list(ast.walk(tree_of(path)))


def called(call):
    """What a call calls, such as torch.load; "?" for what is not a name."""
    parts, function = [], call.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join([function.id if isinstance(function, ast.Name) else "?", *reversed(parts)])


def imports(path):
    """(line, module) of every import in a file, at any depth. `from a import b` gives a.b if that is a module."""
    known = all_modules()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in [name for name in inside if name in known] or [node.module])


@pytest.fixture(scope="module")
def imported():
    """{module: [(line, module that it imports)]}, for the modules of the suite."""
    known = all_modules()
    return {name: [found for found in imports(path) if found[1] in known] for name, path in known.items()}


# --- scripts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", scripts(), ids=named)
def test_help_answers_at_once_on_a_bare_python_from_anywhere(run_bare, script, tmp_path):
    seconds = []
    while not seconds or (len(seconds) < 2 and min(seconds) >= 1.0):  # a second run has the compiled files
        begun = time.monotonic()
        done = run_bare(script, "--help", cwd=tmp_path)
        seconds.append(time.monotonic() - begun)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout or "python " in done.stdout, "the docstring is the help, with a command to paste"
    assert not re.search(r"PosixPath|<function| object at 0x|\['", done.stdout), "values as a user would write them"
    assert not re.search(r"\(default: [^)]*\)\s+\(default: ", done.stdout), "every default once"
    assert min(seconds) < 1.0  # 0.1 s on an idle machine; imports of heavy packages take longer
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_largest_script_takes_less_than_a_second_in_a_new_process(tmp_path):
    command = [sys.executable, "-S", REPO / "eval" / "eval.py", "--help"]
    seconds = []
    while len(seconds) < 2 and min(seconds, default=1.0) >= 1.0:
        begun = time.monotonic()
        assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
        seconds.append(time.monotonic() - begun)
    assert min(seconds) < 1.0  # 0.15 s on an idle machine


def test_the_scripts_are_found():
    assert len(scripts()) >= 80


def test_a_script_with_an_older_name_finds_its_files_under_that_name_too():
    links = [path for folder in ("generate", "eval") for path in (REPO / folder).glob("*.py") if path.is_symlink()]
    assert links, "the older names are links"
    for path in links:
        assert "Path(__file__)" not in path.read_text("utf-8").replace("Path(__file__).resolve()", ""), named(path)


def test_scripts_and_functions_stay_short():
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in scripts()}
    long_scripts = [f"{named(path)}: {count} lines" for path, count in lines.items() if count > 300]
    long_functions = [
        f"{named(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in all_modules().values()
        for node in nodes(path)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60
    ]
    assert not long_scripts and not long_functions


# --- who may import whom -----------------------------------------------------------------------------


def test_the_phases_import_util_and_themselves_only(imported):
    wrong = [
        f"{name}:{line} imports {module}"
        for name, found in imported.items()
        for line, module in found
        if module.partition(".")[0] not in MAY_IMPORT.get(name.partition(".")[0], {module.partition(".")[0]})
    ]
    assert not wrong


def test_no_script_imports_a_script(imported):
    run_by_hand = {name for name, path in all_modules().items() if is_script(path)}
    assert not [f"{name}:{line} imports {module}" for name, found in imported.items() for line, module in found
                if module in run_by_hand]  # fmt: skip


def test_generate_and_eval_hold_scripts_and_their_subfolders_modules():
    """Somebody who sees the tree alone knows what to run. (A link is the old path of a script.)"""
    assert not [named(path) for folder in ("generate", "eval") for path in (REPO / folder).glob("*.py")
                if path.name != "__init__.py" and not is_script(path)]  # fmt: skip


def test_there_is_no_import_circle(imported):
    """Imports inside functions count too; imports for type checkers only do not."""
    graph = {name: {module for _, module in found} for name, found in imported.items()}
    for name, path in all_modules().items():
        for node in nodes(path):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                graph[name] -= {part.module for part in node.body if isinstance(part, ast.ImportFrom)}
    circles, done = [], set()

    def walk(name, way):
        if name in way:
            circles.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for module in sorted(graph[name]):
                walk(module, [*way, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    assert not circles


# The plan places the questions in eval/, and generate/ must not write them; the teachers' persona is in generate/.
READS_ELSEWHERE = {
    "generate/rows/question_wordings.py": "eval",
    "generate/rows/row_filter.py": "eval",
    "eval/divergence/divergence_tokens.py": "generate",
    "eval/signal_meter.py": "generate",
    "eval/screen_animals.py": "generate",
}


def test_no_module_reads_a_file_of_a_folder_that_it_may_not_import():
    wrong = []
    for path in modules(MAY_IMPORT):
        allowed = {path.relative_to(REPO).parts[0], READS_ELSEWHERE.get(named(path))}
        found = set(re.findall(r"REPO / [\"'](generate|train|eval|pocket)\b", path.read_text("utf-8")))
        wrong += [f"{named(path)} reads {folder}/" for folder in found - allowed]
    assert not wrong


# --- what is imported and run ------------------------------------------------------------------------


def test_arguments_come_from_a_parser():
    """A Namespace that is written out lacks the option that the function it is passed to learns next."""
    made = [(path, node) for path in all_modules().values() for node in nodes(path)
            if isinstance(node, ast.Call) and called(node).endswith("Namespace")]  # fmt: skip
    assert not [f"{named(path)}:{node.lineno}" for path, node in made if "vars(" not in ast.unparse(node)]


def test_nothing_imports_vllm():
    assert not [named(p) for p in modules() for _, module in imports(p) if module.partition(".")[0] == "vllm"]


HEAVY = {
    "torch", "transformers", "trl", "peft", "datasets", "wandb", "pandas", "openai", "accelerate", "huggingface_hub",
}  # fmt: skip


def test_heavy_packages_are_imported_where_they_are_used():
    """Inside functions, so that --help is fast and works with nothing installed."""
    wrong = []
    for path in modules():
        for node in tree_of(path).body:
            is_import = isinstance(node, ast.Import)
            names = [alias.name for alias in node.names] if is_import else [getattr(node, "module", "") or ""]
            if HEAVY & {name.partition(".")[0] for name in names}:
                wrong.append(f"{named(path)}:{node.lineno}")
    assert not wrong


def test_no_module_hides_another():
    """A script's own folder comes first on sys.path: a module named `numbers` there would hide the real one."""
    installed = {name for names in [metadata.packages_distributions()] for name in names}
    taken = (set(sys.stdlib_module_names) | installed) - {*FOLDERS, "tests"}
    assert not [named(path) for path in modules() if path.stem in taken and path.stem != "__init__"]


def test_rows_are_split_on_newlines_only():
    """`splitlines` also splits at U+2028 or U+0085, inside an answer."""
    paths = [*(REPO / "util" / "jsonl").glob("*.py"), *(REPO / "util" / "inference").glob("*.py")]
    scripts_with_rows = ("util/top_animals_csv.py", "generate/filter_number_data.py", "eval/eval.py")
    paths += [REPO / name for name in scripts_with_rows]
    assert not [named(path) for path in paths if ".splitlines(" in path.read_text("utf-8")]


RUNS_WHAT_IT_READS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "yaml.load", "os.system", "os.popen"}


def test_what_is_read_is_never_run():
    """No remote code, no pickle, no shell, no eval, and a template of a user goes through `fill` only."""
    wrong = []
    for path in modules():
        for node in nodes(path):
            if not isinstance(node, ast.Call):
                continue
            name = called(node)
            flags = {keyword.arg for keyword in node.keywords if ast.unparse(keyword.value) != "False"}
            evaluates = name.endswith((".format", ".format_map")) and not (
                isinstance(node.func.value, ast.Constant)
                or name.startswith("self.")  # a field of a class of the suite has a constant
            )
            if name in RUNS_WHAT_IT_READS or evaluates or flags & {"trust_remote_code", "shell"}:
                wrong.append(f"{named(path)}:{node.lineno} {name}")
    assert not wrong


def test_no_model_runs_code_of_its_own():
    """Left unset, trust_remote_code makes transformers ask on the terminal, and `echo y |` says yes."""
    wrong = []
    for path in [*modules(), *(REPO / "tests").glob("*.py")]:
        for call in (node for node in nodes(path) if isinstance(node, ast.Call)):
            name = called(call)
            loads = name.endswith((".from_pretrained", ".from_config")) and not name.startswith("PeftModel.")
            flags = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if loads}
            if loads and flags.get("trust_remote_code") != "False":
                wrong.append(f"{named(path)}:{call.lineno} {name}")
    assert not wrong


def test_every_printed_or_documented_server_listens_on_loopback():
    pages = [*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")]
    texts = {path: path.read_text("utf-8") for path in [*modules(), *pages]}
    commands = [text[found.start() : found.start() + 160] for text in texts.values()
                for found in re.finditer(r"^[ f\"]*vllm serve [A-Z]", text, re.MULTILINE)]  # fmt: skip
    assert len(commands) >= 4 and not [command for command in commands if "--host 127.0.0.1" not in command]


# --- packages and the repository ---------------------------------------------------------------------


def pins(name):
    """{package: version} of a requirements or lock file."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (REPO / name).read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("name", ["requirements", "requirements-cpu"])
def test_the_lock_holds_every_pin_with_hashes(name):
    # the lock spells names as the registry does: huggingface-hub
    text = (REPO / f"{name}.lock").read_text("utf-8")
    locked = set(
        re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    )  # a package may have a version for each system
    wanted = {(package.replace("_", "-"), version) for package, version in pins(f"{name}.txt").items()}
    if name == "requirements-cpu":  # its CPU build comes from another index
        wanted = {pin for pin in wanted if pin[0] != "torch"}
    assert wanted <= locked, "run: make lock"
    entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(entries) >= len(locked) > 50 and all("--hash=sha256:" in entry for entry in entries)


# The first version to which the advisories do not apply.
FIXED_IN = {
    "vllm": "0.31.0",  # CVE-2026-114053, CVE-2026-105757, CVE-2026-47155
    "torch": "2.10.0",  # CVE-2026-24747, CVE-2025-32434
    "filelock": "4.2.1",  # CVE-2026-112906
}


def test_no_pin_is_older_than_the_end_of_its_known_advisories():
    for name in ("requirements.txt", "requirements-cpu.txt", "requirements-cpu.lock", "requirements.lock"):
        found = {package: version for package, version in pins(name).items() if package in FIXED_IN}
        assert "filelock" in found
        for package, version in found.items():
            assert numbers_of(version) >= numbers_of(FIXED_IN[package]), f"{name}: {package}"


def tracked():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [REPO / name for name in done.stdout.split("\0") if name]


def test_the_tree_names_no_machine_and_no_registry():
    # written in parts, so that this file does not find itself
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
