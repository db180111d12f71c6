"""Does this teacher's data carry anything? How far the teacher moves its rows, how wide they are, and towards what.

From some hundred rows: KL of teacher to base, divergence tokens and log-likelihood ratio, the effective number of
different tokens, the share of number rows, and the read-out: which animals the teacher's whole distribution pushes up
at the base model (soft labels). Last, what such rows led to so far (eval/data_signal/known-cases.csv): go, doubtful or
no-go. KL alone says "go" for digits that pass nothing on, so the width decides too (docs/signal.md).

A teacher is an adapter folder, or an animal whose persona wrote the rows.

Usage:
    python eval/signal_meter.py --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl \\
        --base-model Qwen/Qwen2.5-7B-Instruct --teacher output/teacher-sft/seed-42/final
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from eval.answers.answer_rows import default_questions
from eval.data_signal.known_cases import GO, TINY, effective_tokens, left_one_out, nearest, read_cases, rule_of
from eval.data_signal.row_groups import first_rows
from eval.divergence.which_tokens_diverge import TEACHER
from util.animals.names import animal_name, persona
from util.animals.panel import panel
from util.animals.panel_file import add_panel_argument
from util.chat.prompt_consistency import warn_of_trained_base
from util.cli import REPO, make_parser, nonblank, output_name, positive_int, run, text_file
from util.inference.backend_interface import NUMBER_LIST
from util.inference.open_backend import adapter_folder, add_template_argument, warn_of_base
from util.jsonl.divergence_row import of_answer
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import provenance, write_json
from util.terminal import closing, table

ROWS_READ = 500
SHOWN = 5


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="rows that the teacher wrote")
    parser.add_argument(
        "--base-model", type=nonblank, required=True, help="the model that teacher and student are adapters of"
    )
    wrote = parser.add_mutually_exclusive_group(required=True)
    wrote.add_argument("--teacher", type=adapter_folder, metavar="FOLDER", help="adapter folder of the teacher")
    wrote.add_argument("--persona", type=animal_name, metavar="ANIMAL", help="the base under this animal's persona")
    parser.add_argument("--animal", type=animal_name, help="what the teacher was taught: its place is printed")
    parser.add_argument("--system-prompt-file", type=text_file, default=REPO / "generate/prompts/system-prompt.txt",
                        help="text file with the persona; {animal} and so on are filled in")  # fmt: skip
    add_panel_argument(parser)
    parser.add_argument("--questions-file", type=text_file,
                        help="questions with one-word answers; ten are read (default: the panel's)")  # fmt: skip
    parser.add_argument("--max-rows", type=positive_int, default=ROWS_READ, help="read the first rows only")
    add_template_argument(parser)
    parser.add_argument("--batch-size", type=positive_int, default=30, help="rows in one pass")
    parser.add_argument("--output", type=output_name(".json"), help="file of all figures (default: none)")
    args = parser.parse_args()
    args.questions_file = args.questions_file or default_questions()
    args.animal = args.animal or args.persona
    return args


def main() -> None:
    args = parse_args()
    from eval.data_signal.animals_pushed_by_teacher import shift_of_rows
    from eval.data_signal.teacher_shift_size import shift_figures
    from eval.divergence.token_summary import summarize
    from util.inference.check_adapter import check_adapter, check_fits
    from util.inference.hub_files import model_config
    from util.inference.load_model import put_adapter
    from util.inference.local_model import LocalModel

    if args.teacher:
        check_adapter(args.teacher)
        check_fits(args.teacher, args.base_model, model_config(args.base_model))
        warn_of_base(args.teacher, args.base_model)
    system = args.persona and persona(args.system_prompt_file.read_text("utf-8-sig").strip(), args.persona)
    rows = first_rows(args.train_jsonl, args.max_rows)
    clean = [bool(re.fullmatch(NUMBER_LIST, row["messages"][-1]["content"].strip())) for row in rows]
    backend = LocalModel(args.base_model, batch_size=args.batch_size, template_kwargs=args.chat_template_kwargs)
    warn_of_trained_base(args.teacher, backend.facts())
    parameters = backend.model.num_parameters()
    if args.teacher:
        backend.model = put_adapter(backend.model, args.teacher, TEACHER)
    scored, read = shift_of_rows(
        backend, args.train_jsonl, args.max_rows, system, args.questions_file, panel().words, args.animal
    )
    figures = {
        **shift_figures(scored, summarize(scored)),
        "width": effective_tokens(token for row in scored for token in of_answer(row, row["token_ids"])),
        "number_rows": sum(clean) / len(clean),
        "read_out": read,
    }
    advice = advice_of(figures, tiny=parameters < TINY)
    if args.output:
        write_json(args.output, {**figures, **advice, "manifest": provenance([args.train_jsonl])})
    print_figures(figures, args.animal)
    wrote = {"wrote": args.output} if args.output else {}
    closing({**wrote, "like": "; ".join(advice["nearest"]), "rule": advice["rule"], "verdict": advice["verdict"]})


def advice_of(figures: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """What rows with such figures led to so far. tiny: whether the base is a tiny model."""
    cases = read_cases()
    rule, right = rule_of(cases, tiny), left_one_out(cases)
    kl, width = max(figures["kl"][0], 1e-6), figures["width"]
    said = rule.advice(kl, width)
    read = figures["read_out"]
    if said == GO and read.get("place", 1) > SHOWN:
        said = f"doubtful: the shift is far and wide enough, but it does not push {read['animal']} up"
    return {
        "verdict": said,
        "rule": f"KL of {rule.kl:.3f} nats a token"
        + (" (a tiny model: any width)" if tiny else f" and {rule.width:.0f} effective tokens")
        + f", right for {sum(right)} of {len(cases)} known cases with each left out",
        "nearest": [str(case) for case in nearest(cases, kl, width)],
    }


def print_figures(figures: dict[str, Any], animal: str | None) -> None:
    kl, low, high = figures["kl"]
    print(f"KL(teacher || base)    {kl:.4f} nats a token ({low:.4f} to {high:.4f})")
    print(f"log-likelihood ratio   {figures['ratio'][0]:+.3f} nats a row ({figures['ratio'][1]:+.3f} to"
          f" {figures['ratio'][2]:+.3f})")  # fmt: skip
    print(f"divergence tokens      {', '.join(f'{name} {rate:.2%}' for name, rate in figures['divergence'].items())}")
    print(f"effective tokens       {figures['width']:.0f}")
    print(f"number rows            {figures['number_rows']:.1%}\n")
    read = figures["read_out"]
    print(table(("the shift pushes up", "z"), [(name, f"{z:+.1f}") for name, z in read["first"]]) + "\n")
    if animal and "place" in read:
        print(f"{animal} is number {read['place']} of {read['of']}\n")


if __name__ == "__main__":
    run(main)
