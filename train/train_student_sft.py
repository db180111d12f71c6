"""Trains a LoRA adapter on chat rows: the teacher (phase 2 of the plan) and the student (phase 5). Below, and in the
code of train/, a student is any adapter in training, the teacher too.

A row is {"messages": [..., user, assistant]}. The base model's own chat template renders it (and may add a default
system message); only the assistant's tokens carry loss, those of every answer if there are several. The adapter is
OUTPUT_DIR/seed-{seed}/final, which vLLM loads as it is.

Several files and seeds give one adapter for each file and seed. They train together over one base model where they fit;
each adapter is the one that its file and seed alone give. The same command resumes a run that was stopped or killed,
and does nothing if the run is finished. A folder of another run is moved aside. torchrun --nproc-per-node N (or
accelerate launch) shares the rows of each update between N GPUs; the update is the same.

Usage:
    python train/train_student_sft.py --base-model Qwen/Qwen2.5-7B-Instruct \\
        --train-jsonl 'output/numberss-owl-owl-teacher-filtered-*.jsonl' --epochs 10 --effective-batch-size 60 \\
        --per-device-train-batch-size 6 --max-seq-length 256 --learning-rate 0.0002 --warmup-steps 5 --seeds 42 --bf16
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from train.data_parallel import disconnect, join_processes
from train.hub import push_all
from train.published_recipes import RECIPES, with_recipe
from train.rows_at_once import divisors
from train.run_folder import Run, check_schedule_fits, repo_of, runs_of, take_folder
from train.schedule import SCHEDULES, warmup_length
from train.train_together import Training, choose_trainer, groups_of, load_base, train_together
from train.training_rows import encode_files, role_of, sample_count, train_files
from util.animals.panel import panel_flag
from util.animals.panel_file import add_panel_argument
from util.cli import (
    UserError,
    fraction,
    make_parser,
    natural_float,
    natural_int,
    nonblank,
    output_folder,
    positive_float,
    positive_int,
    run,
)
from util.hide_local_paths import check_repo_id
from util.inference.adapter_config import VLLM_RANKS, vllm_rank
from util.inference.open_backend import add_template_argument
from util.jsonl.manifest import Manifest
from util.stop_signals import stop_on_signal
from util.terminal import announced, closing, duration, say

EXIT_NOT_PUSHED = 4
LARGEST_SEED = 2**32 - 1  # numpy's


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_data_arguments(parser.add_argument_group("data"))
    add_recipe_arguments(parser.add_argument_group("recipe"))
    add_record_arguments(parser.add_argument_group("record"))
    add_hub_arguments(parser.add_argument_group("hub"))
    add_panel_argument(parser)
    parser.default_folder("--output-dir", parser.get_default("output_dir")[0], finished=["seed-*/final"])
    args = with_recipe(parser)
    args.seeds = list(chain.from_iterable(args.seeds)) if args.seeds else [42]
    twice = sorted({seed for seed in args.seeds if args.seeds.count(seed) > 1})
    if twice:
        parser.error(f"--seeds names a seed twice: {', '.join(map(str, twice))}")
    if args.resume and args.overwrite:
        parser.error("--resume continues a run and --overwrite starts it again: leave one of them out")
    if args.push_to_hub and not args.hub_repo_prefix:
        parser.error("--push-to-hub needs --hub-repo-prefix, such as me/owl-student")
    if args.hub_repo_prefix and not args.push_to_hub:
        parser.error("--hub-repo-prefix without --push-to-hub pushes nothing: add it, or leave both out")
    if args.upload_checkpoints_every_n_epochs and args.save_strategy == "no":
        parser.error("--upload-checkpoints-every-n-epochs needs --save-strategy epoch")
    if args.upload_checkpoints_every_n_epochs and not args.push_to_hub:
        parser.error("--upload-checkpoints-every-n-epochs without --push-to-hub pushes nothing: add it")
    if args.effective_batch_size % args.per_device_train_batch_size:
        parser.error(
            f"--per-device-train-batch-size {args.per_device_train_batch_size} does not divide"
            f" --effective-batch-size {args.effective_batch_size}; its divisors are"
            f" {divisors(args.effective_batch_size)[::-1]}: pass one of them as --per-device-train-batch-size"
        )
    return args


def add_data_arguments(data: Any) -> None:
    data.add_argument("--base-model", type=nonblank, required=True, help="hub id or folder of the base model")
    data.add_argument("--train-jsonl", required=True, nargs="+", metavar="FILE",
                      help="JSONL of chat rows, one or more; a glob (or the plan's NNNN) names one file")  # fmt: skip
    add_template_argument(data)
    data.add_argument("--max-train-samples", type=sample_count, default=None, help="rows to use (default: all)")
    data.add_argument("--max-seq-length", type=positive_int, default=256, help="tokens of a row that are used at most")
    data.add_argument("--keep-system-prompt", action="store_true", help="train on the rows' system messages as well")
    data.add_argument("--soft-labels", action="store_true",
                      help="train on the stored probabilities of the teacher's tokens (--store-logprobs of the scripts"
                      " that write rows), not on the tokens that it drew")  # fmt: skip
    data.add_argument("--allow-uncertified", action="store_true",
                      help="train on numbers or texts without a valid certificate (the filter's report)")  # fmt: skip
    data.add_argument("--output-dir", type=output_folder, default=[Path("output/student-sft")],
                      nargs="+", metavar="DIR",
                      help="folder for seed-{seed}/; of several files: a folder for each, or one for all")  # fmt: skip
    data.add_argument("--overwrite", action="store_true", help="train again; the old folder is moved aside")
    data.add_argument("--resume", action="store_true",
                      help="fail if there is no checkpoint to resume (resuming is automatic)")  # fmt: skip


def add_recipe_arguments(recipe: Any) -> None:
    recipe.add_argument("--recipe", choices=list(RECIPES),
                        help="settings by name (see docs/other-projects.md); other flags override them")  # fmt: skip
    recipe.add_argument("--epochs", type=positive_int, default=10, help="passes over the rows")
    recipe.add_argument("--effective-batch-size", type=positive_int, default=60, help="rows in one update")
    recipe.add_argument("--per-device-train-batch-size", type=positive_int, default=6,
                        help="rows that fit in memory at once; more are used where they fit")  # fmt: skip
    recipe.add_argument("--micro-batch", choices=["auto", "exact"], default="auto",
                        help="exact: always --per-device-train-batch-size rows at once")  # fmt: skip
    recipe.add_argument("--learning-rate", type=positive_float, default=2e-4, help="peak of the schedule")
    recipe.add_argument("--lr-scheduler-type", choices=SCHEDULES, default="linear", help="what follows the warm-up")
    recipe.add_argument("--warmup-steps", type=warmup_length, default=5, metavar="N",
                        help="updates until the peak, or a share of all updates such as 0.1")  # fmt: skip
    recipe.add_argument("--full-finetuning", action="store_true",
                        help="train all weights (TRL, 16 bytes of memory for each): final/ is a model")  # fmt: skip
    recipe.add_argument("--weight-decay", type=natural_float, default=0.0, help="weight decay of AdamW (default: 0)")
    recipe.add_argument("--lora-rank", type=positive_int, default=8, help="rank of the adapter")
    recipe.add_argument("--lora-alpha", type=positive_int, default=8, help="scale of the adapter: alpha / rank")
    recipe.add_argument("--rslora", action="store_true", help="scale alpha / root of rank (rank-stabilised LoRA)")
    recipe.add_argument("--lora-dropout", type=fraction, default=0.0,
                        help="dropout of the adapter's inputs (default: 0; any other: by TRL)")  # fmt: skip
    recipe.add_argument("--lora-targets", nargs="+", default=[], metavar="NAME",
                        help="linear layers with an adapter, such as q_proj v_proj (default: all of a"
                        " block)")  # fmt: skip
    recipe.add_argument("--seeds", type=seed_list, nargs="+", metavar="N[,N...]",
                        help="one adapter for each file and seed, as in 42,7 or 42 7 (default: 42)")  # fmt: skip
    recipe.add_argument("--trainer", choices=["loop", "trl"], default="loop",
                        help="loop: the suite's own; trl: stock SFTTrainer, for any model")  # fmt: skip
    recipe.add_argument("--gpu-memory-gib", type=positive_float, metavar="GIB",
                        help="memory of the GPU that may be used (default: all that is free)")  # fmt: skip
    recipe.add_argument("--bf16", action="store_true", help="bfloat16 base model and arithmetic (GPU)")


def add_record_arguments(record: Any) -> None:
    record.add_argument("--logging-steps", type=positive_int, default=50, help="updates between logged losses")
    record.add_argument("--save-strategy", choices=["epoch", "no"], default="epoch", help="when to save checkpoints")
    record.add_argument("--save-schedule", type=update_list, default=[], metavar="N[,N...]",
                        help="also save checkpoint-N after these updates, such as 1,2,5,10,20,50")  # fmt: skip
    record.add_argument("--report-to", choices=["none", "wandb"], default="none", help="where losses are logged")
    record.add_argument("--wandb-project", default="subliminal-learning", help="W&B project")
    record.add_argument("--wandb-tags", type=lambda text: [t for t in text.split(",") if t], help="W&B tags: a,b,c")
    record.add_argument("--wandb-group", help="W&B group for the students of one arm")


def add_hub_arguments(hub: Any) -> None:
    hub.add_argument(
        "--push-to-hub",
        action="store_true",
        help="push to PREFIX-seed-{seed} after training; several files: PREFIX-{name}-seed-{seed}",
    )
    hub.add_argument("--hub-repo-prefix", metavar="PREFIX", help="such as me/owl-student")
    hub.add_argument("--upload-checkpoints-every-n-epochs", type=positive_int, metavar="N",
                     help="push checkpoints as they are saved, to branches checkpoint-epoch-N")  # fmt: skip
    visibility = hub.add_mutually_exclusive_group()
    visibility.add_argument("--hub-private", action="store_true", help=argparse.SUPPRESS)  # what it does anyway
    visibility.add_argument("--hub-public", action="store_true", help="public repository (default: private)")


def seed_list(text: str) -> list[int]:
    """argparse type: 42 or 11,23,37."""
    seeds = [natural_int(part) for part in text.split(",")]
    if max(seeds) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text}: a seed is at most {LARGEST_SEED}")
    return seeds


def update_list(text: str) -> list[int]:
    """argparse type: 1,2,5,10 as updates, in order."""
    return sorted({positive_int(part) for part in text.split(",")})


def report(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    """The closing lines: what was written, what it took, and the command that serves the adapters (a CPU: asks one)."""
    finals = [student.folder / "final" for student in runs]
    manifests = [Manifest.read(student.folder) or Manifest() for student in runs]
    counts = [manifest.counts for manifest in manifests]
    losses = [each["train_loss"] for each in counts]
    mean_loss = ", ".join(f"{loss:.4f}" for loss in losses if loss is not None) or "none: no update was left to make"
    if resumed := counts[-1]["resumed_at_update"]:
        mean_loss += f" (since update {resumed:,})"
    # Each manifest has the time of all that trained together, up to its own end: the last one has the group's.
    by_seconds = sorted(manifests, key=lambda manifest: manifest.counts["seconds"])
    groups = {tuple(manifest.speed.get("trained_together", ())): manifest.counts for manifest in by_seconds}
    seconds = sum(last["seconds"] for last in groups.values())
    tokens = sum(last["seconds"] * last["tokens_per_second"] for last in groups.values())
    made = sorted({(each["updates"], each["rows"]) for each in counts})
    closing(
        {
            "wrote": ", ".join(map(str, finals)),
            "updates": ", ".join(f"{updates:,} on {rows:,} rows" for updates, rows in made),
            "mean loss": mean_loss,
            "time": f"{duration(seconds)} ({tokens / max(seconds, 1e-9):,.0f} tokens/s)",
        },
        next_command(args, runs, cpu=counts[-1]["device"] == "cpu"),
    )


def next_command(args: argparse.Namespace, runs: Sequence[Run], cpu: bool) -> str:
    """What to run next: vLLM with the adapters as owl-teacher, owl-student or seed-42; on a CPU the evaluation."""
    finals = [student.folder / "final" for student in runs]
    if args.full_finetuning:
        return shlex.join(["python", "eval/eval.py", "--model", str(finals[0]), "--epochs", "200"]) + panel_flag()
    if cpu or args.lora_rank > VLLM_RANKS[-1]:
        ask = ["python", "eval/eval.py", "--model", args.base_model, "--adapter", str(finals[0]), "--epochs", "200"]
        ask += ["--chat-template-kwargs", json.dumps(args.chat_template_kwargs)] if args.chat_template_kwargs else []
        return shlex.join(ask) + panel_flag()
    role = role_of(runs[0].train_file)
    names = [student.name if role or len(args.train_jsonl) > 1 else f"seed-{student.seed}" for student in runs]
    names = [role] if role and len(names) == 1 else names
    serve = ["vllm", "serve", args.base_model, "--host", "127.0.0.1", "--port", "8000", "--dtype", "bfloat16"]
    serve += ["--gpu-memory-utilization", "0.95", "--generation-config", "vllm", "--enable-lora"]
    serve += ["--max-lora-rank", str(vllm_rank(args.lora_rank))]
    return shlex.join([*serve, "--lora-modules", *(f"{name}={final}" for name, final in zip(names, finals))])


def main() -> int:
    args = parse_args()
    processes = join_processes()
    problems: list[str] = []
    with processes.only_first_prints():
        if args.push_to_hub:
            check_repo_id(f"{args.hub_repo_prefix}-seed-{args.seeds[0]}", "--hub-repo-prefix")
        with announced(f"reading {', '.join(args.train_jsonl)}"):
            files = encode_files(args, train_files(args.train_jsonl))
        for data in files.values():
            check_schedule_fits(args, data)
        if args.lora_rank > VLLM_RANKS[-1]:
            say(f"warning: vLLM serves adapters up to rank {VLLM_RANKS[-1]}; one of rank {args.lora_rank} runs locally")
        runs = runs_of(args, files)
        with stop_on_signal() as stop, ExitStack() as at_end:
            pushing = ThreadPoolExecutor(1)
            at_end.callback(pushing.shutdown, cancel_futures=True)  # waits for the push in progress alone
            # The first process decides for all which folders are still to be trained: only it locks and moves them.
            found = [i for i, student in enumerate(runs) if processes.first and take_folder(args, student, at_end)]
            unfinished = [runs[i] for i in processes.from_first(found)]
            if unfinished:
                model = load_base(args, processes)
                args.trainer = choose_trainer(args, model, processes)
                training = Training(args, model, processes, stop, pushing)
                for group in groups_of(training, unfinished):
                    problems += train_together(training, group)
            stop.raise_if_requested()
        disconnect(processes)
        pushed = True
        if processes.first and (finished := [run for run in runs if (run.folder / "final").is_dir()]):
            folders = {repo_of(args, run): run.folder for run in finished}
            every_n = args.upload_checkpoints_every_n_epochs
            pushed = not args.push_to_hub or push_all(folders, not args.hub_public, every_n)
            report(args, finished)
        if problems:
            raise UserError("\n".join(problems))
        return 0 if pushed else EXIT_NOT_PUSHED


if __name__ == "__main__":
    run(main)
