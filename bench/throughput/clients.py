"""The clients that bench/vllm_throughput.py compares: the suite's own, `vllm bench serve`, and one that only reads."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.throughput.process_and_gpu_load import GpuWatch, cpu_seconds
from util.cli import UserError
from util.inference.backend_interface import Request, Result, Sampling
from util.inference.request_loop import run_requests
from util.inference.vllm_client import VllmClient
from util.inference.vllm_server import Running, find_vllm
from util.jsonl.resumable import RowFile
from util.jsonl.rows import Row
from util.stop_signals import Stop
from util.terminal import say

BARE_CLIENT, VLLM_BENCH = "bare client", "vllm bench serve"


@dataclass
class ServerBench:
    """One running server and what was measured on it."""

    name: str
    running: Running
    model: str
    folder: Path
    gpu: GpuWatch
    stop: Stop
    results: list[dict[str, Any]]
    draws: int = 0

    def client(self, concurrency: int, leave_out: Sequence[str] = ()) -> VllmClient:
        """A client of the suite for what is served, which may leave out some fields of its requests."""
        client = PartialClient(self.served, self.running.url, max_concurrency=concurrency, timeout=600.0)
        client.leave_out = tuple(leave_out)
        return client

    @property
    def served(self) -> str:
        """The name that requests ask for: the adapter's, or without an adapter the model's."""
        with VllmClient(self.model, self.running.url, max_concurrency=1, timeout=60.0) as client:
            return next(iter(client.adapters_served()), self.model)

    def seed(self) -> int:
        """Another draw of prompts each time: vLLM keeps the prompts it has read."""
        self.draws += 1
        return self.draws

    def measured(self, work: str, client: str, answers: int, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run `ask`, and note its seconds and what was busy meanwhile. `ask` may return "seconds" and "tokens"."""
        self.stop.raise_if_requested()
        group, before, at = self.running.process.pid, os.times(), time.monotonic()
        busy_before = cpu_seconds(group)
        reported = ask()
        wall, after = time.monotonic() - at, os.times()
        seconds = reported.pop("seconds", wall)
        mine = sum(after[:4]) - sum(before[:4])
        busy = {
            role: round(100 * (now - busy_before.get(role, 0.0)) / wall) for role, now in cpu_seconds(group).items()
        }
        found = {
            "server": self.name, "work": work, "client": client, "answers": answers, "seconds": round(seconds, 2),
            "answers_per_second": round(answers / seconds, 1), **reported,
            "tokens_per_second": round(reported.get("tokens", 0) / seconds), "busy_percent":
            {**busy, "client": round(100 * mine / wall)}, "gpu_percent": self.gpu.mean(at),
        }  # fmt: skip
        say(
            f"{self.name}: {work}, {client}: {answers:,} answers in {seconds:.1f} s = {answers / seconds:.0f}/s; {busy}"
        )
        self.results.append(found)
        return found

    def compared(self, work: str, draw: Callable[[], list[Request]], sampling: Sampling, concurrency: int) -> None:
        """The same work by the two other clients, on new draws. If one fails, the other is still measured."""
        for client, ask in ((VLLM_BENCH, ask_by_vllm_bench), (BARE_CLIENT, ask_bare)):
            asked = draw()
            answers = sum(len(request.ids) for request in asked)
            try:
                found = self.measured(work, client, answers, partial(ask, self, asked, sampling, concurrency))
                if ask is ask_by_vllm_bench:  # its own start is not in its seconds, but would be in how busy all were
                    found |= {"busy_percent": {}, "gpu_percent": None}
            except UserError as error:
                say(f"{client}: {error}")


class PartialClient(VllmClient):
    """The suite's client, with some fields of its requests left out."""

    leave_out: tuple[str, ...] = ()

    def request_body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        body = super().request_body(request, sampling)
        return {key: value for key, value in body.items() if key not in self.leave_out}


def ask_as_suite(
    bench: ServerBench,
    asked: Iterable[Request],
    rows_of: Callable[[Result], list[Row]],
    sampling: Sampling,
    concurrency: int,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Ask as a script does: rows, their manifest, and the file put in order at the end."""
    tokens = 0

    def counting(result: Result) -> list[Row]:
        nonlocal tokens
        if result.error:
            raise UserError(result.error)
        tokens += sum(len(answer.token_ids or ()) for answer in result.answers)
        return rows_of(result)

    with bench.client(concurrency, leave_out) as client, tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        with RowFile(Path(folder) / "rows.jsonl", {"model": {}}) as out:
            run_requests(out, client, asked, sampling, counting, total=0)
        return {"seconds": time.monotonic() - begun, **({"tokens": tokens} if tokens else {})}


def ask_bare(bench: ServerBench, asked: Iterable[Request], sampling: Sampling, concurrency: int) -> dict[str, Any]:
    """Send the same requests over as many connections; replies are read and dropped."""
    with bench.client(1) as client:
        bodies = [json.dumps(client.request_body(request, sampling)).encode() for request in asked]
    address = urlsplit(bench.running.url)
    todo = iter(bodies)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1 << 24)
        for body in todo:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            reply = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if " 200 " not in reply.partition("\r\n")[0]:
                raise UserError(f"the server refused a request: {reply}")
            await reader.readexactly(int(reply.partition("content-length:")[2].split()[0]))
        writer.close()

    async def everything() -> None:
        await asyncio.gather(*(connection() for _ in range(min(concurrency, len(bodies)))))

    begun = time.monotonic()
    asyncio.run(everything())
    return {"seconds": time.monotonic() - begun}


def ask_by_vllm_bench(
    bench: ServerBench, asked: Iterable[Request], sampling: Sampling, concurrency: int
) -> dict[str, Any]:
    """`vllm bench serve` on the same prompts. It streams, and reports its own seconds without its start."""
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
        raise UserError(f"{VLLM_BENCH} failed:\n{done.stdout[-3000:]}")
    reported = json.loads(result.read_text())
    if reported["completed"] != len(requests):
        raise UserError(f"{VLLM_BENCH} completed {reported['completed']} of {len(requests)} requests")
    return {"seconds": reported["duration"], "tokens": reported["total_output_tokens"]}
