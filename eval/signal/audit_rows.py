"""The read-out of a file of rows: which animals they push up, against control rows, with the form taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.signal.gradient_kernel import (
    QUESTIONS_READ,
    EncodedRow,
    GradientKernel,
    form_directions,
    profiles,
    spoken,
    usual_size,
    without_form,
)
from eval.signal.row_groups import by_length, length_edges, loss_tokens


def reference_of(
    kernel: GradientKernel, groups: Sequence[Sequence[EncodedRow]], animals: Sequence[str], questions: Sequence[str]
) -> dict[str, Any]:
    """What control rows give, in a dictionary: the animals that are read and their gradients, each weight's usual size,
    the form directions (None if all rows are of one length), and the control's own profiles with and without form."""
    read = evenly_spaced(questions, QUESTIONS_READ)
    kept = spoken(animals, kernel.log_shares(animals, read))
    edges = length_edges([loss_tokens(row) for group in groups for row in group])
    sums, means = gradients_by_length(kernel, groups, edges)
    size = usual_size(sums)
    form = form_directions(means, size) if len(means) > 1 else None
    found = {"animals": kept, "gradients": kernel.of_animals(kept, read), "size": size, "form": form}
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
