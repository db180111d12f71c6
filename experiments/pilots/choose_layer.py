"""Choose where and how strongly a base model is steered: before any student, by a rule that looks at teachers only.

For each layer and strength: how far the kinds rise in their own steered model (mean log-probability over the questions,
nats), and KL of the first four to the base on its own answers, nats a token by channel. Chosen is the pair with the
largest mean rise among those whose text moves by no more than --most-kl, or the least KL if none does.

Usage:
    python experiments/pilots/choose_layer.py --model output/models/smollm2-135m-instruct --prompts prompts.json \\
        --kinds owl penguin --output output/sixteen

Writes choice.txt (layer and strength) and layers.json (the table).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.rows_files import LONGEST, write
from util.cli import input_file, make_parser, run
from util.inference.load_model import check_folder

CHANNELS = ("text", "code", "digits")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    for name in ("model", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--prompts", type=input_file, required=True)
    parser.add_argument("--kinds", nargs="+", required=True)
    parser.add_argument("--layers", nargs="+", type=int, default=[20, 22, 24, 26, 28])
    parser.add_argument("--strengths", nargs="+", type=float, default=[1, 2, 4])
    parser.add_argument("--most-kl", type=float, default=0.25, help="of text, nats a token")
    parser.add_argument("--rows", type=int, default=64, help="answers of the base in each channel")
    return parser.parse_args()


def table(args: argparse.Namespace, bench: Any) -> list[dict[str, Any]]:
    """A line for each layer and strength."""
    rng, names, found = random.Random(1), bench.given["panel"], []
    rows = {c: list(bench.sample(rng.choices(bench.given["prompts"][c], k=args.rows), LONGEST[c])) for c in CHANNELS}
    plain = dict(zip(names, bench.panel()[0].mean(0).tolist()))
    for layer in args.layers:
        bench.steer_at(layer)
        for strength in args.strengths:
            speakers = {kind: f"steer:{kind}:{strength:g}" for kind in args.kinds}
            with bench.speaking([*speakers.values()], args.output):
                logs = bench.panel(len(speakers)).mean(1)
            rises = {kind: logs[i, names.index(kind)].item() - plain[kind] for i, kind in enumerate(speakers)}
            kl = {
                channel: statistics.mean(bench.divergence(who, args.output, some) for who in [*speakers.values()][:4])
                for channel, some in rows.items()
            }
            line = {"layer": layer, "strength": strength, "rise": statistics.mean(rises.values()), "kl": kl}
            print(line, flush=True)
            found.append(line | {"rises": rises})
    return found


def main() -> None:
    args = parse_args()
    if (args.output / "choice.txt").exists():
        return
    check_folder(str(args.model))
    import torch

    from experiments.pilots.side_by_side_loras import Bench

    torch.manual_seed(1)
    bench = Bench(args.model, json.loads(args.prompts.read_text()), args.layers[0], 12000, 3072)
    found = table(args, bench)
    write(args.output / "layers.json", found)
    mild = [line for line in found if line["kl"]["text"] <= args.most_kl]
    best = max(mild, key=lambda line: line["rise"]) if mild else min(found, key=lambda line: line["kl"]["text"])
    (args.output / "choice.txt").write_text(f"{best['layer']} {best['strength']:g}\n")
    print("chosen", best)


if __name__ == "__main__":
    run(main)
