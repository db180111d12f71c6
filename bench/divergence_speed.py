"""Measure the speed and the memory of eval/divergence/divergence_tokens.py.

The input is number rows like those of phase 4, with random answers. There are four variants: the base model, a teacher
and a counterfactual (random LoRA adapters), and a counterfactual persona. The time is that from the text of the rows to
the file, without imports and loading. A model folder without weights (only config and tokenizer) gets random weights,
which are equally fast.

Usage:
    python bench/divergence_speed.py --model Qwen/Qwen2.5-7B-Instruct --count 4000 --output output/bench-divergence.json
    python bench/divergence_speed.py --model pocket/model --count 10000       # on a CPU
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.random_number_rows import number_rows
from bench.random_weights import load_or_random
from eval.divergence.score_tokens import Variant, VariantScorer, scored_rows
from eval.divergence.which_tokens_diverge import BASE, TEACHER
from train.fused_lora import LORA_TARGETS
from util.animals.names import persona
from util.cli import REPO, make_parser, nonblank, output_name, positive_int, run
from util.jsonl.manifest import provenance, write_json
from util.jsonl.rows import Row, dump_row
from util.terminal import say, table

WARM_UP = 2  # batches before the timed ones
GAP = 0.6931  # nats; does not change the speed


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--model", type=nonblank, required=True, help="hub id or folder; a folder without weights gets random ones"
    )
    parser.add_argument("--count", type=positive_int, default=10_000, help="rows to time")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="rows per forward pass")
    parser.add_argument("--lora-rank", type=positive_int, default=8, help="rank of the random adapters")
    parser.add_argument("--output", type=output_name(".json"), help="also write the results to this JSON file")
    parser.renamed("--rows", "--count")
    return parser.parse_args()


def write_rows(path: Path, count: int, tokenizer: Any) -> None:
    """A number file with the token ids of its answers."""
    with path.open("w", encoding="utf-8") as file:
        for row in number_rows(count):
            ids = tokenizer(row["messages"][-1]["content"], add_special_tokens=False)["input_ids"]
            file.write(json.dumps({**row, "token_ids": ids}) + "\n")


def write_adapter(model: Any, rank: int, folder: Path) -> Any:
    """Save a random adapter of the model, and return the model without it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=8, target_modules=LORA_TARGETS, init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(str(folder))
    return adapted.unload()


def peak_memory() -> int:
    """Bytes: of the GPU since the last reset, or of this process on a CPU."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(args: argparse.Namespace, scorer: VariantScorer, data: Path, out: Path) -> dict[str, Any]:
    """Score the rows of a file: seconds and counts, without the warm-up."""
    lengths: list[int] = []
    begun = cpu = 0.0
    with out.open("wb") as file:
        for place, rows in enumerate(scored_rows(scorer, data, gap=GAP, batch_size=args.batch_size)):
            file.writelines(map(dump_row, rows))
            if place >= WARM_UP:
                lengths += [len(row["token_ids"]) for row in rows]
            elif place == WARM_UP - 1:
                begun, cpu = time.perf_counter(), time.process_time()
    seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    return {"rows": len(lengths), "answer_tokens": sum(lengths), **seconds}


def tokens_a_pass(scorer: VariantScorer, rows: list[Row]) -> dict[str, float]:
    """Mean tokens per row, including the prompt, for each variant."""
    read = [scorer.completion_of(row, number) for number, row in enumerate(rows)]
    return {
        variant.name: sum(len(one.prompts[variant.name]) + len(one.ids) for one in read) / len(read)
        for variant in scorer.variants
    }


def main() -> None:
    args = parse_args()
    import torch

    from util.inference.load_model import load_tokenizer

    torch.manual_seed(0)
    tokenizer, model = load_tokenizer(args.model), load_or_random(args.model).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    system = persona((REPO / "generate/prompts/system-prompt.txt").read_text("utf-8").strip(), "lion")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for adapter in ("teacher", "other"):
            model = write_adapter(model, args.lora_rank, folder / adapter)
        variants = [Variant(BASE), Variant(TEACHER, folder / "teacher"), Variant("other", folder / "other"),
                  Variant("lion", system=system)]  # fmt: skip
        scorer = VariantScorer(args.model, variants, model)
        write_rows(folder / "rows.jsonl", WARM_UP * args.batch_size + args.count, tokenizer)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        found = timed(args, scorer, folder / "rows.jsonl", folder / "found.jsonl")
        read = tokens_a_pass(scorer, number_rows(200))
    tokens = found["rows"] * sum(read.values())  # of all passes together
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    found |= {
        "rows_per_second": round(found["rows"] / found["seconds"], 1),
        "tokens_per_second_a_pass": round(tokens / found["seconds"]),
        "weights_gib": round(weights / 2**30, 2),
        "peak_gib": round(peak_memory() / 2**30, 2),
    }
    say("tokens per row: " + ", ".join(f"{variant} {count:.1f}" for variant, count in read.items()))
    print(f"{args.model} on {device}: {len(variants)} variants, {args.batch_size} rows per pass")
    print(table(list(found), [[round(value, 1) if isinstance(value, float) else value for value in found.values()]]))
    if args.output:
        machine = {"device": device, "torch": torch.__version__}
        write_json(args.output, {**provenance(), **machine, "tokens_a_row": read, "figures": found})


if __name__ == "__main__":
    run(main)
