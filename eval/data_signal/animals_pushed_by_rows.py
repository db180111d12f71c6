"""The read-out of a file of rows: which animals they push up, against control rows, with the form taken out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.data_signal.audit_statistics import standing
from eval.data_signal.gradient_kernel import (
    QUESTIONS_READ,
    GradientKernel,
    form_directions,
    profiles,
    spoken,
    usual_size,
    without_form,
)
from eval.data_signal.row_groups import EncodedRow, by_length, length_edges, loss_tokens
from util.jsonl.manifest import write_atomically
from util.jsonl.rows import dump_row


def reference_of(
    kernel: GradientKernel, groups: Sequence[Sequence[EncodedRow]], animals: Sequence[str], questions: Sequence[str],
    always: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """What control rows give, in a dictionary: `of_animals` and `of_control`."""
    return of_control(kernel, groups, of_animals(kernel, animals, questions, always))


def of_animals(
    kernel: GradientKernel, animals: Sequence[str], questions: Sequence[str], always: Sequence[str] = ()
) -> dict[str, Any]:
    """The animals that are read, with their shares of the base model's one-word answers and their gradients."""
    read = evenly_spaced(questions, QUESTIONS_READ)
    logs = kernel.log_shares(animals, read)
    named = set(spoken(animals, logs)) | set(always)
    kept = [animal for animal in animals if animal in named]
    shares = np.exp(logs - np.logaddexp.reduce(logs))[[animal in named for animal in animals]]
    return {"animals": kept, "gradients": kernel.of_animals(kept, read), "shares": shares}


def of_control(
    kernel: GradientKernel, groups: Sequence[Sequence[EncodedRow]], animals: dict[str, Any]
) -> dict[str, Any]:
    """Each weight's usual size, the form directions (None if all rows are of one length) and the control rows' own
    profiles, beside what `of_animals` gave."""
    edges = length_edges([loss_tokens(row) for group in groups for row in group])
    sums, means = gradients_by_length(kernel, groups, edges)
    size = usual_size(sums)
    found = {**animals, "size": size, "form": form_directions(means, size) if len(means) > 1 else None}
    return {**found, **profiles_of(sums, found)}


def profiles_of(gradients: Sequence[Any], reference: dict[str, Any]) -> dict[str, Any]:
    """{"plain": profiles [groups, animals], "formless": the same without the form's part}."""
    animals, size, form = (reference[key] for key in ("gradients", "size", "form"))
    plain = profiles(gradients, animals, size)
    formless = plain if form is None else profiles(list(without_form(gradients, form, size)), animals, size)
    return {"plain": plain, "formless": formless}


def gradients_by_length(
    kernel: GradientKernel, groups: Sequence[Sequence[EncodedRow]], edges: Sequence[float]
) -> tuple[list[Any], list[Any]]:
    """(mean gradient a token of each group, mean gradient of the short, middling and long rows of all groups)."""
    sums: list[Any] = [0.0] * (len(edges) + 1)
    tokens = [0] * len(sums)
    means = []
    for group in groups:
        whole, count = 0.0, 0
        for place, part in enumerate(by_length(group, edges)):
            if part:
                gradient, length = kernel.of_rows(part), sum(map(loss_tokens, part))
                sums[place], tokens[place] = sums[place] + gradient, tokens[place] + length
                whole, count = whole + gradient, count + length
        means.append(whole / count)
    return means, [one / length for one, length in zip(sums, tokens) if length]


def group_gradients(kernel: GradientKernel, groups: Sequence[Sequence[EncodedRow]]) -> list[Any]:
    """The mean gradient a token of each group."""
    return [kernel.of_rows(group) / sum(map(loss_tokens, group)) for group in groups]


def evenly_spaced(values: Sequence[Any], count: int) -> list[Any]:
    """`count` of the values (or all), evenly spaced."""
    if len(values) <= count:
        return list(values)
    return [values[place * len(values) // count] for place in range(count)]


# --- the audit of a file -----------------------------------------------------------------------------


def audit(
    kernel: GradientKernel, groups: Sequence[Sequence[EncodedRow]], control: Sequence[Sequence[EncodedRow]] | None,
    animals: Sequence[str], questions: Sequence[str], always: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """(what stands out in the rows, what the reference gave). always: animals that are read however rarely the base
    model names them. Without control rows the rows' own sizes and lengths are used, and z is against zero."""
    reference = reference_of(kernel, control or groups, animals, questions, always)
    own = reference if control is None else profiles_of(group_gradients(kernel, groups), reference)
    kinds = {kind: standing(own[kind], None if control is None else reference[kind]) for kind in ("formless", "plain")}
    formless, plain = kinds["formless"], kinds["plain"]
    names = reference["animals"]
    found = {
        "first": names[int(formless.z.argmax())],
        "p": formless.p,
        "alarm": formless.alarm,
        "p_with_form": plain.p,
        "animals": {
            name: {"z": float(formless.z[place]), "z_with_form": float(plain.z[place]),
                   "difference": float(formless.difference[place]),
                   "difference_with_form": float(plain.difference[place]), "share": float(reference["shares"][place])}
            for place, name in enumerate(names)
        },
    }  # fmt: skip
    return found, reference


def row_scores(
    kernel: GradientKernel, groups: Sequence[Sequence[EncodedRow]], reference: dict[str, Any], animal: str, path: Path
) -> None:
    """Write how far each row pushes the animal up: {"id", "animal", "score"}, in the order of the file."""
    place = reference["animals"].index(animal)
    rows = [row for group in groups for row in group]
    scores = (float(profiles_of([kernel.of_rows([row])], reference)["formless"][0, place]) for row in rows)
    lines = [dump_row({"id": number, "animal": animal, "score": score}) for number, score in enumerate(scores)]
    write_atomically(path, b"".join(lines))
