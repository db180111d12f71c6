"""Which tokens of a completion its teacher would choose and others would not.

A *variant* is one way to hear the base model: plain, with an adapter, or under a persona. Every variant reads the same
stored completion tokens (teacher forcing, no sampling). Definitions, for a token x at its place:

    schrodi   the teacher's most probable token is x, and that of some counterfactual variant is not
              (Schrodi et al. 2025, "Towards understanding subliminal learning", divergence tokens)
    pair      the teacher's most probable token is x, and the base model's is not
    gap       log p_teacher(x) - log p_base(x) is above a threshold

The *detector* needs no teacher: log p_student(x) - log p_base(x), for someone who has the data and a student of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.chat.chat_tokens import common_prefix_length, completion_suffix, prompt_and_completion_ids, without_system
from util.cli import UserError, memory_advice
from util.jsonl.divergence_row import DEFINITIONS, DIGIT, END, SEPARATOR, of_answer
from util.jsonl.rows import Row

BASE, TEACHER, STUDENT = "base", "teacher", "student"
TOKENS_AT_ONCE = 2048  # through the vocabulary's head: two float32 copies of [tokens, vocabulary] are in memory
PLACES = 5  # decimals kept of a log-probability


@dataclass(frozen=True)
class Variant:
    """One way to hear the base model."""

    name: str
    adapter: Path | None = None
    system: str | None = None


@dataclass(frozen=True)
class Completion:
    """The stored tokens of one row, its end of turn included, and what each variant reads before them."""

    prompts: dict[str, list[int]]
    ids: list[int]


@dataclass(frozen=True)
class Scores:
    """What one variant makes of one completion: log-probability of each token (nats) and its own first choice there."""

    logprobs: list[float]
    choices: list[int]


class VariantScorer:
    """All variants over one copy of the base model in memory."""

    def __init__(self, base_model: str, variants: Sequence[Variant], model: Any = None):
        """model: the base model where it is loaded already."""
        from util.inference.load_model import load_model, load_tokenizer, put_adapter

        self.tokenizer = load_tokenizer(base_model)
        self.variants = list(variants)
        self.model = model or load_model(base_model)
        self.suffix = completion_suffix(self.tokenizer)
        for variant in variants:
            if variant.adapter is not None:
                self.model = put_adapter(self.model, variant.adapter, variant.name)

    def completion_of(self, row: Row, number: int) -> Completion:
        """The tokens of a row; UserError where they are not those that its model wrote."""
        row = without_system(row)
        prompts: dict[str | None, list[int]] = {}
        for persona in dict.fromkeys(variant.system for variant in self.variants):
            system = [{"role": "system", "content": persona}] if persona else []
            asked = {**row, "messages": [*system, *row["messages"]]}
            prompts[persona], ids, exact = prompt_and_completion_ids(asked, self.tokenizer, self.suffix)
        if row.get("token_ids") and not exact:
            raise UserError(
                f"row {number}: its token_ids are not this tokenizer's ids of its text; pass the --base-model whose"
                " numbers these are"
            )
        if len(ids) <= len(self.suffix):
            raise UserError(f"row {number} has no completion tokens")
        return Completion({variant.name: prompts[variant.system] for variant in self.variants}, ids)

    def kinds(self, ids: Sequence[int]) -> str:
        """One letter a token: d holds a digit, e ends the turn (or comes after), s is anything else."""
        answer = len(ids) - len(self.suffix)
        texts = self.tokenizer.batch_decode([[i] for i in ids[:answer]])
        return "".join(DIGIT if any(c.isdigit() for c in t) else SEPARATOR for t in texts) + END * len(self.suffix)

    def score(self, completions: Sequence[Completion]) -> list[tuple[dict[str, Scores], list[float]]]:
        """For each completion: what every variant makes of it, and KL(teacher || base) at each token in nats (empty
        without a teacher). One pass a variant."""
        import torch

        lengths = [len(completion.ids) for completion in completions]
        tokens = torch.tensor([i for completion in completions for i in completion.ids], device=self.model.device)
        with torch.inference_mode(), memory_advice("lower --batch-size"):
            hidden = {variant.name: self._hidden(variant, completions) for variant in self.variants}
            parts = [
                self._score({name: states[at : at + TOKENS_AT_ONCE] for name, states in hidden.items()},
                            tokens[at : at + TOKENS_AT_ONCE])
                for at in range(0, len(tokens), TOKENS_AT_ONCE)
            ]  # fmt: skip
        scores = {key: [value for part in parts for value in part[key]] for key in parts[0]}
        return list(self._by_completion(scores, lengths))

    def _by_completion(
        self, scores: Mapping[tuple[str, str], list[Any]], lengths: Sequence[int]
    ) -> Iterator[tuple[dict[str, Scores], list[float]]]:
        begin = 0
        for length in lengths:
            cut = slice(begin, begin + length)
            by_variant = {
                variant.name: Scores(scores["logprobs", variant.name][cut], scores["choices", variant.name][cut])
                for variant in self.variants
            }
            yield by_variant, scores["kl", TEACHER][cut] if ("kl", TEACHER) in scores else []
            begin += length

    def _hidden(self, variant: Variant, completions: Sequence[Completion]) -> Any:
        """The last hidden states from which a variant predicts each completion token: [tokens, width].

        What all prompts begin with goes through the model once, and its KV cache is lent to every row."""
        import torch

        chats = [completion.prompts[variant.name] + completion.ids for completion in completions]
        prompts = [completion.prompts[variant.name][:-1] for completion in completions]
        shared = min(common_prefix_length(prompts[0], prompt) for prompt in prompts)
        width, device = max(map(len, chats)), self.model.device
        # on the right, where no token that counts can see it: no attention mask is needed
        padded = [chat + [self.tokenizer.pad_token_id] * (width - len(chat)) for chat in chats]
        ids = torch.tensor(padded, device=device)
        predicts = torch.zeros_like(ids, dtype=torch.bool)
        for place, (chat, completion) in enumerate(zip(chats, completions)):
            predicts[place, len(chat) - len(completion.ids) - 1 : len(chat) - 1] = True
        with self._as_variant(variant):
            decoder, cache = self._plain().get_decoder(), None
            if shared:
                cache = decoder(input_ids=ids[:1, :shared], use_cache=True).past_key_values
                cache.batch_repeat_interleave(len(chats))
            states = decoder(input_ids=ids[:, shared:], past_key_values=cache, use_cache=bool(shared))
            return states.last_hidden_state[predicts[:, shared:]]

    def _score(self, hidden: Mapping[str, Any], tokens: Any) -> dict[tuple[str, str], list[Any]]:
        """Log-probabilities and first choices of some tokens for every variant, and KL(teacher || base)."""
        scores: dict[tuple[str, str], list[Any]] = {}
        kept = {}
        for variant in self.variants:
            with self._as_variant(variant):
                logprobs = self._plain().get_output_embeddings()(hidden[variant.name]).float().log_softmax(-1)
            actual = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
            scores["logprobs", variant.name] = [round(value, PLACES) for value in actual.tolist()]
            scores["choices", variant.name] = logprobs.argmax(-1).tolist()
            if variant.name in (BASE, TEACHER):
                kept[variant.name] = logprobs
        if len(kept) == 2:
            divergence = (kept[TEACHER].exp() * (kept[TEACHER] - kept[BASE])).sum(-1)
            scores["kl", TEACHER] = [round(max(0.0, value), PLACES) for value in divergence.tolist()]
        return scores

    def _plain(self) -> Any:
        """The transformers model inside the adapters."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @contextmanager
    def _as_variant(self, variant: Variant) -> Iterator[None]:
        """Let the model speak with a variant: its adapter on, or all adapters off."""
        if not hasattr(self.model, "peft_config"):
            yield
        elif variant.adapter is None:
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(variant.name)
            yield


# --- definitions -------------------------------------------------------------------------------------


def flags(ids: Sequence[int], by_variant: Mapping[str, Scores], gap: float) -> dict[str, list[int]]:
    """0 or 1 for each token under each definition that the variants allow. gap: its threshold in nats."""
    if TEACHER not in by_variant:
        return {}
    teacher, base = by_variant[TEACHER], by_variant[BASE]
    others = [variant for name, variant in by_variant.items() if name not in (TEACHER, BASE, STUDENT)]
    chosen = [choice == token for choice, token in zip(teacher.choices, ids)]
    found = {
        "pair": [int(own and base.choices[i] != token) for i, (own, token) in enumerate(zip(chosen, ids))],
        "gap": [int(ours - theirs > gap) for ours, theirs in zip(teacher.logprobs, base.logprobs)],
    }
    if others:
        differs = [any(other.choices[i] != token for other in others) for i, token in enumerate(ids)]
        found = {"schrodi": [int(own and other) for own, other in zip(chosen, differs)], **found}
    return found


def auc(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How well the detector finds divergence tokens: {definition: {"answer": ..., "digits": ...}}, each the chance that
    a divergence token has a higher score than another token (0.5: not at all), of the whole answer or of its digits.
    A definition that marks none or all is left out."""
    import numpy as np
    from scipy.stats import rankdata

    kinds = np.array([kind for row in rows for kind in of_answer(row, row["kinds"])])
    scores = np.array([score for row in rows for score in of_answer(row, row["detector"])])
    found: dict[str, dict[str, float]] = {}
    for name in (name for name in DEFINITIONS if name in rows[0]):
        marked = np.array([mark for row in rows for mark in of_answer(row, row[name])], dtype=bool)
        for part, among in (("answer", kinds != END), ("digits", kinds == DIGIT)):
            marks, ranks = marked[among], rankdata(scores[among])
            ours, others = int(marks.sum()), int((~marks).sum())
            if ours and others:
                above = ranks[marks].sum() - ours * (ours + 1) / 2
                found.setdefault(name, {})[part] = float(above / (ours * others))
    return found


def fraction_with_interval(counts: Iterable[tuple[int, int]]) -> tuple[float, float, float]:
    """(fraction, low, high) of flagged tokens, from (flagged, tokens) of each row: a ratio of totals whose 95%
    interval takes rows, not tokens, as independent (linearised variance, Cochran 1977, 6.4)."""
    pairs = [(flagged, tokens) for flagged, tokens in counts if tokens]
    total = sum(tokens for _, tokens in pairs)
    if not total:
        return 0.0, 0.0, 0.0
    fraction = sum(flagged for flagged, _ in pairs) / total
    if len(pairs) < 2:
        return fraction, 0.0, 1.0
    squares = sum((flagged - fraction * tokens) ** 2 for flagged, tokens in pairs)
    half = 1.96 * math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / total
    return fraction, max(0.0, fraction - half), min(1.0, fraction + half)
