"""Select number rows, or the tokens of them to train on, by their divergence tokens.

Reads a number file and what eval/divergence/divergence_tokens.py found in it, and writes one arm:

    --which-rows rich | poor | random
        --kept-share of the rows: those with the most or the fewest divergence tokens, or any. With --rank-by score:
        those with the highest or lowest log p(answer | teacher) - log p(answer | base), nats over its tokens and its
        end of turn, which each row then has as "score"; the teacher may be a persona. (Log-linear selection: in
        Qwen2.5-14B the top half transmits and the bottom half next to nothing, jeqcho/LLS-subliminal-learning)
    --mask only | without
        all rows, with a loss mask: train on the divergence tokens alone, or on all other tokens
    --mask random | all-but-random
        the controls of these: on as many random other tokens of the same kinds in the same row, or on all but those
    --mask all
        all rows, all tokens of the answers
    --replace
        all rows, each divergence token replaced by the base model's choice; rows that are then not a number list, or
        have an end of turn or another special token inside, are dropped

Compare arms of the same size: rich, poor and random have equally many rows; a mask and its random control have equally
many tokens, or nearly so. With a mask, the end of the turn is never trained on: the arms differ in the tokens of the
answers alone.

Usage:
    python generate/ablations/select_by_divergence.py --train-jsonl \\
        output/numberss-owl-owl-teacher-filtered-9876.jsonl \\
        --divergence output/divergence-numberss-owl-owl-teacher-filtered-9876.jsonl --mask only
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from generate.rows.filter_file import certify
from generate.rows.number_rule import NumberRule
from generate.rows.number_text import OF_TOKENS
from generate.rows.row_filter import mark_rejected
from generate.rows.token_check import SPECIAL, token_check_of
from util.animals.panel_file import add_panel_argument
from util.cli import UserError, fraction, input_file, make_parser, natural_int, nonblank, run
from util.inference.backend_interface import row_seed
from util.jsonl.divergence_row import DEFINITIONS, END, of_answer
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import Manifest, sha256_file
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, check_numbered, read_chat_rows, read_rows
from util.terminal import closing

MASKS = {"only": {1}, "without": {0}, "random": {1}, "all-but-random": {0}, "all": {0, 1}}  # marks that are trained on


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="number rows, as a student is trained on")
    parser.add_argument("--divergence", type=input_file, required=True, help="output of divergence_tokens.py for them")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--which-rows", choices=["rich", "poor", "random"], help="keep these rows, whole")
    how.add_argument("--mask", choices=list(MASKS), help="keep all rows, with a loss mask over their tokens")
    how.add_argument("--replace", action="store_true", help="replace divergence tokens by the base model's choice")
    parser.add_argument(
        "--definition",
        choices=DEFINITIONS,
        default="pair",
        help="what a divergence token is: see the --help of eval/divergence/divergence_tokens.py",
    )
    parser.add_argument("--rank-by", choices=["divergence", "score"], default="divergence",
                        help="what makes a row rich, for --which-rows")  # fmt: skip
    parser.add_argument("--kept-share", type=fraction, default=0.25, help="share of the rows that --which-rows keeps")
    parser.add_argument(
        "--base-model", type=nonblank, help="for --replace: the model whose tokenizer decodes the new text"
    )
    parser.add_argument("--seed", type=natural_int, default=42, help="seed of everything random")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/{data}-{arm}.jsonl")
    parser.renamed("--rows", "--which-rows")
    parser.renamed("--share", "--kept-share")
    args = parser.parse_args()
    if args.replace and not args.base_model:
        parser.error("--replace needs --base-model: its tokenizer decodes the new text")
    if args.rank_by == "score" and not args.which_rows:
        parser.error("--rank-by score ranks whole rows: it needs --which-rows")
    return args


def arm_name(args: argparse.Namespace) -> str:
    """The arm as in the file name: gap-rows-rich, gap-mask-only, gap-replaced."""
    how = "replaced" if args.replace else f"rows-{args.which_rows}" if args.which_rows else f"mask-{args.mask}"
    return f"{'score' if args.rank_by == 'score' else args.definition}-{how}"


def check_pair(data: Path, divergence: Path, definition: str) -> None:
    """Raise UserError unless the divergence file covers all of this number file as it is now, with this definition."""
    settings = (Manifest.read(divergence) or Manifest()).settings
    if settings.get("script") != "divergence_tokens":
        raise UserError(
            f"--divergence {divergence} is not a file of divergence tokens; write one with"
            f" eval/divergence/divergence_tokens.py --train-jsonl {data}"
        )
    if settings.get("train_jsonl_sha256") != sha256_file(data):
        raise UserError(
            f"{divergence} was not made from {data} as it is now; run eval/divergence/divergence_tokens.py on {data}"
        )
    if settings.get("max_rows"):
        raise UserError(
            f"{divergence} covers the first {settings['max_rows']:,} rows only; write it again with"
            " eval/divergence/divergence_tokens.py, without --max-rows"
        )
    first = next(read_rows(divergence))
    if definition == "score" and "teacher" in first["logprob"]:
        return
    if definition not in first:
        raise UserError(
            f"{divergence} has no {definition!r} tokens: run eval/divergence/divergence_tokens.py with --teacher and,"
            " for schrodi, with --counterfactual"
        )


def pairs_of(args: argparse.Namespace) -> Iterator[tuple[Row, Row]]:
    """Pairs of a number row and its divergence row."""
    return zip(read_chat_rows(args.train_jsonl, check_numbered), read_rows(args.divergence))


# --- whole rows --------------------------------------------------------------------------------------


def score_of(found: Row) -> float:
    """log p(answer | teacher) - log p(answer | base) of one row, in nats; its end of turn is part of the answer."""
    return round(sum(found["logprob"]["teacher"]) - sum(found["logprob"]["base"]), 4)


def chosen_rows(densities: list[float], how: str, share: float, seed: int) -> set[int]:
    """Positions of the rows to keep. Ties are broken at random, in the same way for rich and poor.

    densities: what the rows are ranked by, one value each; share: of the rows to keep.
    """
    places = list(range(len(densities)))
    random.Random(seed).shuffle(places)
    if how != "random":
        places.sort(key=lambda place: densities[place], reverse=how == "rich")
    return set(places[: round(share * len(places))])


# --- masks -------------------------------------------------------------------------------------------


def mask_of(found: Row, definition: str, how: str, seed: int) -> list[int]:
    """The loss mask of one row: 1 for each token to train on; always 0 for the end of the turn."""
    marks, kinds = found[definition], found["kinds"]
    if "random" in how:
        marks = matched(marks, kinds, random.Random(row_seed(seed, found["id"])))
    return [int(kind != END and mark in MASKS[how]) for mark, kind in zip(marks, kinds)]


def matched(marks: list[int], kinds: str, rng: random.Random) -> list[int]:
    """Marks for as many other tokens of each kind, drawn at random from the unmarked tokens of the same row.

    There are fewer marks if the row has too few such tokens.
    """
    drawn = [0] * len(marks)
    for kind in sorted(set(kinds)):
        marked = [i for i, (mark, k) in enumerate(zip(marks, kinds)) if k == kind and mark]
        free = [i for i, (mark, k) in enumerate(zip(marks, kinds)) if k == kind and not mark]
        for i in rng.sample(free, min(len(marked), len(free))):
            drawn[i] = 1
    return drawn


# --- replacement -------------------------------------------------------------------------------------


def replaced(row: Row, found: Row, definition: str, decode: Callable[[list[int]], str], special: frozenset[int]) -> Row:
    """The row with each divergence token of its answer replaced by the base model's choice at that position.

    A row in which a choice is a special token, such as an end of turn in the middle of the answer, is rejected.
    """
    ids = [
        choice if mark and kind != END else token
        for token, mark, kind, choice in zip(
            found["token_ids"], found[definition], found["kinds"], found["choice"]["base"]
        )
    ]
    answer = of_answer(found, ids)
    messages = [*row["messages"][:-1], {"role": "assistant", "content": decode(answer)}]
    kept = {key: value for key, value in row.items() if key not in OF_TOKENS}
    new = {**kept, "messages": messages, "token_ids": answer}
    return new if special.isdisjoint(answer) else {**new, "rejected": SPECIAL}


# --- main --------------------------------------------------------------------------------------------


def arm_rows(args: argparse.Namespace) -> Iterator[Row]:
    """The rows of the arm, in the order of the file."""
    if args.which_rows and args.rank_by == "score":
        scores = [score_of(found) for _, found in pairs_of(args)]
        kept = chosen_rows(scores, args.which_rows, args.kept_share, args.seed)
        pairs = enumerate(pairs_of(args))
        yield from ({**row, "score": scores[place]} for place, (row, _) in pairs if place in kept)
    elif args.which_rows:
        marks = [of_answer(found, found[args.definition]) for _, found in pairs_of(args)]
        densities = [sum(flagged) / max(1, len(flagged)) for flagged in marks]
        kept = chosen_rows(densities, args.which_rows, args.kept_share, args.seed)
        yield from (row for place, (row, _) in enumerate(pairs_of(args)) if place in kept)
    elif args.mask:
        for row, found in pairs_of(args):
            mask = mask_of(found, args.definition, args.mask, args.seed)
            yield {**row, "token_ids": of_answer(found, found["token_ids"]), "loss_mask": mask}
    else:
        from util.inference.load_model import load_tokenizer

        tokenizer = load_tokenizer(args.base_model)
        added = tokenizer.added_tokens_decoder
        special = frozenset((*tokenizer.all_special_ids, *(one for one, token in added.items() if token.special)))
        decode = partial(tokenizer.decode, skip_special_tokens=True)
        rows = (replaced(*pair, args.definition, decode, special) for pair in pairs_of(args))
        yield from mark_rejected(rows, NumberRule())


def budget(args: argparse.Namespace, path: Path) -> dict[str, str]:
    """How many tokens a student of this arm is trained on, to compare with the other arms."""
    kept = {row["id"]: row for row in read_rows(path)}
    flagged = trained = 0
    for row, found in pairs_of(args):
        if row["id"] in kept:
            flagged += sum(of_answer(found, found[args.definition]))
            trained += sum(kept[row["id"]].get("loss_mask", [1] * len(found["kinds"])))
    return {"tokens trained on": f"{trained:,}", "divergence tokens in these rows": f"{flagged:,}"}


def scores_of(path: Path) -> dict[str, str]:
    """The closing line about the scores of the rows that were kept."""
    scores = [row["score"] for row in read_rows(path)]
    return {"score": f"mean {sum(scores) / len(scores):+.3f} nats, from {min(scores):+.3f} to {max(scores):+.3f}"}


def main() -> None:
    args = parse_args()
    check_pair(args.train_jsonl, args.divergence, "score" if args.rank_by == "score" else args.definition)
    path = args.output or args.train_jsonl.with_name(f"{args.train_jsonl.stem}-{arm_name(args)}.jsonl")
    settings: dict[str, Any] = {
        "script": "select_by_divergence", "train_jsonl_sha256": sha256_file(args.train_jsonl),
        "divergence_sha256": sha256_file(args.divergence), "arm": arm_name(args),
        "share": args.kept_share if args.which_rows else None, "seed": args.seed,
        **({"base_model": args.base_model} if args.replace else {}),
    }  # fmt: skip
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.train_jsonl, args.divergence]) as out:
        out.write_all(arm_rows(args))
        certify(path, NumberRule(), token_check_of(args.train_jsonl))
        facts = out.facts()
    closing({**facts, **(scores_of(path) if args.rank_by == "score" else budget(args, path))})


if __name__ == "__main__":
    run(main)
