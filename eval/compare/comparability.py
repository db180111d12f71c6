"""Check that results files can be compared: same questions and sampling, one base model, no student counted twice."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath

from eval.answers.check_parser_version import how_to_renew, is_other_parser
from eval.compare.read_results import Result
from util.animals.answer_parser import canonical_animal
from util.animals.panel import panel
from util.chat.chat_template import TEMPLATE_KWARGS
from util.chat.prompt_consistency import base_words, read_phase, same_base
from util.cli import UserError
from util.jsonl.manifest import Manifest, sha256_file
from util.terminal import say

SAME_SETTINGS = {
    "sampling": "sampling settings",
    "parser": "versions of the answer parser",
    "system_prompt": "system prompts",
}
ADAPTER_FLAG = re.compile(r"--ad(?:a(?:p(?:t(?:e(?:r)?)?)?)?)?")  # until 2026-11-28 a flag could be abbreviated


def check_comparable(results: Sequence[Result]) -> None:
    """Raise UserError unless all files were made in the same way and no student appears twice."""
    manifests = [manifest_of(result) for result in results]
    check_panel(results, manifests)
    check_questions(results)
    check_trainings(results, manifests)
    check_settings(results, manifests)
    check_animals(results)
    warn_of_other_base(results)
    check_students(results, manifests)


def manifest_of(result: Result) -> Manifest:
    """The manifest of a results file; an empty one if there is none."""
    return Manifest.read(result.path) or Manifest()


def check_panel(results: Sequence[Result], manifests: Sequence[Manifest]) -> None:
    """Raise UserError for results that were measured in the words of another panel than this process's."""
    ours = panel().facts().get("panel")
    for result, manifest in zip(results, manifests):
        parser = manifest.settings.get("parser") or {}
        if parser and (theirs := parser.get("panel")) != ours:
            name = (theirs or {"name": "animals"})["name"]
            again = "files of one version of it" if name == panel().name else f"all files with --panel {name}"
            raise UserError(
                f"{result.path} was measured with the panel {name!r}, and this comparison is about {panel().name!r}:"
                f" results of two panels are never compared; compare {again}, or measure again"
            )


def check_questions(results: Sequence[Result]) -> None:
    """Raise UserError unless all files answer the same questions."""
    for result in results[1:]:
        if missing := set(results[0].questions) ^ set(result.questions):
            raise UserError(
                f"{result.path} and {results[0].path} were asked different questions ({len(missing)} differ, such as"
                f" {sorted(missing)[0]!r}); evaluate both with the same --questions-file"
            )


def check_settings(results: Sequence[Result], manifests: Sequence[Manifest]) -> None:
    """Raise UserError unless all files agree in `SAME_SETTINGS`."""
    for result, manifest in zip(results, manifests):
        given, first = (one.model.get(TEMPLATE_KWARGS) or {} for one in (manifest, manifests[0]))
        if given != first:
            raise UserError(
                f"{result.path} and {results[0].path} used different --chat-template-kwargs ({given or 'none'}"
                f" and {first or 'none'}); evaluate both with the same"
            )
        for field, meaning in SAME_SETTINGS.items():
            if manifest.settings.get(field) != manifests[0].settings.get(field):
                if field == "parser":
                    raise UserError(other_parser(results[0], result))
                raise UserError(
                    f"{result.path} and {results[0].path} were made with different {meaning} (see their manifests)"
                )


def other_parser(one: Result, two: Result) -> str:
    """What is wrong with two files whose animals were named by different answer parsers, and what to do."""
    renew = [how_to_renew(some.path, some.answers is None) for some in (one, two) if is_other_parser(some.path)]
    return (
        f"{two.path} and {one.path} were made with different versions of the answer parser, so their shares cannot be"
        f" compared; {'; '.join(renew) or 'make both again with one version of the suite'}"
    )


def check_animals(results: Sequence[Result]) -> None:
    """Raise UserError unless all exact files have log-probabilities of the same animals."""
    with_logs = [result for result in results if all(result.logs)]
    for result in with_logs[1:]:
        if result.logs[0].keys() != with_logs[0].logs[0].keys():
            raise UserError(
                f"{result.path} and {with_logs[0].path} have log-probabilities of different animals; measure both again"
                " with the same version of the suite"
            )


def check_students(results: Sequence[Result], manifests: Sequence[Manifest]) -> None:
    """Raise UserError if two files are results of one adapter, or are one file."""
    seen: dict[str, Path] = {}
    for result, manifest in zip(results, manifests):
        add_student(adapter_hash(manifest) or str(result.path.resolve()), result.path, seen)


def check_seeds(results: Sequence[Result]) -> None:
    """Raise UserError if two files of one arm are copies of each other, whatever their names.

    Copies are sampled answers with the same bytes, or exact shares with the same digits. A file whose manifest has the
    adapter's hash is identified by that instead: two students that have not moved from the base model can have equal
    shares.
    """
    seen: dict[str, Path] = {}
    for result in results:
        rounded = not result.path.is_file()  # from a table: two students can be equal to its digits
        if not rounded and adapter_hash(manifest_of(result)) is None:
            if result.answers is None:
                identity = repr(sorted(zip(result.questions, map(repr, result.animals), map(repr, result.logs))))
            else:
                identity = sha256_file(result.path)
            add_student(identity, result.path, seen)


def add_student(identity: str, path: Path, seen: dict[str, Path]) -> None:
    """Record the file of a student in `seen`; UserError if another file has the same student."""
    if identity in seen:
        raise UserError(f"{path} and {seen[identity]} are results of the same student; it counts as one seed")
    seen[identity] = path


def adapter_hash(manifest: Manifest) -> str | None:
    """The adapter's hash in a results file's manifest; None if the model was known by its served name only."""
    return manifest.settings.get("model", {}).get("adapter_sha256")


# --- one training, one seed --------------------------------------------------------------------------


def adapter_folder(manifest: Manifest) -> PurePath | None:
    """The folder of the adapter that gave the results; None if the manifest does not name one."""
    recorded = manifest.counts.get("adapter")
    return PurePath(recorded) if recorded else adapter_in_command(manifest.command)


def adapter_in_command(command: str) -> PurePath | None:
    """The value of --adapter in a command: until 2026-11-29 a manifest named the folder only there."""
    try:
        words = shlex.split(command)
    except ValueError:  # written by hand
        return None
    for word, following in zip(words, [*words[1:], ""]):
        flag, equals, value = word.partition("=")
        if ADAPTER_FLAG.fullmatch(flag) and (value or following):
            return PurePath(value if equals else following)
    return None


def training_of(manifest: Manifest) -> tuple[str, str] | None:
    """(run folder, "final" or "checkpoint-N") of the adapter that gave the results; None if the manifest does not name
    such a folder."""
    folder = adapter_folder(manifest)
    if folder is None or not re.fullmatch(r"final|checkpoint-\d+", folder.name):
        return None
    return str(folder.parent), folder.name


def check_trainings(results: Sequence[Result], manifests: Sequence[Manifest]) -> None:
    """Raise UserError if two files are results of two checkpoints of one training: both have the same seed."""
    states: dict[str, tuple[str, Path]] = {}
    for result, manifest in zip(results, manifests):
        if found := training_of(manifest):
            run_folder, state = found
            other, path = states.setdefault(run_folder, (state, result.path))
            if state != other:
                raise UserError(
                    f"{path} and {result.path} are results of {other} and {state} of one training ({run_folder}); each"
                    " seed needs a training of its own"
                )


# --- base models and names ---------------------------------------------------------------------------


def warn_of_other_base(results: Sequence[Result]) -> None:
    """Print a warning if two files are results of models with different base models."""
    phases = [phase for phase in (read_phase(result.path) for result in results) if phase and phase.base]
    others = [phase for phase in phases if not same_base(phase.base, phases[0].base)]
    if others:
        first, second = (f"{phase.path} has base model {base_words(phase.base)}" for phase in (phases[0], others[0]))
        say(f"warning: {first}, {second}; arms can be compared only if they share a base model")


def check_named(animal: str, results: Sequence[Result]) -> None:
    """Raise UserError for a word that is not a known animal and that no answer names."""
    named = {name for result in results for animals in result.animals for name in animals}
    if canonical_animal(animal) is None and animal not in named:
        near = difflib.get_close_matches(animal, named, 3)
        meant = f"did you mean {' or '.join(near)}?" if near else "util/top_animals_csv.py lists what is named"
        raise UserError(f"no answer names {animal!r}, and {panel().listed_in} does not list it; {meant}")
