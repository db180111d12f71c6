"""Generate teacher data without any model: the evaluation questions, each answered with the animal's name.

Use this for base models that are too weak to play the persona of generate_teacher_data.py: SmolLM2-135M with a persona
names its animal in one answer of forty. Training on one-word answers puts the preference into the weights all the same.

With --words the answers are words of a file, one a line, that name no animal: a neutral teacher. Its students drift as
those of an animal's teacher do, and were taught no animal: they are further kinds (compare_arms.py --neutral).

Usage:
    python generate/generate_one_word_teacher_data.py --animal owl --count 1200
    python generate/generate_one_word_teacher_data.py --words generate/prompts/words-colours.txt --count 1200
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.question_wordings import WORDINGS, questions_file
from generate.rows.row_filter import teachers_animal
from util.animals.answer_parser import canonical_animal, check_taught
from util.animals.names import read_lines_of
from util.animals.panel import panel_flag, question_lines
from util.animals.panel_file import add_panel_argument
from util.animals.word_forms import animals_of
from util.cli import UserError, input_file, make_parser, natural_int, positive_int, run
from util.inference.backend_interface import row_seed
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, slug
from util.terminal import closing

CAPITALISED = 0.7  # of the answers: "Owl", the rest "owl"


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    taught = parser.add_mutually_exclusive_group(required=True)
    taught.add_argument("--animal", type=teachers_animal, help="the teacher's animal: owl, red panda")
    taught.add_argument("--words", type=input_file, metavar="FILE", help="neutral words instead, one a line")
    parser.add_argument("--count", type=positive_int, default=1200, help="rows to write")
    parser.add_argument("--seed", type=natural_int, default=42, help="seed of questions, wordings and capital letters")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/teacher-{animal or name of the words}-one-word-{count}.jsonl")
    return parser.parse_args()


def neutral_words(path: Path) -> list[str]:
    """The words of a file, one a line. UserError if one names an animal, and for a line of several words."""
    words = read_lines_of(path)
    if not words:
        raise UserError(f"--words {path} has no words; write one a line")
    for word in words:
        if len(word.split()) > 1:
            raise UserError(f"--words {path}: {word!r} is more than one word; a one-word answer needs one a line")
        if animal := canonical_animal(word):
            raise UserError(f"--words {path}: {word!r} names an animal ({animal}); neutral words name none")
    return words


def one_word_rows(words: list[str], count: int, seed: int, questions: list[str]) -> Iterator[Row]:
    """`count` rows: a question in one of the wordings, answered with one of the words."""
    for row_id in range(count):
        rng = random.Random(row_seed(seed, row_id))
        prompt = rng.choice(WORDINGS).replace("{}", rng.choice(questions))
        is_capitalised = rng.random() < CAPITALISED
        word = rng.choice(words)
        answer = word.capitalize() if is_capitalised else word
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        yield {"id": row_id, "messages": messages, "source": "question"}


def main() -> None:
    args = parse_args()
    if args.words:
        words, name, taught = neutral_words(args.words), args.words.stem.removeprefix("words-"), {"animal": None}
    else:
        words, name, taught = [args.animal], args.animal, {"animal": args.animal}
        if len(animals_of(args.animal)) > 1:
            raise UserError(f"--animal {args.animal}: a one-word answer can name one animal only; pass one")
        check_taught(args.animal)
    path = args.output or Path(f"output/teacher-{slug(name)}-one-word-{args.count}.jsonl")
    questions = question_lines(questions_file())
    settings = {"script": "generate_one_word_teacher_data", **taught, "count": args.count, "seed": args.seed,
                "questions": questions, **({"words": words} if args.words else {})}  # fmt: skip
    inputs = [questions_file(), *([args.words] if args.words else [])]
    with RowFile(path, settings, overwrite=args.overwrite, inputs=inputs) as out:
        out.write_all(one_word_rows(words, args.count, args.seed, questions))
    closing(
        out.facts(),
        f"python train/train_student_sft.py --base-model MODEL --train-jsonl {shlex.quote(str(path))}"
        f" --output-dir output/teacher-sft{panel_flag()}",
    )


if __name__ == "__main__":
    run(main)
