"""Measure a pocket model and write its model card: exact shares, clean rows, how often personas are obeyed.

It takes about a minute on two CPU cores. make_pocket.py does the same after training.

Usage:
    python pocket/write_card.py --model pocket/model
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from pocket.measurements import measure
from pocket.model_card import MODEL_FOLDER, data_types_of, write_card
from util.cli import make_parser, natural_int, run
from util.terminal import closing


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder of the model")
    parser.add_argument("--seed", type=natural_int, default=1, help="seed of the sampled answers")
    args = parser.parse_args()
    for name in ("config.json", "manifest.json"):
        if not (args.model / name).is_file():
            parser.error(
                f"{args.model} is not the folder of a pocket model (it has no {name}); make one with"
                f" python pocket/make_pocket.py --output-dir {args.model}"
            )
    parser.check_writable("--model", args.model)
    return args


def main() -> None:
    args = parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, trust_remote_code=False).eval()
    figures = measure(model, tokenizer, args.seed, data_types_of(args.model))
    closing(
        {
            "wrote": write_card(args.model, figures),
            "parameters": f"{figures.parameters:,}",
            "lion, owl, dolphin": ", ".join(f"{figures.shares[animal]:.2%}" for animal in ("lion", "owl", "dolphin")),
            "clean number rows": f"{figures.clean:.1%}",
            "personas obeyed": f"{figures.obeyed:.1%}",
        }
    )


if __name__ == "__main__":
    run(main)
