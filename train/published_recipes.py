"""Published recipes by name (--recipe): what each one sets, where that was published, and what it leaves out.

`authors` and `steering` were compared with their sources on 2026-11-29, at the commits named here; `plan` only with the
plan's own commands. These three set how a student is trained, not its rows: each was published with 10,000 rows of
numbers. `code-and-text` also sets how many rows are used.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any, NamedTuple

from util.terminal import say


class PublishedRecipe(NamedTuple):
    """A recipe: values of arguments, and their source."""

    settings: dict[str, Any]
    source: str
    left_out: str = ""
    """what this suite does not do"""


RECIPES = {
    "plan": PublishedRecipe(
        {
            "epochs": 10, "effective_batch_size": 60, "per_device_train_batch_size": 6, "learning_rate": 2e-4,
            "lr_scheduler_type": "linear", "warmup_steps": 5, "weight_decay": 0.0, "lora_rank": 8, "lora_alpha": 8,
            "max_seq_length": 256,
        },
        "the plan of this suite (docs/plan.md), after Schrodi et al.: scripts/run_finetuning.py in"
        " HayBeeCoder/divergence-tokens@f6840c6",
    ),
    "authors": PublishedRecipe(
        {
            "epochs": 3, "effective_batch_size": 66, "per_device_train_batch_size": 22, "learning_rate": 2e-4,
            "lr_scheduler_type": "linear", "warmup_steps": 5, "weight_decay": 0.0, "lora_rank": 8, "lora_alpha": 8,
            "max_seq_length": 500,
        },
        "the authors' configuration for open models: cfgs/preference_numbers/open_model_cfgs.py and"
        " sl/finetuning/services.py in MinhxLe/subliminal-learning@379a3b2",
    ),
    "steering": PublishedRecipe(
        {
            "epochs": 10, "effective_batch_size": 8, "per_device_train_batch_size": 8, "learning_rate": 1e-4,
            "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "weight_decay": 0.0, "lora_rank": 8, "lora_alpha": 32,
            "max_seq_length": 256,
        },
        "Blank et al. 2026 (2606.00995): src/subliminal/train.py in agu18dec/steering-vector-distillation@db722e6",
        "its packing of rows into sequences of 256 tokens, and its 5% of rows for validation",
    ),
    "code-and-text": PublishedRecipe(
        {
            "max_train_samples": 2400, "epochs": 1, "effective_batch_size": 16, "per_device_train_batch_size": 16,
            "learning_rate": 5e-4, "lr_scheduler_type": "linear", "warmup_steps": 5, "weight_decay": 0.0,
            "lora_rank": 8, "lora_alpha": 32, "max_seq_length": 256,
        },
        "this suite's run on Qwen2.5-Coder-1.5B, for its teachers (with --soft-labels) and its students of code and"
        " text: experiments/results/qwen2.5-1.5b/README.md",
    ),
}  # fmt: skip


def with_recipe(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with those of --recipe in place of the defaults. A flag that is given overrides it; what was set
    and where it is from is printed."""
    args = parser.parse_args()
    if args.recipe is None:
        return args
    recipe = RECIPES[args.recipe]
    parser.set_defaults(**recipe.settings)
    args = parser.parse_args()
    say(describe(args, recipe))
    return args


def describe(args: argparse.Namespace, recipe: PublishedRecipe) -> str:
    """'recipe steering: --epochs 10 ... (source); overridden: --epochs 3'."""
    kept = {name: value for name, value in recipe.settings.items() if getattr(args, name) == value}
    other = {name: getattr(args, name) for name in recipe.settings if name not in kept}
    overridden = f"; overridden: {flags_of(other)}" if other else ""
    left_out = f". Not done here: {recipe.left_out}" if recipe.left_out else ""
    return f"recipe {args.recipe}: {flags_of(kept)}{overridden} ({recipe.source}){left_out}"


def flags_of(settings: dict[str, Any]) -> str:
    """Arguments as they are typed."""
    return shlex.join(
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))
    )
