"""The chain behind a comparison, from the manifests: teacher, rows, student, results, with hashes and commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.compare.comparability import adapter_folder, adapter_hash
from util.jsonl.manifest import Manifest

SHORT = 10  # characters of a hash that are shown
PLAN = {
    "epochs": 10, "effective_batch_size": 60, "learning_rate": 0.0002, "lora_rank": 8, "warmup_steps": 5,
    "max_seq_length": 256,
}  # fmt: skip
"""the plan's training of teacher and student (docs/plan.md)"""
PLAN_COUNT = 10_000  # of numbers


@dataclass(frozen=True)
class Step:
    """One file of the chain."""

    what: str
    name: str
    sha256: str
    made_from: str


def short(digest: Any) -> str:
    """The beginning of a hash, or "not recorded"."""
    return str(digest)[:SHORT] if digest else "not recorded"


def chain(data: Sequence[Path], results: Sequence[tuple[str, Path]]) -> list[Step]:
    """The files of rows and the results files, each with what it was made from. results: (arm, file)."""
    steps = []
    for path in data:
        manifest = Manifest.read(path) or Manifest()
        teacher = adapter_of(manifest)
        steps.append(Step("rows", path.name, short(manifest.sha256), teacher or "the base model"))
    for arm, path in results:
        manifest = Manifest.read(path) or Manifest()
        trained = manifest.counts.get("training", {}).get("train_jsonl")
        student = adapter_of(manifest) or "the base model"
        steps.append(Step(f"results, {arm}", path.name, short(manifest.sha256),
                          f"{student}{f', trained on {Path(trained).name}' if trained else ''}"))  # fmt: skip
    return steps


def adapter_of(manifest: Manifest) -> str:
    """The adapter that was asked, with its hash; "" for a base model."""
    model = manifest.model
    folder, digest = adapter_folder(manifest), adapter_hash(manifest) or model.get("adapter_sha256")
    if not folder and not digest:
        return ""
    return f"adapter {folder or model.get('model', '')} ({short(digest)})"


def commands_of(files: Iterable[Path]) -> list[str]:
    """The command that made each file, each once."""
    manifests = [Manifest.read(path) for path in dict.fromkeys(files)]
    return list(dict.fromkeys(manifest.command for manifest in manifests if manifest and manifest.command))


def differs_from_plan(data: Sequence[Path], results: Sequence[Path]) -> list[str]:
    """What differs from the plan's recipe, where manifests say it: 'epochs 2 (plan: 10)'."""
    found = []
    counts = {(Manifest.read(path) or Manifest()).origin.get("count") for path in data} - {None, PLAN_COUNT}
    found += [f"{count:,} rows of numbers asked for (plan: {PLAN_COUNT:,})" for count in sorted(counts, key=str)]
    models = set()
    arguments: dict[str, set[Any]] = {name: set() for name in PLAN}
    for path in results:
        manifest = Manifest.read(path) or Manifest()
        models.add(manifest.model.get("parent") or manifest.model.get("model"))
        folder = adapter_folder(manifest)
        training = Manifest.read(Path(folder).parent) if folder else None
        for name in PLAN:
            if training and name in training.arguments:
                arguments[name].add(training.arguments[name])
    found += [f"model {model} (plan: Qwen/Qwen2.5-7B-Instruct)" for model in sorted(filter(None, models))
              if "Qwen2.5-7B-Instruct" not in model]  # fmt: skip
    for name, values in arguments.items():
        found += [f"{name.replace('_', ' ')} {value:g} (plan: {PLAN[name]:g})" for value in sorted(values)
                  if value != PLAN[name]]  # fmt: skip
    return found
