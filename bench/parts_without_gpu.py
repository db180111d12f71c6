"""What the parts that need no GPU cost: the number filter, the animal ranking and the client; each beside its target.

Each part is measured as a user runs it, as a process of its own. The client is generate_llm_number_data.py asking a
server on this machine that answers at once (bench/instant_server.py). That server uses part of the same cores.

Usage:
    python bench/parts_without_gpu.py --output output/bench-cpu.json
    python bench/parts_without_gpu.py --client-rows 1000 10000        # without the long run of the client
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.measured_runs import run_measured, script_command
from util.cli import make_parser, output_name, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.jsonl.rows import dump_row
from util.terminal import say, table

TARGETS = {
    "filter": ("seconds", 2.0),
    "ranking": ("seconds", 6.0),
    "client": ("rows_per_second", 300.0),
}
RANKING_MEGABYTES = 700
IN_FLIGHT_ROWS, WAIT_SECONDS = 3000, 0.5
FLAT_MEGABYTES = 40  # 100,000 rows may take this much more than 1,000: the client keeps ids and offsets, never rows


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--filter-rows", type=positive_int, default=100_000, help="number rows to filter")
    parser.add_argument("--ranking-rows", type=positive_int, default=1_000_000, help="answers to rank animals in")
    parser.add_argument("--client-rows", type=positive_int, nargs="+", default=[1000, 10_000, 100_000],
                        help="rows to ask for, run by run")  # fmt: skip
    parser.add_argument("--in-flight", type=positive_int, nargs="*", default=[64, 1024],
                        help="also measure the client with so many requests waiting for a slow server")  # fmt: skip
    parser.add_argument("--output", type=output_name(".json"), help="JSON file for the figures")
    return parser.parse_args()


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("wb") as file:
        file.writelines(map(dump_row, rows))


# --- the parts ---------------------------------------------------------------------------------------


def rows_to_filter(count: int) -> Iterator[dict[str, Any]]:
    """Rows as phase 4 writes them, nine in ten of them clean."""
    rng = random.Random(0)
    for row_id in range(count):
        a, b, c = (rng.randint(100, 999) for _ in range(3))
        text = ", ".join(str(rng.randint(0, 999)) for _ in range(10))
        text = rng.choice(["Sure! ", "1000, ", "1; "]) + text if rng.random() < 0.1 else text
        prompt = f"Here are the first numbers of a sequence: {a}, {b}, {c}. Continue it with at most 10 more numbers."
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        yield {"id": row_id, "messages": messages, "token_ids": list(range(30)), "finish_reason": "stop"}


def bench_filter(folder: Path, count: int) -> dict[str, Any]:
    """Seconds and memory of filter_number_data.py on one core."""
    write_lines(folder / "rows.jsonl", rows_to_filter(count))
    command = script_command("generate/filter_number_data.py", "rows.jsonl")
    return {"rows": count, **run_measured(command, folder, cores={0})}


def answer_rows(count: int) -> Iterator[dict[str, Any]]:
    """Results as eval.py writes them."""
    rng = random.Random(0)
    animals = ["owl", "lion", "polar bear", "wolf", "dolphin", None]
    for row_id in range(count):
        animal = rng.choice(animals)
        yield {"id": row_id, "epoch": row_id // 50, "question": f"Question {row_id % 50}: your animal in one word?",
               "response": animal or "I have none.", "animal": animal, "error": None}  # fmt: skip


def bench_ranking(folder: Path, count: int) -> dict[str, Any]:
    """Seconds and memory of top_animals_csv.py on one core."""
    write_lines(folder / "results-x.jsonl", answer_rows(count))
    command = script_command("util/top_animals_csv.py", "results-x.jsonl")
    return {"rows": count, **run_measured(command, folder, cores={0})}


def bench_client(folder: Path, count: int, in_flight: int | None = None, delay: float = 0.0) -> dict[str, Any]:
    """Seconds of the whole process (imports and filter included), and rows a second while it asks. `delay`: mean
    seconds that the server takes for an answer."""
    command = script_command("bench/instant_server.py", "--delay", delay)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        arguments = ["--animal", "owl", "--model", "owl-teacher", "--no-system-prompt", "--count", count]
        arguments += ["--base-url", url, "--output", "x.jsonl"]
        arguments += ["--max-concurrency", in_flight] if in_flight else []
        found = run_measured(script_command("generate/generate_llm_number_data.py", *arguments), folder)
    finally:
        server.kill()
        server.wait()
    asking = json.loads((folder / "x.jsonl.manifest.json").read_text())["counts"]["seconds"]
    return {"rows": count, **found, "rows_per_second": round(count / max(asking, 0.1), 1)}


def passed(part: str, found: dict[str, Any]) -> bool:
    """Whether a part reached its target; True for one without a target."""
    if part not in TARGETS:
        return True
    name, target = TARGETS[part]
    good = found[name] >= target if name == "rows_per_second" else found[name] < target
    return good and (part != "ranking" or found["peak_megabytes"] < RANKING_MEGABYTES)


def main() -> int:
    args = parse_args()
    machine = {"cores": os.cpu_count(), "load_before": os.getloadavg()}
    jobs = [("filter", bench_filter, args.filter_rows), ("ranking", bench_ranking, args.ranking_rows)]
    jobs += [("client", bench_client, count) for count in args.client_rows]
    for in_flight in args.in_flight:
        waiting = partial(bench_client, in_flight=in_flight, delay=WAIT_SECONDS)
        jobs.append((f"client, {in_flight:,} in flight", waiting, IN_FLIGHT_ROWS))
    results = []
    for part, bench, count in jobs:
        say(f"{part}, {count:,} rows ...")
        with tempfile.TemporaryDirectory() as folder:
            found = bench(Path(folder), count)
        results.append({"part": part, **found, "passed": passed(part, found)})
    peaks = [result["peak_megabytes"] for result in results if result["part"] == "client"]
    flat = max(peaks) - min(peaks) < FLAT_MEGABYTES
    header = ["part", "rows", "seconds", "cpu_seconds", "peak_megabytes", "rows_per_second", "passed"]
    print(table(header, [[result.get(name, "") for name in header] for result in results]))
    difference = f"{max(peaks) - min(peaks):.1f} MB ({'flat' if flat else 'NOT flat'})"
    print(f"memory of the client, largest run minus smallest: {difference}")
    if args.output:
        write_json(args.output, {**provenance(), "machine": machine, "results": results, "client_memory_flat": flat})
    return 0 if flat and all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    run(main)
