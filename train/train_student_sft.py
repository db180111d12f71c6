"""Phases 2 and 5: LoRA fine-tuning of a base model on chat rows; teacher and student alike.

Rows are {"messages": [..., user, assistant]}; they are rendered by the model's own chat template (which may insert a
default system message) and loss falls on the assistant's tokens alone. The adapter lands in
OUTPUT_DIR/seed-{seed}/final, which vLLM loads as it is.

Several seeds train together, over one base, where they fit; each adapter is the one that its seed alone gives. The
same command resumes a run that was stopped or killed, does nothing to a finished one, and moves another run's folder
aside. torchrun --nproc-per-node N (or accelerate launch) shares each update out over N GPUs; it stays the same update.

Usage:
    python train/train_student_sft.py --base-model Qwen/Qwen2.5-7B-Instruct \\
        --train-jsonl 'output/numberss-owl-owl-teacher-filtered-*.jsonl' --epochs 10 --effective-batch-size 60 \\
        --per-device-train-batch-size 6 --max-seq-length 256 --learning-rate 0.0002 --warmup-steps 5 --seeds 42 --bf16
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from train.data_parallel import Processes, join, leave
from train.fused_lora import LORA_TARGETS
from train.hub import Pushes, check_repo_id, push_adapter, write_card
from train.multi_adapter_trainer import AdapterGroup, same_weights, speed_report, update_trainer, why_apart
from train.padding_free import divisors, knows
from train.training_rows import one_file, read_chat_rows, sample_count
from train.wandb_run import finish_run, log_to, start_run
from util.chat.chat_tokens import IGNORED, Encoded, encode, without_system
from util.chat.prompt_consistency import Phase, base_of, disagreements, frame, read_phase, same_base
from util.cli import (
    UserError,
    command_line,
    make_parser,
    memory_advice,
    natural_int,
    nonblank,
    positive_float,
    positive_int,
    run,
)
from util.jsonl.filter_certificate import DATA_TYPES, certificate_problem, data_type_of
from util.jsonl.manifest import new_manifest, now, read_manifest, scrub, sha256_file, write_json
from util.jsonl.resumable import describe_differences, free_name, lock_output
from util.jsonl.rows import Row, slug
from util.signals import Stop, stop_on_signal
from util.terminal import Progress, closing, duration, say

NOT_PUSHED = 4
LARGEST_SEED = 2**32 - 1  # numpy's


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--base-model", type=nonblank, required=True, help="hub id or folder of the base model")
    data.add_argument("--train-jsonl", required=True, nargs="+", metavar="FILE",
                      help="JSONL of chat rows; a glob (or the plan's NNNN) that matches one file")  # fmt: skip
    data.add_argument("--max-train-samples", type=sample_count, default=None, help="rows to use (default: all)")
    data.add_argument("--max-seq-length", type=positive_int, default=256, help="longest row in tokens; longer are cut")
    data.add_argument("--keep-system-prompt", action="store_true", help="train on the rows' system messages as well")
    data.add_argument("--allow-uncertified", action="store_true",
                      help="train on numbers or texts without a certificate, or one that does not hold")  # fmt: skip
    data.add_argument(
        "--output-dir",
        type=lambda text: Path(nonblank(text)),
        default=Path("output/student-sft"),
        help="folder for seed-{seed}/",
    )
    data.add_argument("--overwrite", action="store_true", help="train afresh; the old folder is moved aside")
    data.add_argument("--resume", action="store_true",
                      help="insist on a checkpoint to go on from (a stopped run is resumed anyway)")  # fmt: skip

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=positive_int, default=10, help="passes over the rows")
    recipe.add_argument("--effective-batch-size", type=positive_int, default=60, help="rows in one update")
    recipe.add_argument("--per-device-train-batch-size", type=positive_int, default=6,
                        help="rows known to fit at once; more are taken where they fit")  # fmt: skip
    recipe.add_argument("--micro-batch", choices=["auto", "exact"], default="auto",
                        help="exact: --per-device-train-batch-size rows at once, neither more nor fewer")  # fmt: skip
    recipe.add_argument("--learning-rate", type=positive_float, default=2e-4, help="peak of the linear schedule")
    recipe.add_argument("--warmup-steps", type=natural_int, default=5, help="updates to reach it")
    recipe.add_argument("--lora-rank", type=positive_int, default=8, help="rank of the adapter")
    recipe.add_argument("--lora-alpha", type=positive_int, default=8, help="scale of the adapter: alpha / rank")
    recipe.add_argument("--seeds", type=seed_list, default=[42], metavar="N[,N...]", help="one adapter for each")
    recipe.add_argument("--bf16", action="store_true", help="bfloat16 base and arithmetic (GPU)")

    record = parser.add_argument_group("record")
    record.add_argument("--logging-steps", type=positive_int, default=50, help="updates between logged losses")
    record.add_argument("--save-strategy", choices=["epoch", "no"], default="epoch", help="when to save checkpoints")
    record.add_argument("--save-schedule", type=update_list, default=[], metavar="N[,N...]",
                        help="also save checkpoint-N after these updates, such as 1,2,5,10,20,50")  # fmt: skip
    record.add_argument("--report-to", choices=["none", "wandb"], default="none", help="where losses go")
    record.add_argument("--wandb-project", default="subliminal-learning", help="W&B project")
    record.add_argument("--wandb-tags", type=lambda text: [t for t in text.split(",") if t], help="W&B tags: a,b,c")
    record.add_argument("--wandb-group", help="W&B group for the seeds of one arm")

    hub = parser.add_argument_group("hub")
    hub.add_argument("--push-to-hub", action="store_true", help="push PREFIX-seed-{seed} after training")
    hub.add_argument("--hub-repo-prefix", metavar="PREFIX", help="such as me/owl-student")
    hub.add_argument("--upload-checkpoints-every-n-epochs", type=positive_int, metavar="N",
                     help="push checkpoints as they are saved, to branches checkpoint-epoch-N")  # fmt: skip
    visibility = hub.add_mutually_exclusive_group()
    visibility.add_argument("--hub-private", action="store_true", help="private repository (the default)")
    visibility.add_argument("--hub-public", action="store_true", help="public repository")

    args = parser.parse_args()
    if args.push_to_hub and not args.hub_repo_prefix:
        parser.error("--push-to-hub needs --hub-repo-prefix, such as me/owl-student")
    if args.hub_repo_prefix and not args.push_to_hub:
        parser.error("--hub-repo-prefix without --push-to-hub pushes nothing: add it, or leave both out")
    if args.upload_checkpoints_every_n_epochs and args.save_strategy == "no":
        parser.error("--upload-checkpoints-every-n-epochs needs --save-strategy epoch")
    if args.upload_checkpoints_every_n_epochs and not args.push_to_hub:
        parser.error(
            "--upload-checkpoints-every-n-epochs without --push-to-hub pushes nothing: add it, or leave it out"
        )
    if args.effective_batch_size % args.per_device_train_batch_size:
        fitting = divisors(args.effective_batch_size)[::-1]
        parser.error(
            f"--per-device-train-batch-size {args.per_device_train_batch_size} does not divide"
            f" --effective-batch-size {args.effective_batch_size}; its divisors are {fitting}"
        )
    return args


def seed_list(text: str) -> list[int]:
    """argparse type: 42 or 11,23,37, each seed once."""
    seeds = [natural_int(part) for part in text.split(",")]
    if max(seeds) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text}: a seed is at most {LARGEST_SEED}")
    if len(set(seeds)) != len(seeds):
        raise argparse.ArgumentTypeError(f"{text} names a seed twice")
    return seeds


def update_list(text: str) -> list[int]:
    """argparse type: 1,2,5,10 as updates, in order."""
    return sorted({positive_int(part) for part in text.split(",")})


class Base(NamedTuple):
    """What all seeds share: what pins the base model, its tokenizer and the rows as tokens."""

    facts: dict[str, Any]
    tokenizer: Any
    encoded: Encoded


def prepare(args: argparse.Namespace, train_file: Path) -> Base:
    """Read and encode the rows; everything that can be wrong with them or the model's name shows here."""
    from util.inference.load_model import load_config, load_tokenizer, model_facts

    rows = read_chat_rows(train_file, args.max_train_samples)
    check_certificate(train_file, rows, args.allow_uncertified)
    say(f"training on {len(rows):,} rows of {train_file}")
    if args.max_train_samples and len(rows) < args.max_train_samples:
        say(f"(--max-train-samples {args.max_train_samples:,} is more than the file has)")
    if not args.keep_system_prompt:
        personas = sum(row["messages"][0]["role"] == "system" for row in rows)
        if personas:
            say(f"left out the system message of {personas:,} rows (--keep-system-prompt trains on it)")
        rows = [without_system(row) for row in rows]
    tokenizer = load_tokenizer(args.base_model)
    encoded = encode(rows, tokenizer, args.max_seq_length)
    describe_data(encoded, len(rows), args.max_seq_length)
    base = Base(model_facts(args.base_model, load_config(args.base_model)), tokenizer, encoded)
    warn_of_numbers(train_file, rows[0], base)
    return base


def check_certificate(train_file: Path, rows: Sequence[Row], allow: bool) -> None:
    """Stop before numbers, code or reasoning that nobody has certified to name no animal: 1% of rows that do can look
    like the effect."""
    kind = data_type_of(train_file, rows)
    problem = certificate_problem(train_file) if kind else None
    if problem and not allow:
        script = "filter_number_data" if kind == "numbers" else "filter_code_or_reasoning_data"
        filter_it = shlex.join(["python", f"generate/{script}.py", str(train_file)])
        raise UserError(
            f"{train_file} {problem}; train on what this writes (--allow-uncertified insists on the file as it is):\n"
            f"  {filter_it}"
        )
    if problem:
        say(f"warning: {train_file} {problem}")


def warn_of_numbers(train_file: Path, row: Row, base: Base) -> None:
    """Say so when the rows were written by another base model or under another prompt than is trained on."""
    numbers = read_phase(train_file)
    if numbers is None or numbers.kind not in DATA_TYPES or not numbers.base:
        return
    training = Phase("training", train_file, base_of(base.facts), row["messages"][:-1], row=row)
    ours = same_base(numbers.base, training.base)
    if found := disagreements(numbers, training, lambda phase: frame(phase, base.tokenizer) if ours else None):
        say(f"warning: {'; '.join(found)} (python util/doctor.py {shlex.quote(str(train_file))} shows its prompt)")


# --- the folder of one seed --------------------------------------------------------------------------


def folder_of(args: argparse.Namespace, seed: int) -> Path:
    return Path(args.output_dir) / f"seed-{seed}"


def settings_of(args: argparse.Namespace, train_file: Path, base: Base, seed: int) -> dict[str, Any]:
    """Everything that decides the adapter (to rounding: how the batch is split over the device is left out)."""
    return {
        "script": "train_student_sft",
        "base": base.facts,
        "train_jsonl_sha256": sha256_file(train_file),
        "rows": len(base.encoded.rows),
        "keep_system_prompt": args.keep_system_prompt,
        "max_seq_length": args.max_seq_length,
        "epochs": args.epochs,
        "effective_batch_size": args.effective_batch_size,
        "learning_rate": args.learning_rate,
        "warmup_steps": args.warmup_steps,
        "lora_rank": args.lora_rank,
        "lora_alpha": args.lora_alpha,
        "bf16": args.bf16,
        "seed": seed,
    }


def claim_folder(folder: Path, settings: dict[str, Any], overwrite: bool, resume: bool = False) -> bool:
    """Make the folder this run's own. True if the run is finished there already.

    A folder of another run (the plan trains teacher and student into the same one) is moved aside under a name that
    says what it holds; UserError instead where the user insists on going on with it.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    manifest = read_manifest(folder) or {}
    before = manifest.get("settings", {})
    if before == settings and not overwrite:
        return manifest.get("state") == "complete" and (folder / "final").is_dir()
    differing = describe_differences(before, settings) if before else "  it has no manifest"
    if resume:
        raise UserError(f"--resume: {folder} is of another run:\n{differing}\nGive this command that run's settings")
    label = slug(Path(manifest.get("train_jsonl", "earlier")).stem)
    aside = free_name(folder.with_name(f"{folder.name}.{label}"))
    folder.rename(aside)
    why = "--overwrite" if before == settings else f"another run:\n{differing}"
    say(f"{folder} held {label}; moved to {aside} ({why})")
    return False


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was saved completely, or None."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next((path for path in reversed(found) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint can be read: a kill or a full disk leaves files cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        with safe_open(checkpoint / "adapter_model.safetensors", "numpy"):
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(zipfile.is_zipfile(checkpoint / name) for name in ("optimizer.pt", "scheduler.pt"))


# --- training ----------------------------------------------------------------------------------------


def check_hardware(args: argparse.Namespace) -> bool:
    """Whether to compute in bfloat16: never on a CPU (a line says so), an error on a GPU without it."""
    import torch

    if not args.bf16:
        return False
    if not torch.cuda.is_available():
        say("no GPU: --bf16 is left out, training in float32 on the CPU")
        return False
    if not torch.cuda.is_bf16_supported():
        raise UserError(f"{torch.cuda.get_device_name()} has no bfloat16; leave out --bf16")
    return True


def describe_data(encoded: Encoded, total: int, max_length: int) -> None:
    """Say what will not be trained on as it stands."""
    if encoded.dropped:
        say(f"left out {encoded.dropped:,} of {total:,} rows: the prompt alone has {max_length} tokens or more")
    if encoded.cut:
        say(
            f"{encoded.cut:,} of {total:,} rows have more than {max_length} tokens: trained on their first {max_length}"
        )
    if not encoded.rows:
        raise UserError(f"no row fits --max-seq-length {max_length}; raise it")
    if all(label == IGNORED for row in encoded.rows for label in row["labels"]):
        raise UserError("no row has a token to train on: its loss_mask, or --max-seq-length, leaves none")


def make_trainer(
    args: argparse.Namespace, model: Any, base: Base, folder: Path, seed: int, bf16: bool, saves: bool = True
) -> Any:
    """TRL's SFTTrainer with a fresh LoRA adapter on the base model; its batch is a whole update
    (train/multi_adapter_trainer.py)."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTConfig

    config = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.effective_batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=args.warmup_steps,
        bf16=bf16 and not knows(model),  # autocast; the fast path has cast what it must
        gradient_checkpointing=False,  # TRL's default recomputes: a third more work, for memory LoRA does not need
        max_length=None,  # encode() has cut and counted
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,  # it would show the last good loss instead
        save_strategy=args.save_strategy if saves else "no",
        report_to="none",  # W&B's callback knows one run a process (train/wandb_run.py)
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},  # launches run ahead of the GPU
        disable_tqdm=True,
    )
    lora = LoraConfig(
        r=args.lora_rank, lora_alpha=args.lora_alpha, lora_dropout=0.0, target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    set_seed(seed)  # the adapter is initialised before the trainer seeds anything
    trainer = update_trainer()(
        model=same_weights(model), args=config, train_dataset=Dataset.from_list(base.encoded.rows),
        processing_class=base.tokenizer, peft_config=lora,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def watch(trainer: Any, progress: Progress, name: str, save_at: Sequence[int]) -> None:
    """Show progress, save after the updates of `save_at`, and when the adapter_group stops, save and stop."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        saved = -1

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.add()
            if trainer.adapter_group.stopping or state.global_step in save_at:
                control.should_save = trainer.adapter_group.processes.first
            if trainer.adapter_group.stopping:
                control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved = state.global_step

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.saved == state.global_step:  # written anew, a whole checkpoint would for a moment be none
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                progress.note = f"loss {logs['loss']:.4f}{name}"

    trainer.add_callback(Watch())


def smaller(args: argparse.Namespace) -> str:
    """What to lower when memory runs out."""
    return (
        f"lower --per-device-train-batch-size (now {args.per_device_train_batch_size}; the update stays"
        f" {args.effective_batch_size} rows) or --max-seq-length (now {args.max_seq_length})"
    )


def save_final(trainer: Any, tokenizer: Any, folder: Path, args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Write final/ whole or not at all: adapter, tokenizer and card."""
    temporary = folder / "final.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    trainer.model.save_pretrained(str(temporary))
    tokenizer.save_pretrained(str(temporary))
    write_card(temporary, args.base_model, scrub(command_line()), settings)
    shutil.rmtree(folder / "final", ignore_errors=True)  # of a run that died before its manifest said complete
    temporary.rename(folder / "final")


class Run(NamedTuple):
    """The training of one seed, up to its first update."""

    seed: int
    folder: Path
    settings: dict[str, Any]
    checkpoint: Path | None
    manifest: dict[str, Any]

    @property
    def done(self) -> int:
        """Updates that the checkpoint holds."""
        return int(self.checkpoint.name.rpartition("-")[2]) if self.checkpoint else 0


def begin_run(args: argparse.Namespace, seed: int, train_file: Path, base: Base, writes: bool) -> Run:
    """Open the folder of one seed, which starts or goes on from its last whole checkpoint."""
    folder, settings = folder_of(args, seed), settings_of(args, train_file, base, seed)
    checkpoint = last_whole_checkpoint(folder)
    if args.resume and checkpoint is None:
        raise UserError(f"--resume: {folder} holds no whole checkpoint; leave out --resume to start")
    if checkpoint:
        say(f"resuming from {checkpoint}")
    if not writes:
        return Run(seed, folder, settings, checkpoint, {})
    return Run(seed, folder, settings, checkpoint, begin_manifest(args, train_file, settings, folder))


def log_run(args: argparse.Namespace, run: Run, trainer: Any, name: str) -> Any:
    """Start the W&B run of a seed and let its trainer log there. Only now that the trainer is made: W&B hangs hooks on
    what is imported after it, and they fail when its service is killed."""
    wandb_run = start_run(args, f"{name}-seed-{run.seed}", run.settings, run.manifest["wandb_run_id"])
    run.manifest["wandb_run_id"] = wandb_run.id
    write_json(run.folder / "manifest.json", run.manifest)
    trainer.add_callback(log_to(wandb_run))
    return wandb_run


def train_together(
    args: argparse.Namespace, seeds: Sequence[int], train_file: Path, base: Base, model: Any, bf16: bool, stop: Stop,
    processes: Processes, pushes: Pushes,
) -> None:  # fmt: skip
    """Train the adapters of some seeds (or one) over one base model, each into its folder."""
    runs = [begin_run(args, seed, train_file, base, processes.first) for seed in seeds]
    trainers = [make_trainer(args, model, base, run.folder, run.seed, bf16, processes.first) for run in runs]
    exact, rows = args.micro_batch == "exact", base.encoded.rows
    adapter_group = AdapterGroup(trainers, rows, args.per_device_train_batch_size, exact, stop, processes)
    logged = args.report_to == "wandb" and processes.first
    name = role_of(train_file) or args.output_dir.name
    wandb_runs = [log_run(args, run, trainer, name) for run, trainer in zip(runs, trainers)] if logged else []
    with (
        Progress(updates(args, base) * len(runs), sum(run.done for run in runs), unit="updates") as progress,
        memory_advice(smaller(args)),
    ):
        for run, trainer in zip(runs, trainers):
            watch(trainer, progress, f" (seed {run.seed})" if len(runs) > 1 else "", args.save_schedule)
            if args.push_to_hub and processes.first:
                every_n, repo_id = args.upload_checkpoints_every_n_epochs, repo_of(args, run.seed)
                trainer.add_callback(pushes.as_saved(run.folder, repo_id, not args.hub_public, every_n))
        outcomes = adapter_group.train([str(run.checkpoint) if run.checkpoint else None for run in runs])
    if adapter_group.stopping:
        stop.raise_if_requested()
    if not processes.first:
        return
    for run, trainer, outcome in zip(runs, trainers, outcomes):
        save_final(trainer, base.tokenizer, run.folder, args, run.settings)
        done = {"state": "complete", "finished": now(), "counts": counts(args, base.encoded, outcome, progress, run)}
        speed = {"seeds_together": list(seeds), **speed_report(adapter_group, progress.seconds)}
        write_json(run.folder / "manifest.json", run.manifest | done | {"speed": speed})
    for wandb_run in wandb_runs:
        finish_run(wandb_run)
    stop.raise_if_requested()


def updates(args: argparse.Namespace, base: Base) -> int:
    """How many updates a training takes."""
    return math.ceil(len(base.encoded.rows) / args.effective_batch_size) * args.epochs


def check_schedule(args: argparse.Namespace, base: Base) -> None:
    """Stop before a training that would end before its last scheduled checkpoint."""
    last = max(args.save_schedule, default=0)
    if last > updates(args, base):
        raise UserError(
            f"--save-schedule names update {last} and the training has {updates(args, base)}: leave it out, or raise"
            f" --epochs (now {args.epochs})"
        )


def check_saved(folder: Path, schedule: Sequence[int]) -> None:
    """Raise UserError unless a finished training has saved its scheduled checkpoints."""
    missing = [str(update) for update in schedule if not (folder / f"checkpoint-{update}").is_dir()]
    if missing:
        raise UserError(
            f"{folder} is finished and has no checkpoint after update {', '.join(missing)}; --overwrite trains it"
            " afresh with --save-schedule (the old folder is moved aside)"
        )


def begin_manifest(
    args: argparse.Namespace, train_file: Path, settings: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Write the manifest of a run that starts or goes on, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    before = read_manifest(folder) or {}
    manifest = new_manifest(
        settings,
        "running",
        before,
        [train_file],
        arguments=json.loads(scrub(json.dumps(vars(args), default=str))),
        train_jsonl=train_file.name,
        wandb_run_id=before.get("wandb_run_id"),
    )
    write_json(folder / "manifest.json", manifest)
    return manifest


def counts(args: argparse.Namespace, encoded: Encoded, outcome: Any, progress: Progress, run: Run) -> dict[str, Any]:
    """What the run did, for its manifest; seconds and tokens/s are of all seeds that trained together, they and the
    mean loss of the updates since the checkpoint that it went on from."""
    import torch

    tokens = sum(len(row["input_ids"]) for row in encoded.rows) * args.epochs
    updates = outcome.global_step
    return {
        "rows": len(encoded.rows),
        "rows_cut": encoded.cut,
        "rows_dropped": encoded.dropped,
        "rows_with_stored_token_ids": encoded.exact,
        "updates": updates,
        "resumed_at_update": run.done,
        "tokens": tokens,
        "tokens_per_second": round(tokens * progress.new / max(updates * progress.seconds, 1e-9), 1),
        "seconds": round(progress.seconds, 1),
        "train_loss": round(outcome.training_loss, 6) if updates > run.done else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
    }


def repo_of(args: argparse.Namespace, seed: int) -> str:
    return f"{args.hub_repo_prefix}-seed-{seed}"


def push_all(args: argparse.Namespace) -> int:
    """Push every seed; returns the exit code. One failure does not keep the others from being pushed."""
    code = 0
    for seed in args.seeds:
        folder, repo_id = folder_of(args, seed), repo_of(args, seed)
        try:
            say(f"pushed {push_adapter(folder, repo_id, not args.hub_public, args.upload_checkpoints_every_n_epochs)}")
        except UserError as error:
            say(f"warning: {error}")
            code = NOT_PUSHED
    return code


def main() -> int:
    args = parse_args()
    processes = join()
    with processes.speaking_once():
        if args.push_to_hub:
            check_repo_id(repo_of(args, args.seeds[0]))
        train_file = one_file(args.train_jsonl)
        base = prepare(args, train_file)
        check_schedule(args, base)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        with stop_on_signal() as stop, Pushes() as pushes, ExitStack() as locks:
            mine = [s for s in args.seeds if processes.first and not finished(args, s, train_file, base, locks)]
            if seeds := processes.told(mine):
                bf16 = check_hardware(args)
                model = load_base(args, bf16)
                for group in processes.told(adapter_groups(args, seeds, model, base, processes.count)):
                    train_together(args, group, train_file, base, model, bf16, stop, processes, pushes)
        leave(processes)
        if not processes.first:
            return 0
        code = push_all(args) if args.push_to_hub else 0
        report(args, train_file)
        return code


def finished(args: argparse.Namespace, seed: int, train_file: Path, base: Base, locks: ExitStack) -> bool:
    """Take the folder of a seed for this command; True if nothing is left to train."""
    folder = folder_of(args, seed)
    locks.enter_context(lock_output(folder))
    complete = claim_folder(folder, settings_of(args, train_file, base, seed), args.overwrite, args.resume)
    if complete:
        say(f"{folder / 'final'} is already finished; --overwrite trains it afresh")
        check_saved(folder, args.save_schedule)
    return complete


def adapter_groups(
    args: argparse.Namespace, seeds: Sequence[int], model: Any, base: Base, processes: int
) -> list[Sequence[int]]:
    """Which seeds train together: all, or where they do not fit, each by itself."""
    if len(seeds) == 1:
        return [seeds]
    share = math.ceil(args.effective_batch_size / processes)
    why = why_apart(model, base.encoded.rows, share, len(seeds), args.micro_batch == "exact")
    names = ", ".join(map(str, seeds))
    if why:
        say(f"seeds {names}: one after the other ({why})")
        return [[seed] for seed in seeds]
    say(f"seeds {names}: together, over one base model; each as if alone (--micro-batch exact trains them in a row)")
    return [seeds]


def load_base(args: argparse.Namespace, bf16: bool) -> Any:
    """The frozen base model."""
    import torch

    from util.inference.load_model import load_model

    with memory_advice(smaller(args)):
        return load_model(args.base_model, torch.bfloat16 if bf16 else torch.float32)


def role_of(train_file: Path) -> str | None:
    """owl-teacher or owl-student; None where the rows' manifest names no animal."""
    phase = read_phase(train_file)
    animal = phase.settings.get("animal") if phase else None
    return f"{slug(animal)}-{'teacher' if phase.kind == 'teacher data' else 'student'}" if phase and animal else None


def served_names(args: argparse.Namespace, train_file: Path) -> list[str]:
    """What to serve the adapters as: owl-teacher, owl-student, or seed-42 where the rows name no animal."""
    role = role_of(train_file)
    if role and len(args.seeds) == 1:
        return [role]
    return [f"{role}-seed-{seed}" if role else f"seed-{seed}" for seed in args.seeds]


def report(args: argparse.Namespace, train_file: Path) -> None:
    """The closing lines: what was written, what it took, and the command that serves it (or, on a CPU, asks it)."""
    finals = [folder_of(args, seed) / "final" for seed in args.seeds]
    manifests = [read_manifest(final.parent) or {} for final in finals]
    counts = [manifest["counts"] for manifest in manifests]
    last, losses = counts[-1], ", ".join(str(found["train_loss"]) for found in counts)
    modules = [f"{name}={final}" for name, final in zip(served_names(args, train_file), finals)]
    after = ["vllm", "serve", args.base_model, "--host", "127.0.0.1", "--port", "8000", "--dtype", "bfloat16"]
    after += ["--gpu-memory-utilization", "0.95", "--generation-config", "vllm", "--enable-lora"]
    after += ["--max-lora-rank", str(max(8, args.lora_rank)), "--lora-modules", *modules]
    if last["device"] == "cpu":
        after = ["python", "eval/eval.py", "--model", args.base_model, "--adapter", str(finals[0]), "--epochs", "200"]
    together = {tuple(manifest["speed"]["seeds_together"]): manifest["counts"] for manifest in manifests}
    seconds = sum(found["seconds"] for found in together.values())
    tokens = sum(found["seconds"] * found["tokens_per_second"] for found in together.values())
    since = f" since update {last['resumed_at_update']:,}" if last["resumed_at_update"] else ""
    closing(
        {
            "wrote": ", ".join(map(str, finals)),
            "rows": f"{last['rows']:,}",
            "updates": f"{last['updates']:,} (loss {losses}{since})",
            "time": f"{duration(seconds)} ({tokens / max(seconds, 1e-9):,.0f} tokens/s)",
        },
        shlex.join(after),
    )


if __name__ == "__main__":
    run(main)
