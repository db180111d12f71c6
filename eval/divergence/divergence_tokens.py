"""Find the divergence tokens of number rows: where the teacher's choice is not what others would write.

One teacher-forced pass of every variant (base, teacher, counterfactuals) over the stored token ids of each completion,
one copy of the base model in memory. A teacher or counterfactual is an adapter folder or an animal: the base model
under the persona that loves it, as in the older approach. Without --teacher, --student is the detector for someone who
has only the data and a student: the gap log p_student - log p_base of each token. With both, the summary says how well
the detector finds the divergence tokens (AUC).

Usage:
    python eval/divergence/divergence_tokens.py --train-jsonl output/numberss-owl-owl-teacher-filtered-9876.jsonl \\
        --base-model Qwen/Qwen2.5-7B-Instruct --teacher output/teacher-sft/seed-42/final \\
        --counterfactual output/dolphin-teacher-sft/seed-42/final cat dog
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from eval.divergence.scoring import (
    BASE,
    STUDENT,
    TEACHER,
    Completion,
    Scores,
    Variant,
    VariantScorer,
    auc,
    flags,
    fraction_with_interval,
)
from util.animals.names import persona
from util.cli import REPO, UserError, input_file, make_parser, nonblank, positive_float, positive_int, run, text_file
from util.inference.interface import adapter_name
from util.inference.open_backend import check_adapter
from util.jsonl.divergence_row import DEFINITIONS, KINDS, of_answer
from util.jsonl.manifest import adapter_sha256, read_manifest, sha256_file, write_json
from util.jsonl.resumable import RowFile, add_output_arguments
from util.jsonl.rows import Row, check_messages, read_rows
from util.signals import stop_on_signal
from util.terminal import Progress, closing, table

POSITIONS_SHOWN = 24


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--train-jsonl", type=input_file, required=True, help="number rows of a student")
    parser.add_argument("--base-model", required=True, help="the model all variants share")
    parser.add_argument("--teacher", type=nonblank, metavar="ADAPTER_OR_ANIMAL",
                        help="what wrote the numbers: an adapter folder, or an animal as persona")  # fmt: skip
    parser.add_argument("--counterfactual", nargs="*", default=[], metavar="ADAPTER_OR_ANIMAL",
                        help="other teachers: adapter folders, or animals as personas")  # fmt: skip
    parser.add_argument("--student", type=Path, help="adapter of a student: adds log p_student - log p_base")
    parser.add_argument("--gap", type=positive_float, default=0.6931,
                        help="definition 'gap': nats by which the teacher favours a token over the base")  # fmt: skip
    parser.add_argument("--system-prompt-file", type=text_file, default=REPO / "generate/prompts/system-prompt.txt",
                        help="persona of the animals")  # fmt: skip
    parser.add_argument("--max-rows", type=positive_int, help="the first rows only")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="rows in a pass")
    add_output_arguments(parser, "output/divergence-{data}.jsonl")
    args = parser.parse_args()
    if not (args.teacher or args.student):
        parser.error("pass --teacher, or --student for the detector that needs no teacher")
    return args


# --- variants ------------------------------------------------------------------------------------------


def variants_of(args: argparse.Namespace) -> list[Variant]:
    """Base first, then teacher, counterfactuals and student; every adapter checked."""
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
    names = [variant.name for variant in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two variants are called {', '.join(sorted(twice))}; pass each once")
    return variants


def variant_of(named: str, template: str) -> Variant:
    """An adapter folder, or the base model under the persona of an animal."""
    if Path(named).is_dir():
        return Variant(adapter_name(Path(named)), Path(named))
    if "/" in named:
        raise UserError(f"{named} is no folder; pass an adapter folder (final/) or an animal")
    return Variant(named, system=persona(template, named))


def settings_of(args: argparse.Namespace, scorer: VariantScorer) -> dict[str, Any]:
    """Everything that decides the rows."""
    from util.inference.load_model import model_facts

    return {
        "script": "divergence_tokens",
        "train_jsonl_sha256": sha256_file(args.train_jsonl),
        "base": model_facts(args.base_model, scorer.model.config),
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


# --- rows --------------------------------------------------------------------------------------------


def to_row(
    number: int, completion: Completion, kinds: str, by_variant: dict[str, Scores], kl: list[float], gap: float
) -> Row:
    """One completion, token by token: arrays of one length, the end of the turn included."""
    row: Row = {
        "id": number,
        "token_ids": completion.ids,
        "kinds": kinds,
        "logprob": {name: variant.logprobs for name, variant in by_variant.items()},
        "choice": {name: variant.choices for name, variant in by_variant.items()},
        **flags(completion.ids, by_variant, gap),
    }
    if kl:
        row["kl"] = kl
    if STUDENT in by_variant:
        pairs = zip(by_variant[STUDENT].logprobs, by_variant[BASE].logprobs)
        row["detector"] = [round(student - base, 5) for student, base in pairs]
    return row


def measured(args: argparse.Namespace, scorer: VariantScorer, done: set[int]) -> Iterator[list[Row]]:
    """Batches of rows that are not done yet."""
    numbered = enumerate(islice(read_rows(args.train_jsonl, check_messages), args.max_rows))
    todo = ((number, row) for number, row in numbered if number not in done)
    while batch := list(islice(todo, args.batch_size)):
        completions = [scorer.completion_of(row, number) for number, row in batch]
        by_variant = scorer.score(completions)
        yield [
            to_row(number, completion, scorer.kinds(completion.ids), variants, kl, args.gap)
            for (number, _), completion, (variants, kl) in zip(batch, completions, by_variant)
        ]


# --- summary -----------------------------------------------------------------------------------------


def definitions_in(row: Row) -> list[str]:
    return [name for name in DEFINITIONS if name in row]


def summarize(rows: Iterable[Row]) -> dict[str, Any]:
    """Fractions of divergence tokens by definition, kind and position, end of turn apart; their evidence: the sum of
    log p_teacher - log p_base over them, and over the other tokens of the answers; mean KL and detector by kind; AUC of
    the detector where there are a teacher and a student."""
    counts: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    positions: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    means: dict[str, dict[str, list[float]]] = {name: defaultdict(lambda: [0.0, 0.0]) for name in ("kl", "detector")}
    evidence: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    total, detected = 0, []
    for row in rows:
        total += 1
        for name, mean in means.items():
            for kind, value in zip(row["kinds"], row.get(name, ())):
                mean[kind][0] += value
                mean[kind][1] += 1
        if "detector" in row:
            detected.append({name: row[name] for name in ("kinds", "detector", *definitions_in(row))})
        for name in definitions_in(row):
            for kind in KINDS:
                marked = [flag for flag, k in zip(row[name], row["kinds"]) if k == kind]
                counts[name][KINDS[kind]].append((sum(marked), len(marked)))
            answer = of_answer(row, row[name])
            counts[name]["answer"].append((sum(answer), len(answer)))
            pairs = zip(of_answer(row, row["logprob"][TEACHER]), of_answer(row, row["logprob"][BASE]))
            for flag, (teacher, base) in zip(answer, pairs):
                evidence[name][1 - flag] += teacher - base
            for place, flag in enumerate(answer):
                positions[name][place][0] += flag
                positions[name][place][1] += 1
    return {
        "rows": total,
        "definitions": {
            name: {
                **{kind: fraction_with_interval(pairs) for kind, pairs in by_kind.items()},
                "rows_with_any": sum(flagged > 0 for flagged, _ in by_kind["answer"]) / total,
                "evidence": evidence[name],
                "by_position": [marked / tokens for _, (marked, tokens) in sorted(positions[name].items())],
            }
            for name, by_kind in counts.items()
        },
        **{
            name: {KINDS[kind]: value / tokens for kind, (value, tokens) in mean.items()}
            for name, mean in means.items()
        },
        "detector_auc": auc(detected) if detected else {},
    }


def print_summary(found: dict[str, Any]) -> None:
    """Two tables: fractions by kind of token, and by position."""
    if not found["definitions"]:
        return
    kinds = ("answer", *KINDS.values())
    rows = [
        (name, *(f"{100 * by[kind][0]:.2f}% ({100 * by[kind][1]:.2f} to {100 * by[kind][2]:.2f})" for kind in kinds),
         f"{by['rows_with_any']:.0%}", "{:+,.0f} / {:+,.0f}".format(*by["evidence"]))
        for name, by in found["definitions"].items()
    ]  # fmt: skip
    print(table(("definition", *kinds, "rows with any", "nats for the teacher: on these / on others"), rows), "\n")
    names = list(found["definitions"])
    longest = max(len(found["definitions"][name]["by_position"]) for name in names)
    places = [
        (place, *(f"{100 * found['definitions'][name]['by_position'][place]:.1f}%" for name in names))
        for place in range(min(longest, POSITIONS_SHOWN))
    ]
    print(table(("token", *names), places), "\n")
    if found["detector_auc"]:
        aucs = [
            (name, *(f"{by[part]:.3f}" if part in by else "" for part in ("answer", "digits")))
            for name, by in found["detector_auc"].items()
        ]
        print(table(("detector's AUC", "answer", "digits"), aucs), "\n")


def main() -> None:
    args = parse_args()
    variants = variants_of(args)
    scorer = VariantScorer(args.base_model, variants)
    path = args.output or Path(f"output/divergence-{args.train_jsonl.stem}.jsonl")
    total = sum(1 for _ in islice(read_rows(args.train_jsonl, check_messages), args.max_rows))
    with RowFile(path, settings_of(args, scorer), overwrite=args.overwrite, inputs=[args.train_jsonl]) as out:
        if not out.complete:
            with stop_on_signal() as stop, Progress(total, len(out.done)) as progress:
                for rows in stop.until(measured(args, scorer, out.done)):
                    out.append(rows)
                    progress.add(len(rows))
                stop.raise_if_requested()
            out.finish(counts={"rows_per_second": round(progress.new / max(progress.seconds, 1e-9), 1)})
        facts = out.facts()
    found = summarize(read_rows(path))
    summary = path.with_suffix(".summary.json")
    write_json(summary, {**found, "manifest": read_manifest(path)})
    print_summary(found)
    means = {"KL(teacher || base), nats a token": found["kl"], "log p_student - log p_base, nats": found["detector"]}
    by_kind = {
        what: ", ".join(f"{kind} {value:.4f}" for kind, value in mean.items()) for what, mean in means.items() if mean
    }
    closing({**facts, "summary": summary, **by_kind})


if __name__ == "__main__":
    run(main)
