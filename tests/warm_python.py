"""A Python that has imported torch and the other large packages, and runs scripts in forked copies of itself.

A script that needs torch spends most of a small test on imports: 8 s of processor time for a training. Here it starts
with the imports done, and is otherwise what `python script` is: a process of its own, with its own arguments, folder,
environment, output files and exit code. Arguments name other modules to import first. tests/conftest.py starts this
program and asks it, one line of JSON a script:

    {"command": [...], "cwd": "...", "env": {...}, "stdout": "path", "stderr": "path"}

It answers with two lines: the process id, then [return code (negative: the signal), processor seconds].
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

# transformers and trl import their parts only when these are used, so the parts are named.
PACKAGES = (
    "torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "peft",
    "trl.trainer.sft_trainer", "datasets", "pandas", "openai", "scipy.stats",
)  # fmt: skip


def become(command: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    """Turn this process into the one that runs the script."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, stdout, os.O_WRONLY), (2, stderr, os.O_WRONLY)):
        opened = os.open(path, flags | (os.O_CREAT | os.O_TRUNC if stream else 0), 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    script = command[1]
    sys.argv = command[1:]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        gc.unfreeze()  # what is not collected at the end counts as a leak, and some packages print that


def main() -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for package in sys.argv[1:] or PACKAGES:
        if importlib.util.find_spec(package.partition(".")[0]) is not None:
            importlib.import_module(package)
    gc.collect()
    gc.freeze()  # no copies of memory pages in the children only because the collector visits them
    while line := requests.readline():
        request: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            requests.close()
            become(**request)
            return
        print(child, file=answers, flush=True)
        _, status, usage = os.wait4(child, 0)
        result = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
