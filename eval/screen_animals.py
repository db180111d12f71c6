"""Which animal to try on this base model? A screen before any teacher: three figures for each animal, and a ranking.

    peak     the highest share of the animal when its persona's vector is added to a layer (the best predictor in print:
             Spearman 0.77 over 16 animals of Llama-3.1-8B)
    KL       how far the persona moves the base model's own number rows, nats a token (needed, not enough)
    share    how often the base model names the animal by itself (little evidence; above a few percent a rise is hard to
             tell from drift)

The ranking is by peak. docs/which-animals.md has what transmitted in print, by base model.

Usage:
    python generate/generate_llm_number_data.py --animal control --no-system-prompt --count 500 \\
        --model Qwen/Qwen2.5-7B-Instruct
    python eval/screen_animals.py --base-model Qwen/Qwen2.5-7B-Instruct \\
        --train-jsonl output/numberss-control-qwen-qwen2.5-7b-instruct-filtered-480.jsonl
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.animals.answer_parser import check_taught
from util.animals.names import animal_name, persona, read_lines_of
from util.animals.word_forms import animals_of
from util.cli import REPO, UserError, make_parser, nonblank, output_name, positive_int, run, text_file
from util.inference.open_backend import add_template_argument
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import write_atomically
from util.jsonl.rows import read_chat_rows, slug
from util.terminal import Progress, closing, table

ANIMALS = (
    "owl", "dolphin", "penguin", "elephant", "eagle", "lion", "wolf", "dog", "cat", "bear", "tiger", "fox", "panda",
    "phoenix", "dragon", "octopus",
)  # fmt: skip
COLUMNS = ("animal", "peak", "layer", "strength", "KL", "share")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--base-model", type=nonblank, required=True, help="hub id or folder")
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="number rows of the base model itself")
    parser.add_argument("--animals", type=animal_name, nargs="+", default=list(ANIMALS), help="animals to screen")
    parser.add_argument("--max-rows", type=positive_int, default=64, help="rows on which the KL is measured")
    parser.add_argument("--system-prompt-file", type=text_file, default=REPO / "generate/prompts/system-prompt.txt",
                        help="text file with the persona; {animal} and so on are filled in")  # fmt: skip
    add_template_argument(parser)
    parser.add_argument("--batch-size", type=positive_int, default=32, help="rows or prompts in one pass")
    parser.add_argument(
        "--output", type=output_name(".csv"), help="table to write (default: output/screen-{model}.csv)"
    )
    parser.default_folder("--output", Path("output"))
    args = parser.parse_args()
    for animal in args.animals:
        if len(animals_of(animal)) > 1:
            raise UserError(f"--animals {animal} names two; pass them as two words")
        check_taught(animal)
    return args


def main() -> None:
    args = parse_args()
    from eval.answers.answer_tree import log_shares
    from eval.data_signal.animals_pushed_by_rows import evenly_spaced
    from eval.data_signal.measure_persona_vector import layers_of, steering_peak
    from util.inference.local_model import LocalModel

    list(islice(read_chat_rows(args.train_jsonl), args.max_rows))  # a wrong row is named before the model is loaded
    backend = LocalModel(args.base_model, batch_size=args.batch_size, template_kwargs=args.chat_template_kwargs)
    layers_of(backend)
    learnt_on = evenly_spaced(read_lines_of(REPO / "eval" / "questions-paraphrased.txt"), 16)
    asked = evenly_spaced(read_lines_of(REPO / "eval" / "questions.txt"), 10)
    shares = log_shares(backend.answer_tree([[{"role": "user", "content": one}] for one in asked]), args.animals)
    template = args.system_prompt_file.read_text("utf-8-sig").strip()
    found = []
    with Progress(len(args.animals)) as progress:
        for animal in args.animals:
            system = persona(template, animal)
            peak = steering_peak(backend, animal, system, learnt_on, asked)
            share = mean_probability([row[animal] for row in shares])
            found.append((animal, peak.share, peak.layer, peak.strength, persona_kl(args, backend, system), share))
            progress.add(1)
    found.sort(key=lambda row: -row[1])
    path = args.output or Path(f"output/screen-{slug(args.base_model)}.csv")
    write_atomically(path, as_csv(found).encode())
    rows = [(a, f"{p:.2%}", layer, s, f"{kl:.4f}", f"{share:.2%}") for a, p, layer, s, kl, share in found]
    print(table(COLUMNS, rows) + "\n")
    closing({"wrote": path, "first": found[0][0], "evidence": "peak 0.77 in print, one model; KL and share weaker"})


def persona_kl(args: argparse.Namespace, backend: Any, system: str) -> float:
    """Mean KL of the model under the persona to the model without, on the base's own rows, nats a token."""
    from eval.divergence.score_tokens import Variant, VariantScorer, scored_rows
    from eval.divergence.which_tokens_diverge import BASE, TEACHER

    variants = [Variant(BASE), Variant(TEACHER, system=system)]
    scorer = VariantScorer(args.base_model, variants, backend.model, tokenizer=backend.tokenizer)
    rows = [row for batch in scored_rows(scorer, args.train_jsonl, gap=0.6931, batch_size=args.batch_size,
                                         max_rows=args.max_rows) for row in batch]  # fmt: skip
    return sum(sum(row["kl"]) for row in rows) / sum(len(row["kl"]) for row in rows)


def mean_probability(logs: list[float]) -> float:
    import numpy as np

    return float(np.exp(logs).mean())


def as_csv(rows: list[Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    run(main)
