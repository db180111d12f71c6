"""Check that each results file can have the role it is given: what the manifests say of the model in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.compare.comparability import adapter_folder, adapter_hash, manifest_of
from eval.compare.read_results import Result, canonical
from util.animals.names import is_control
from util.animals.word_forms import animals_of
from util.chat.prompt_consistency import base_of, same_base
from util.cli import UserError
from util.inference.adapter_training import training_facts
from util.jsonl.manifest import Manifest
from util.terminal import say


def check_roles(
    base: Result,
    control: Sequence[Result],
    students: Mapping[str, Sequence[Result]],
    other: Sequence[Result] = (),
    neutral: Mapping[str, Sequence[Result]] | None = None,
) -> None:
    """Raise UserError if a file cannot have its role, warn if it is likely to have another.

    students: by the animal of their teacher. other: students of another animal than these. neutral: students of
    teachers of no animal.
    """
    other = [*other, *(one for some in (neutral or {}).values() for one in some)]
    check_base(base)
    for result in (*control, *(one for some in students.values() for one in some), *other):
        check_student(result, base)
    for result in control:
        warn_of_animal(result, None, control=True)
    for animal, some in students.items():
        for result in some:
            warn_of_animal(result, animal)
    for result in other:
        warn_of_animal(result, None, not_of=list(students))


def is_adapter(manifest: Manifest) -> bool:
    """Whether results are known to be of a LoRA adapter."""
    known = manifest.model.get("parent") or adapter_hash(manifest) or adapter_folder(manifest)
    return bool(known)


def trained_on(manifest: Manifest) -> dict[str, Any]:
    """What the adapter of some results was trained on; older manifests only name its folder. {} if it is not known."""
    if facts := manifest.counts.get("training"):
        return dict(facts)
    folder = adapter_folder(manifest)
    return training_facts(Path(folder)) if folder else {}


def check_base(base: Result) -> None:
    """UserError if the base model's file has the results of an adapter."""
    if is_adapter(manifest := manifest_of(base)):
        name = adapter_folder(manifest) or manifest.model.get("model")
        raise UserError(
            f"--base {base.path} has the results of an adapter ({name}, by its manifest); pass results of the model"
            " without an adapter"
        )


def check_student(result: Result, base: Result) -> None:
    """UserError if a student's file has the results of the base model or of a teacher."""
    manifest, facts = manifest_of(result), [base_of(manifest_of(one).model) for one in (result, base)]
    if not is_adapter(manifest) and all(one.get("model") for one in facts) and same_base(*facts):
        raise UserError(
            f"{result.path} has the results of the base model itself (by its manifest), and a student was expected;"
            " evaluate with --adapter FOLDER, or with the name that the adapter is served under"
        )
    trained = trained_on(manifest)
    if trained.get("kind") == "teacher data":
        raise UserError(
            f"{result.path} has the results of a teacher (it was trained on {trained['train_jsonl']}); the arms are of"
            " students, which are trained on its rows"
        )


def warn_of_animal(result: Result, animal: str | None, not_of: Sequence[str] = (), control: bool = False) -> None:
    """Warn if a student was trained on rows of another animal's teacher than its role says.

    animal: that of its teacher. not_of: animals that it must not be of.
    """
    trained = trained_on(manifest_of(result))
    found = {canonical(one) for one in animals_of(trained.get("animal") or "") if one and not is_control(one)}
    if control and found:
        wanted = "a control student is trained on rows of the base model"
    elif animal and found and animal not in found:
        wanted = f"here it is a student of {animal}"
    elif animal and is_control(trained.get("animal")):
        found, wanted = {"the base model"}, f"here it is a student of {animal}"
    elif same := found & set(not_of):
        wanted = f"--other is for students of another animal than {' and '.join(sorted(same))}"
    else:
        return
    say(
        f"warning: {result.path} is of a student of {' and '.join(sorted(found))} (trained on"
        f" {trained['train_jsonl']}), and {wanted}: are two files exchanged?"
    )


def check_kinds(students: Mapping[str, Sequence[Result]], neutral: Mapping[str, Sequence[Result]]) -> None:
    """UserError for a kind that is in both groups; a warning if kinds have different numbers of students."""
    if both := students.keys() & neutral.keys():
        name = sorted(both)[0]
        raise UserError(f"{name} is in --students and in --neutral; a kind is one of the two")
    counts = {kind: len(some) for kind, some in {**students, **neutral}.items()}
    if len(set(counts.values())) > 1:
        counted = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        say(f"warning: kinds have different numbers of students ({counted}); each kind counts once")


def check_one_kind(other: Sequence[Result]) -> None:
    """UserError if the other arm is known to hold students of several kinds, which are not independent."""
    animals = {str(trained_on(manifest_of(result)).get("animal") or "") for result in other} - {""}
    if len(animals) > 1:
        raise UserError(
            f"--other holds students of several kinds ({', '.join(sorted(animals))}), and students of one kind drift"
            " together; pass all with --students ANIMAL=FILE ..., which counts each kind once"
        )


def warn_of_unmoved(base: Result, students: Sequence[Result]) -> None:
    """Warn of students whose answers are those of the base model: their adapters may not have been applied."""
    same = [str(one.path) for one in students if one.questions == base.questions and one.animals == base.animals]
    if same:
        say(
            f"warning: {', '.join(same)}: every share equals that of the base model ({base.path}); was the adapter"
            " applied, and did its training change anything?"
        )
