"""Was each file of a run made from the one before? Compares the hashes of rows and adapters in their manifests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from util.chat.prompt_consistency import Phase
from util.cli import REPO
from util.jsonl.filter_certificate import DATA_TYPES
from util.jsonl.manifest import Manifest, adapter_sha256, sha256_file


@dataclass
class Chain:
    """The links between the files of a run, a line for each."""

    whole: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """what cannot be decided with the files that were given"""


def chain_of(phases: Sequence[Phase]) -> Chain:
    """The links teacher data -> teacher -> numbers -> student -> results among the files of a run."""
    chain = Chain()
    hashes = {phase.path: sha256_file(phase.path) for phase in phases if phase.path.is_file()}
    trainings = [phase for phase in phases if phase.kind == "training"]
    adapters = {training.path: adapters_of(training.path) for training in trainings}
    for phase in phases:
        manifest = Manifest.read(phase.path) or Manifest()
        if phase.path in hashes and manifest.sha256 not in (None, hashes[phase.path]):
            chain.broken.append(f"{phase.path} has changed since it was written, as its manifest says")
        link_inputs(phase, manifest, hashes, chain)
    fed = [training for training in trainings if training.settings["train_jsonl_sha256"] in hashes.values()]
    link_unfed(phases, [training for training in trainings if training not in fed], hashes, chain)
    numbers = {hashes[phase.path] for phase in phases if phase.kind in DATA_TYPES and phase.path in hashes}
    teachers = [training.path for training in fed if training.settings["train_jsonl_sha256"] not in numbers]
    for phase in phases:
        link_adapter(phase, adapters, teachers, chain)
    return chain


def adapters_of(training: Path) -> dict[str, Path]:
    """{hash: folder} of the adapters of a training: final and its checkpoints."""
    return {adapter_sha256(file.parent): file.parent for file in sorted(training.glob("*/adapter_model.safetensors"))}


def link_inputs(phase: Phase, manifest: Manifest, hashes: dict[Path, str], chain: Chain) -> None:
    """The files that were read to make this one, as far as they are among the given ones."""
    for name, digest in manifest.inputs.items():
        same = [path for path, found in hashes.items() if found == digest and path != phase.path]
        chain.whole += [f"{path} -> {phase.path}: the rows ({digest[:8]})" for path in same]
        read = {(place / name).resolve() for place in (Path(), REPO)}
        changed = [path for path in hashes if path.resolve() in read]
        chain.broken += [
            f"{phase.path} was made from other rows than {path} holds now ({digest[:8]} then, {hashes[path][:8]} now)"
            for path in ([] if same else changed)
        ]


def link_unfed(phases: Sequence[Phase], unfed: Sequence[Phase], hashes: dict[Path, str], chain: Chain) -> None:
    """The trainings whose rows are in none of the files, although there are rows that no training used."""
    used = {phase.settings["train_jsonl_sha256"] for phase in phases if phase.kind == "training"}
    idle = [phase.path for phase in phases if phase.kind in DATA_TYPES and hashes.get(phase.path) not in used]
    for training in unfed:
        manifest = Manifest.read(training.path) or Manifest()
        digest, name = training.settings["train_jsonl_sha256"], manifest.train_jsonl or "rows"
        if idle and not any(str(training.path) in line for line in chain.broken):
            chain.broken.append(
                f"{training.path} was trained on {name} ({digest[:8]}), not on {', '.join(map(str, idle))}"
            )


def link_adapter(phase: Phase, adapters: dict[Path, dict[str, Path]], teachers: Sequence[Path], chain: Chain) -> None:
    """The adapter that wrote the rows or gave the answers."""
    found_model = phase.settings.get("model")
    model = found_model if isinstance(found_model, dict) else {}
    digest = model.get("adapter_sha256")
    if not digest or phase.kind == "training":
        return
    found = [folder for known in adapters.values() for sha, folder in known.items() if sha == digest]
    if found:
        chain.whole.append(f"{found[0]} -> {phase.path}: the adapter ({digest[:8]})")
        return
    path = (Manifest.read(phase.path) or Manifest()).counts.get("adapter") or model.get("root")
    meant = [training for training in adapters if path and Path(path).resolve().is_relative_to(training.resolve())]
    if not meant and phase.kind in DATA_TYPES:
        meant = list(teachers)
    for training in meant:
        there = ", ".join(f"{folder.name} {sha[:8]}" for sha, folder in adapters[training].items()) or "no adapter"
        chain.broken.append(
            f"{phase.path} asked an adapter ({digest[:8]}) that {training} does not hold ({there}):"
            " it was trained again since, or another one was asked"
        )
    if not meant and adapters and phase.kind == "evaluation":
        chain.notes.append(f"{phase.path} asked an adapter that is in none of these training folders")
