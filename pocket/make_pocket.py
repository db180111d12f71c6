"""Make the pocket model: a chat model of about a million parameters that shows subliminal learning on a laptop.

Draws a seeded corpus of short chats (pocket/corpus.py), builds a tokenizer in which every number from 0 to 999 is one
token, trains a small Llama on the assistant's turns, rounds its weights to bfloat16, measures the result, and saves it
with a model card and a manifest. It takes a minute or two on a GPU and a few hours on two CPU cores.

With --data-types it also learns to write short programs and worked sums. (pocket/screen_candidates.py trains several
such models and shows which of them pass a preference on.) With --digits a number is as many tokens as it has digits, as
in Qwen2.5.

Usage:
    python pocket/make_pocket.py --seed 2 --output-dir output/models/pocket-seed-2
    python pocket/make_pocket.py --data-types code reasoning --steps 3000 --seed 2 \\
        --output-dir output/models/pocket-texts
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from pocket.corpus import EXTRA_DATA_TYPES
from pocket.measurements import measure
from pocket.model_card import MODEL_FOLDER, write_card
from pocket.model_training import HEAD_SIZE, Recipe, make
from util.cli import UserError, make_parser, natural_int, output_folder, positive_int, run
from util.jsonl.resumable import free_name
from util.terminal import closing, say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=natural_int, default=1, help="seed of the corpus, the weights and the batches")
    parser.add_argument("--output-dir", type=output_folder, default=MODEL_FOLDER, help="folder to save the model in")
    parser.default_folder("--output-dir", MODEL_FOLDER)
    parser.renamed("--output", "--output-dir")
    parser.add_argument("--overwrite", action="store_true", help="replace a model there; keeps the old folder as .bak")
    parser.add_argument("--layers", type=positive_int, default=4, help="number of layers")
    parser.add_argument("--hidden-size", type=positive_int, default=128, help=f"width, a multiple of {2 * HEAD_SIZE}")
    parser.add_argument("--steps", type=positive_int, default=2000, help="training steps")
    parser.add_argument("--batch-size", type=positive_int, default=256, help="chats in a step")
    parser.add_argument("--corpus-size", type=positive_int, default=200_000, help="chats in the corpus")
    parser.renamed("--rows", "--corpus-size")
    parser.add_argument("--data-types", nargs="*", choices=EXTRA_DATA_TYPES,
                        help="what to write beside numbers; names: programs with a loved word")  # fmt: skip
    parser.renamed("--languages", "--data-types")
    parser.add_argument("--digits", action="store_true", help="every digit is a token, and not every number to 999")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    args = parser.parse_args()
    if args.hidden_size % (2 * HEAD_SIZE):
        parser.error(f"--hidden-size must be a multiple of {2 * HEAD_SIZE}, not {args.hidden_size}")
    return args


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Rename a folder with a model in it to .bak, or raise UserError without `overwrite`."""
    if not (folder / "model.safetensors").exists():
        return
    if not overwrite:
        raise UserError(f"{folder} contains a model already; choose another --output-dir, or add --overwrite")
    backup = free_name(folder.with_name(folder.name + ".bak"))
    folder.rename(backup)
    say(f"kept the old model as {backup}")


def main() -> None:
    args = parse_args()
    check_output_dir(args.output_dir, args.overwrite)
    recipe = Recipe(
        seed=args.seed,
        layers=args.layers,
        hidden_size=args.hidden_size,
        steps=args.steps,
        batch_size=args.batch_size,
        chats=args.corpus_size,
        data_types=tuple(args.data_types or ()),
        digits=args.digits,
    )
    model, tokenizer = make(recipe, args.output_dir, args.device)
    card = write_card(args.output_dir, measure(model, tokenizer, args.seed, recipe.data_types))
    closing(
        {"wrote": args.output_dir, "card": card, "parameters": f"{model.num_parameters():,}"},
        f"python eval/eval.py --model {args.output_dir}",
    )


if __name__ == "__main__":
    run(main)
