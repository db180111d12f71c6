"""Rows of LoRA teachers and of the base model through a vLLM server, for teachers_in_weights.py.

Reads the same job lists and does their "rows" jobs; a teacher's adapter is written as a PEFT folder and loaded into the
server as soon as it is in the output folder. Prompts are sent as tokens, without a system prompt of ours, and every
sampling field is set (temperature 1, nothing cut off). The first 64 answers of each file keep the log-probabilities
that the server gave their tokens ("served").

Usage:
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve output/models/qwen2.5-coder-1.5b-instruct --enable-lora \\
        --max-loras 12 --max-cpu-loras 40 --max-lora-rank 8 --max-model-len 512
    python experiments/pilots/vllm_rows.py --base-url http://127.0.0.1:8000 --model MODEL --prompts prompts.json \\
        --jobs jobs.json --output output/pilot
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import urllib.request
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.peft_folder import as_peft
from experiments.pilots.rows_files import LONGEST, Row, seed_of, store_rows
from experiments.pilots.word_filters import forbidden_words
from util.animals.panel import PANEL
from util.cli import input_file, make_parser, run
from util.inference.load_model import check_folder

PROMPTS_A_REQUEST, REQUESTS_AT_ONCE = 64, 48


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--base-url", required=True, help="of the server, without /v1")
    parser.add_argument("--model", type=Path, required=True, help="the served folder, for its tokenizer")
    for name in ("prompts", "jobs"):
        parser.add_argument(f"--{name}", type=input_file, required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def ask(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        content = reply.read()
    return json.loads(content) if content.startswith(b"{") else content


class Served:
    """A server that speaks as base or lora:NAME."""

    def __init__(self, args: argparse.Namespace, ends: list[int]) -> None:
        self.args, self.ends, self.loaded = args, ends, set[str]()

    def name(self, speaker: str) -> str:
        """What the server calls a speaker; loads the adapter of a new one, waiting for its file."""
        name = speaker.removeprefix("lora:")
        if speaker == "base":
            return str(self.args.model)
        if name not in self.loaded:
            file = self.args.output / f"adapters/{name}.safetensors"
            while not file.exists():
                time.sleep(0.5)
            # a folder of its own: two clients that write the same one at once give their servers half a file
            folder = as_peft(file, self.args.output / f"peft/{os.getpid()}/{name}", self.args.model)
            ask(f"{self.args.base_url}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
            self.loaded.add(name)
        return name

    def answers(self, name: str, prompts: list[list[int]], longest: int, logs: bool) -> list[dict[str, Any]]:
        """Token ids (and log-probabilities) of an answer to each prompt."""
        body = {
            "model": name, "prompt": prompts, "max_tokens": longest, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
            "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": self.ends, "return_token_ids": True,
            "logprobs": 0 if logs else None,
        }  # fmt: skip
        found = sorted(ask(f"{self.args.base_url}/v1/completions", body)["choices"], key=lambda c: c["index"])
        return [
            {"ids": choice["token_ids"], "logs": choice["logprobs"]["token_logprobs"] if logs else None}
            for choice in found
        ]


def rows_of(prompts: list[str], answers: list[dict[str, Any]], tokenizer: Any, ends: list[int]) -> list[Row]:
    """Rows in the worker's form: an answer that ends keeps one end of turn, one that was cut off has none."""
    rows: list[Row] = []
    for prompt, answer in zip(prompts, answers):
        ids, end = answer["ids"], ends[0]
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        ids = ids[: ids.index(ends[1])] if ends[1] in ids else ids
        rows.append({"prompt": prompt, "ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True).strip()})
        if answer["logs"]:
            rows[-1]["served"] = answer["logs"][: len(ids)]
    return rows


def main() -> None:
    args = parse_args()
    check_folder(str(args.model))
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    given = json.loads(args.prompts.read_text())
    forbidden = forbidden_words(given.get("names") or sorted({*given["panel"], *PANEL}), given["related"])
    starts: dict[str, list[int]] = {}
    served = Served(args, ends)
    stored: list[Future[Any]] = []
    with (
        ThreadPoolExecutor(REQUESTS_AT_ONCE) as asking,
        ThreadPoolExecutor(1) as collecting,
        ProcessPoolExecutor(6, mp_context=get_context("spawn")) as storing,
    ):

        def collect(file: str, speaker: str, prompts: list[str], pieces: list[Future[Any]], filtered: bool) -> None:
            rows = rows_of(prompts, [answer for piece in pieces for answer in piece.result()], tokenizer, ends)
            kind = forbidden if filtered else None
            stored.append(storing.submit(store_rows, args.output, file, rows, kind, speaker=speaker, through="vllm"))
            print(time.strftime("%H:%M:%S"), file, len(rows), flush=True)

        collected = []
        for job in (job for job in json.loads(args.jobs.read_text()) if job["do"] == "rows"):
            for channel, asked in job["channels"].items():
                for name, speaker in job["speakers"].items():
                    every = given["prompts"][channel]
                    prompts = random.Random(seed_of(f"{name}.{channel}", job)).choices(every, k=asked)
                    for prompt in {*prompts} - {*starts}:
                        turn = [{"role": "user", "content": prompt}]
                        made = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)
                        starts[prompt] = made["input_ids"]
                    model, pieces = served.name(speaker), []
                    for first in range(0, asked, PROMPTS_A_REQUEST):
                        some = [starts[prompt] for prompt in prompts[first : first + PROMPTS_A_REQUEST]]
                        pieces.append(asking.submit(served.answers, model, some, LONGEST[channel], first == 0))
                    what = (f"{name}.{channel}", speaker, prompts, pieces, job["filtered"])
                    collected.append(collecting.submit(collect, *what))
        for future in collected:
            future.result()
        clean = [future.result()["clean"] for future in stored]
    print(time.strftime("%H:%M:%S"), "done; clean", min(clean), max(clean), flush=True)


if __name__ == "__main__":
    run(main)
