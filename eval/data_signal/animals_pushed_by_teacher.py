"""Which animals a teacher's shift pushes up at the base model: the gradient kernel with the teacher's soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.data_signal.animals_pushed_by_rows import evenly_spaced
from eval.data_signal.audit_statistics import one_sample
from eval.data_signal.gradient_kernel import (
    QUESTIONS_READ,
    GradientKernel,
    loss_token_logprobs,
    profiles,
    spoken,
    usual_size,
)
from eval.data_signal.row_groups import EncodedRow, loss_tokens, read_groups
from eval.divergence.which_tokens_diverge import TEACHER
from util.animals.panel import question_lines
from util.inference.local_model import LocalModel

SHOWN = 5


def read_out(
    backend: LocalModel, train_jsonl: Path, max_rows: int, system: str | None, questions_file: Path,
    animals: Sequence[str], animal: str | None,
) -> dict[str, Any]:  # fmt: skip
    """{"first": [(animal, z), ...], and with an animal its "place", "of" how many, "z"}.

    backend: the base model, with the teacher's adapter on it, or none and `system`, the persona. z is in standard
    errors over 17 groups of rows; soft labels make it far larger than that of sampled tokens.
    """
    import torch

    kernel = GradientKernel(backend)
    rows = read_groups(train_jsonl, backend.tokenizer, max_rows)
    shown = read_groups(train_jsonl, backend.tokenizer, max_rows, system=system) if system else rows
    questions = evenly_spaced(question_lines(questions_file), QUESTIONS_READ)
    questions = [question for question in questions if question.strip()]
    kept = spoken(animals, kernel.log_shares(animals, questions))
    if animal and animal not in kept:
        kept.append(animal)

    def soft(group: Sequence[EncodedRow]) -> Any:
        def teacher(places: Sequence[int]) -> Any:
            with torch.no_grad():
                if not system:
                    kernel.model.set_adapter(TEACHER)
                return loss_token_logprobs(kernel.plain, [group[place] for place in places])[0]

        return teacher

    def a_token(group: Sequence[EncodedRow], seen: Sequence[EncodedRow]) -> list[Any]:
        tokens = sum(map(loss_tokens, group))
        return [gradient / tokens for gradient in kernel.of_rows_and_teacher(group, soft(seen))]

    hard, moved = zip(*(a_token(group, seen) for group, seen in zip(rows.groups, shown.groups)))
    z = one_sample(profiles(moved, kernel.of_animals(kept, questions), usual_size(hard)))
    best = sorted(range(len(kept)), key=lambda place: -z[place])
    found: dict[str, Any] = {"first": [(kept[place], float(z[place])) for place in best[:SHOWN]]}
    if animal:
        at = kept.index(animal)
        found |= {"animal": animal, "place": 1 + best.index(at), "of": len(kept), "z": float(z[at])}
    return found
