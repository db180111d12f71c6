"""Compare the exact log-probabilities of vLLM with those of the local backend, on one model and adapter.

Asked are the 20 most probable next tokens after each evaluation question and each number prompt, with and without the
first token of the answer, from four askers: vLLM with one request at a time, vLLM with many in flight, and the local
backend with one prompt and with many in a batch. Differences (nats) are over the tokens that both list. A backend
differs from itself at another batch size because the GPU adds in another order; vLLM and the local backend should not
differ more than that. vLLM rounds the logits to the model's number type. It does not with
--hf-overrides '{"head_dtype": "float32"}'; the local backend never does here. The server is started for it, as
util/serve.py starts it, but without its cache of prompts, because each prompt is asked again. Flags that this script
does not know are passed to it. With --dtype float32 its Triton kernels too multiply in float32 (TRITON_F32_DEFAULT).

Usage:
    python bench/backend_agreement.py --model Qwen/Qwen2.5-7B-Instruct --adapter output/teacher-sft/seed-42/final \\
        --output output/backend-agreement.json
    python bench/backend_agreement.py --model MODEL --adapter FOLDER --merged --dtype float32 --enforce-eager   # GPU
    python bench/backend_agreement.py --model pocket/model --dtype float32 --no-enable-chunked-prefill   # CPU
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import log
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.measured_runs import device_name
from bench.random_weights import merge
from generate.rows.number_prompts import NUMBER_PROMPT, number_prompt
from util.cli import REPO, make_parser, nonblank, output_name, positive_int, run
from util.inference.backend_interface import InferenceBackend
from util.inference.check_adapter import check_adapter
from util.inference.open_backend import backend_arguments, open_backend
from util.inference.vllm_server import START_SECONDS, server
from util.jsonl.manifest import provenance, write_json
from util.stop_signals import Stop, stop_on_signal
from util.terminal import say, table

DTYPES = ("bfloat16", "float32")
MANY = 64
TRITON_FLOAT32 = "TRITON_F32_DEFAULT"
LIKELY = 0.01
"""probability from which a token counts as likely"""

Listed = list[dict[int, float]]
"""next token id -> log-probability (nats), for each prompt"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.usage = "%(prog)s --model MODEL [options] [vllm serve flags]"
    parser.add_argument("--model", type=nonblank, required=True, help="hub id or folder of the base model")
    parser.add_argument("--adapter", type=Path, help="PEFT adapter folder to put on it")
    parser.add_argument("--merged", action="store_true", help="merge the adapter into the weights, for both: vLLM's"
                        " adapters on a GPU are bfloat16 or float16 only")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="number type of both (default: as each does)")
    parser.add_argument("--local-dtype", choices=DTYPES, help="number type of the local backend's arithmetic alone")
    parser.add_argument("--count", type=positive_int, default=50, help="number prompts")
    parser.add_argument("--seed", type=int, default=42, help="seed of the number prompts")
    parser.add_argument("--output", type=output_name(".json"), help="JSON file to write")
    args, args.flags = parser.parse_known_args()
    if args.merged and not args.adapter:
        parser.error("--merged: there is no --adapter to merge")
    args.flags = ["--no-enable-prefix-caching", *args.flags, *(["--dtype", args.dtype] if args.dtype else [])]
    return args


def merge_adapter(args: argparse.Namespace, folder: Path) -> None:
    """Make the model with the adapter merged into its weights the one that both are asked for."""
    args.model, args.adapter = str(merge(args.model, args.adapter, folder)), None
    args.flags += ["--no-enable-lora"]


def messages_of(args: argparse.Namespace) -> list[list[dict[str, str]]]:
    """The evaluation questions and number prompts."""
    template = NUMBER_PROMPT.read_text("utf-8")
    questions = (REPO / "eval" / "questions.txt").read_text("utf-8").split("\n")
    texts = [*filter(None, questions), *(number_prompt(template, args.seed, i) for i in range(args.count))]
    return [[{"role": "user", "content": text}] for text in texts]


def client(args: argparse.Namespace, together: int, url: str) -> InferenceBackend:
    """vLLM, asked `together` prompts at once."""
    return open_backend(backend_arguments(args.model, adapter=args.adapter, base_url=url, max_concurrency=together))


def ask_server(args: argparse.Namespace, stop: Stop) -> tuple[list[list[int]], dict[str, Listed]]:
    """The prompts as token ids, and vLLM's log-probabilities after each. A prompt is there twice: as it is, and with
    the most probable first token of the answer."""
    found = {}
    log = args.output.with_suffix(".vllm.log") if args.output else Path("output/vllm.log")
    with server(args.model, args.flags, log, START_SECONDS, stop) as running:
        with client(args, MANY, running.url) as many:
            prompts = [many.prompt_ids(messages) for messages in messages_of(args)]
            first = many.next_token_logprobs(prompts)
            prompts += [[*prompt, max(listed, key=listed.__getitem__)] for prompt, listed in zip(prompts, first)]
            found[f"vLLM, {MANY} in flight"] = many.next_token_logprobs(prompts)
        with client(args, 1, running.url) as one:
            found["vLLM, one at a time"] = one.next_token_logprobs(prompts)
    return prompts, found


def ask_local(args: argparse.Namespace, prompts: list[list[int]]) -> dict[str, Listed]:
    """The local backend's log-probabilities after each prompt."""
    import torch

    from util.inference.local_model import LocalModel

    found = {}
    for name, together in ((f"local, batches of {MANY}", MANY), ("local, one at a time", 1)):
        with LocalModel(args.model, args.adapter, batch_size=together) as local:
            if dtype := args.local_dtype or args.dtype:
                local.model.to(getattr(torch, dtype))
            found[name] = local.next_token_logprobs(prompts)
        gc.collect()
    return found


def difference(some: Listed, others: Listed) -> dict[str, float]:
    """Median and largest absolute difference (nats) over the tokens that both list, and over the likely ones."""
    pairs = [(a[token], b[token]) for a, b in zip(some, others, strict=True) for token in a.keys() & b.keys()]
    every = [abs(a - b) for a, b in pairs]
    likely = [abs(a - b) for a, b in pairs if max(a, b) >= log(LIKELY)]
    return {"tokens": len(every), "median": median(every), "largest": max(every),
            "likely": len(likely), "median_likely": median(likely), "largest_likely": max(likely)}  # fmt: skip


def compare(found: Mapping[str, Listed]) -> list[dict[str, object]]:
    """The differences between every two askers."""
    return [{"one": a, "other": b, **difference(found[a], found[b])} for a, b in combinations(found, 2)]


def shown(compared: Sequence[Mapping[str, object]]) -> str:
    header = ["nats", "tokens", "median", "largest", f"p >= {LIKELY:g}", "median", "largest"]
    names = ("tokens", "median", "largest", "likely", "median_likely", "largest_likely")
    return table(
        header, [[f"{row['one']} / {row['other']}", *(number(row[name]) for name in names)] for row in compared]
    )


def number(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}"
    return f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def main() -> None:
    args = parse_args()
    if args.dtype == "float32":  # vLLM's attention is a Triton kernel then, which rounds to 19 bits (TF32) otherwise
        os.environ.setdefault(TRITON_FLOAT32, "ieee")
    settings = {"model": args.model, "adapter": str(args.adapter), "merged": args.merged, "dtype": args.dtype,
                "local_dtype": args.local_dtype, "flags": args.flags,
                "triton_float32": os.environ.get(TRITON_FLOAT32)}  # fmt: skip
    if args.adapter:  # before a server is started, which takes minutes
        check_adapter(args.adapter)
    with TemporaryDirectory() as folder:
        if args.merged:
            merge_adapter(args, Path(folder))
        with stop_on_signal() as stop:
            prompts, found = ask_server(args, stop)
        say(f"vLLM answered for {len(prompts)} prompts; now the local backend")
        compared = compare({**found, **ask_local(args, prompts)})
    if args.output:
        write_json(args.output, {**provenance(), "device": device_name(), **settings, "prompts": len(prompts),
                                 "compared": compared})  # fmt: skip
    print(shown(compared))


if __name__ == "__main__":
    run(main)
