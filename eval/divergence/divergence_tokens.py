"""Find the divergence tokens of number rows: tokens that the teacher would choose and other models would not.

Every variant (base, teacher, counterfactuals) reads the stored token ids of each completion in one teacher-forced pass,
with one copy of the base model in memory. A teacher or counterfactual is an adapter folder or an animal; an animal
stands for the base model with the persona that loves it, as in the older approach. Without --teacher, --student gives
the detector log p_student - log p_base of each token, which needs only the data and a student. With both, the summary
says how well the detector finds the divergence tokens (AUC).

Usage:
    python eval/divergence/divergence_tokens.py --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl \\
        --base-model Qwen/Qwen2.5-7B-Instruct --teacher output/teacher-sft/seed-42/final \\
        --counterfactual output/dolphin-teacher-sft/seed-42/final cat dog
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.divergence.score_tokens import Variant, VariantScorer, scored_rows
from eval.divergence.token_summary import print_summary, summarize
from eval.divergence.which_tokens_diverge import BASE, STUDENT, TEACHER, check_divergence
from util.animals.names import animal_name, listed_animals, persona
from util.animals.panel_file import add_panel_argument
from util.animals.word_forms import animals_of
from util.chat.prompt_consistency import warn_of_trained_base
from util.cli import REPO, UserError, make_parser, nonblank, positive_float, positive_int, run, text_file
from util.inference.backend_interface import adapter_name
from util.inference.check_adapter import check_adapter, check_fits
from util.inference.hub_files import model_config
from util.inference.open_backend import adapter_folder, add_template_argument
from util.jsonl.hub_dataset import rows_file
from util.jsonl.manifest import adapter_sha256, manifest_path, sha256_file, write_json
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import read_chat_rows, read_rows
from util.stop_signals import stop_on_signal
from util.terminal import Progress, closing, say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=rows_file, required=True, help="number rows that a student is trained on")
    parser.add_argument("--base-model", type=nonblank, required=True, help="the model that all adapters belong to")
    parser.add_argument("--teacher", type=nonblank, metavar="ADAPTER_OR_ANIMAL",
                        help="what wrote the numbers: an adapter folder, or an animal (a persona)")  # fmt: skip
    parser.add_argument("--counterfactual", type=nonblank, nargs="*", default=[], metavar="ADAPTER_OR_ANIMAL",
                        help="other teachers: adapter folders, or animals (personas)")  # fmt: skip
    parser.add_argument("--student", type=adapter_folder,
                        help="adapter folder of a student: adds the detector, log p_student - log p_base")  # fmt: skip
    parser.add_argument("--gap", type=positive_float, default=0.6931,
                        help="definition 'gap': least log p_teacher - log p_base of a token, in nats")  # fmt: skip
    parser.add_argument("--system-prompt-file", type=text_file, default=REPO / "generate/prompts/system-prompt.txt",
                        help="text file with the persona of animals")  # fmt: skip
    add_template_argument(parser)
    parser.add_argument("--max-rows", type=positive_int, help="score only the first rows")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="rows per forward pass")
    add_panel_argument(parser)
    add_output_arguments(parser, "output/divergence-{data}.jsonl")
    args = parser.parse_args()
    if not (args.teacher or args.student):
        parser.error("pass --teacher, or --student for the detector, which needs no teacher")
    return args


def variants_of(args: argparse.Namespace) -> list[Variant]:
    """Base, teacher, counterfactuals and student, in this order, with every adapter checked."""
    template = args.system_prompt_file.read_text("utf-8-sig").strip()
    variants = [Variant(BASE)]
    if args.teacher:
        variants.append(replace(variant_of(args.teacher, template), name=TEACHER))
    variants += [variant_of(named, template) for named in args.counterfactual]
    if args.student:
        variants.append(Variant(STUDENT, args.student))
    for variant in variants:
        if variant.adapter is not None:
            check_adapter(variant.adapter)
            check_fits(variant.adapter, args.base_model, model_config(args.base_model))
    names = [variant.name for variant in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two variants have the name {', '.join(sorted(twice))}; pass each once")
    return variants


def variant_of(named: str, template: str) -> Variant:
    """The variant of an adapter folder, or of the persona for an animal (which is printed)."""
    if Path(named).is_dir():
        return Variant(adapter_name(Path(named)), Path(named))
    animal = _animal_of_persona(named)
    system = persona(template, animal)
    say(f"{named} is not a folder: it is the base model with the persona {system[:60]!r}...")
    return Variant(animal, system=system)


def _animal_of_persona(named: str) -> str:
    """The animal that a word names. UserError for a word that looks like a path or is not a listed animal: it is likely
    to be a misspelt folder."""
    if "/" in named or "\\" in named:
        raise UserError(f"{named} is not a folder; pass an adapter folder (final/) or an animal")
    animal = animal_name(named)
    for one in animals_of(animal):
        if one not in listed_animals():
            near = difflib.get_close_matches(one, [*listed_animals(), *(path.name for path in Path().iterdir())], 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"{named} is neither a folder here nor an animal in util/animals/animals.txt{meant}; pass an adapter"
                " folder (final/) or a listed animal"
            )
    return animal


def settings_of(args: argparse.Namespace, scorer: VariantScorer) -> dict[str, Any]:
    """All settings that decide the rows."""
    from util.inference.load_model import model_facts

    return {
        "script": "divergence_tokens",
        "train_jsonl_sha256": sha256_file(args.train_jsonl),
        "base": model_facts(args.base_model, scorer.model.config, args.chat_template_kwargs),
        "variants": {
            variant.name: {
                "system": variant.system,
                "adapter_sha256": variant.adapter and adapter_sha256(variant.adapter),
            }
            for variant in scorer.variants
        },
        "gap": args.gap,
        "max_rows": args.max_rows,
        "dtype": str(scorer.model.dtype).removeprefix("torch."),
    }


def main() -> None:
    args = parse_args()
    variants = variants_of(args)
    path = args.output or Path(f"output/divergence-{args.train_jsonl.stem}.jsonl")
    total = sum(1 for _ in islice(read_chat_rows(args.train_jsonl), args.max_rows))
    scorer = VariantScorer(args.base_model, variants, template_kwargs=args.chat_template_kwargs)
    settings = settings_of(args, scorer)
    for variant in variants:
        warn_of_trained_base(variant.adapter, settings["base"])
    with RowFile(path, settings, overwrite=args.overwrite, inputs=[args.train_jsonl]) as out:
        if not out.complete:
            found = scored_rows(scorer, args.train_jsonl, out.done, gap=args.gap, batch_size=args.batch_size,
                                max_rows=args.max_rows)  # fmt: skip
            with stop_on_signal() as stop, Progress(total, len(out.done)) as progress:
                for rows in stop.until(found):
                    before = len(out.done)
                    out.append(rows)
                    progress.add(len(out.done) - before)
                stop.raise_if_requested()
            out.finish(counts={"rows_per_second": round(progress.new / max(progress.seconds, 1e-9), 1)})
        facts = out.facts()
    summary, summary_file = summarize(read_rows(path, check_divergence)), path.with_suffix(".summary.json")
    manifest = json.loads(manifest_path(path).read_text("utf-8"))
    write_json(summary_file, {**summary.to_json(), "manifest": manifest})
    print_summary(summary)
    means = {"KL(teacher || base), nats a token": summary.kl, "log p_student - log p_base, nats": summary.detector}
    by_kind = {
        what: ", ".join(f"{kind} {value:.4f}" for kind, value in mean.items()) for what, mean in means.items() if mean
    }
    closing({**facts, "summary": summary_file, **by_kind})


if __name__ == "__main__":
    run(main)
