"""What a teacher's shift does to rows, and which animals it pushes up at the base model: the gradient kernel with the
teacher's soft labels. Rows go through each of the two models once for both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from eval.divergence.score_tokens import divergence_of, kinds, scores_of, to_row
from eval.divergence.which_tokens_diverge import BASE, TEACHER, Scores
from util.animals.panel import question_lines
from util.chat.chat_template import completion_suffix
from util.inference.local_model import LocalModel
from util.jsonl.rows import Row

SHOWN = 5
GAP = 0.6931  # nats: the teacher gives the token twice the base model's probability


def shift_of_rows(
    backend: LocalModel, train_jsonl: Path, max_rows: int, system: str | None, questions_file: Path,
    animals: Sequence[str], animal: str | None,
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """(divergence rows of the rows that are read, in any order and with any id; the read-out: {"first": [(animal, z),
    ...], and with an animal its "place", "of" how many, "z"}).

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
    scored: list[Row] = []

    def a_token(group: Sequence[EncodedRow], with_persona: Sequence[EncodedRow]) -> list[Any]:
        """The two gradients of a group, a token. Adds its divergence rows to `scored`."""

        def teacher(places: Sequence[int]) -> Any:
            with torch.no_grad():
                if not system:
                    kernel.model.set_adapter(TEACHER)
                return loss_token_logprobs(kernel.plain, [with_persona[place] for place in places])[0]

        def seen(places: Sequence[int], tokens: Any, base: Any, wanted: Any) -> None:
            lengths = [loss_tokens(group[place]) for place in places]
            scored.extend(divergence_rows(backend.tokenizer, lengths, tokens, base, wanted))

        tokens = sum(map(loss_tokens, group))
        return [gradient / tokens for gradient in kernel.of_rows_and_teacher(group, teacher, seen)]

    hard, moved = zip(*map(a_token, rows.groups, shown.groups))
    z = one_sample(profiles(moved, kernel.of_animals(kept, questions), usual_size(hard)))
    best = sorted(range(len(kept)), key=lambda place: -z[place])
    found: dict[str, Any] = {"first": [(kept[place], float(z[place])) for place in best[:SHOWN]]}
    if animal:
        at = kept.index(animal)
        found |= {"animal": animal, "place": 1 + best.index(at), "of": len(kept), "z": float(z[at])}
    return scored, found


def divergence_rows(tokenizer: Any, lengths: Sequence[int], tokens: Any, base: Any, teacher: Any) -> Iterator[Row]:
    """The divergence rows of some rows. lengths: tokens with loss of each row; tokens: all of them; base, teacher:
    log-probabilities where they are predicted, [tokens, vocabulary]."""
    ids, kl, suffix = tokens.tolist(), divergence_of(teacher, base), completion_suffix(tokenizer)
    by_variant = {BASE: scores_of(base, tokens), TEACHER: scores_of(teacher, tokens)}
    begin = 0
    for number, length in enumerate(lengths):
        cut = slice(begin, begin + length)
        own = {name: Scores(one.logprobs[cut], one.choices[cut]) for name, one in by_variant.items()}
        yield to_row(number, ids[cut], kinds(ids[cut], tokenizer, suffix), own, kl[cut], GAP)
        begin += length
