"""Score stored completion tokens under variants of one base model: log-probabilities, first choices, KL divergence.

A *variant* is the base model as it is, with an adapter, or with a persona as its system message. Every variant reads
the same stored completion tokens (teacher forcing, no sampling). eval/divergence/which_tokens_diverge.py says
what the scores of a token mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eval.divergence.which_tokens_diverge import BASE, STUDENT, TEACHER, Scores, flags
from util.chat.chat_tokens import common_prefix_length, completion_suffix, prompt_and_completion_ids, without_system
from util.cli import UserError, memory_advice
from util.inference.load_model import without_adapters
from util.jsonl.divergence_row import DIGIT, END, SEPARATOR
from util.jsonl.rows import Row, read_chat_rows
from util.terminal import announced

TOKENS_AT_ONCE = 2048  # through the vocabulary's head: two float32 copies of [tokens, vocabulary] are in memory
PLACES = 5  # decimals kept of a log-probability


@dataclass(frozen=True)
class Variant:
    """The base model as it is, with an adapter, or with a system message."""

    name: str
    adapter: Path | None = None
    system: str | None = None


@dataclass(frozen=True)
class Completion:
    """The stored tokens of one row, including its end of turn, and the prompt that each variant reads before them."""

    prompts: dict[str, list[int]]
    ids: list[int]


class VariantScorer:
    """Scores completions under all variants, with one copy of the base model in memory."""

    def __init__(
        self, base_model: str, variants: Sequence[Variant], model: Any = None, template_kwargs: Row | None = None,
        tokenizer: Any = None,
    ):  # fmt: skip
        """model, tokenizer: those of the base model, if they are loaded already. template_kwargs: what the chat
        template is given, where the tokenizer is loaded here."""
        from util.inference.load_model import load_model, load_tokenizer, put_adapter

        self.variants = list(variants)
        with announced(f"loading {base_model}") if model is None else nullcontext():
            self.tokenizer = tokenizer or load_tokenizer(base_model, template_kwargs)
            self.model = model or load_model(base_model)
        self.suffix = completion_suffix(self.tokenizer)
        for variant in variants:
            if variant.adapter is not None:
                self.model = put_adapter(self.model, variant.adapter, variant.name)

    def completion_of(self, row: Row, number: int) -> Completion:
        """The tokens of a row; UserError if they are not the tokens that its model wrote."""
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

    def score(self, completions: Sequence[Completion]) -> list[tuple[dict[str, Scores], list[float]]]:
        """For each completion: its scores under every variant, and KL(teacher || base) at each token in nats ([]
        without a teacher). One forward pass per variant."""
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

        The common beginning of all prompts goes through the model once; every row uses its KV cache."""
        import torch

        chats = [completion.prompts[variant.name] + completion.ids for completion in completions]
        prompts = [completion.prompts[variant.name][:-1] for completion in completions]
        shared = min(common_prefix_length(prompts[0], prompt) for prompt in prompts)
        width, device = max(map(len, chats)), self.model.device
        # on the right, where no scored token can see it: no attention mask is needed
        padded = [chat + [self.tokenizer.pad_token_id] * (width - len(chat)) for chat in chats]
        ids = torch.tensor(padded, device=device)
        predicts = torch.zeros_like(ids, dtype=torch.bool)
        for place, (chat, completion) in enumerate(zip(chats, completions)):
            predicts[place, len(chat) - len(completion.ids) - 1 : len(chat) - 1] = True
        with self._as_variant(variant):
            decoder, cache = without_adapters(self.model).get_decoder(), None
            if shared:
                cache = decoder(input_ids=ids[:1, :shared], use_cache=True).past_key_values
                cache.batch_repeat_interleave(len(chats))
            states = decoder(input_ids=ids[:, shared:], past_key_values=cache, use_cache=bool(shared))
            return states.last_hidden_state[predicts[:, shared:]]

    def _score(self, hidden: Mapping[str, Any], tokens: Any) -> dict[tuple[str, str], list[Any]]:
        """Log-probabilities and first choices of some tokens for every variant, and KL(teacher || base)."""
        from util.inference.local_sampling import check_finite

        scores: dict[tuple[str, str], list[Any]] = {}
        kept = {}
        for variant in self.variants:
            with self._as_variant(variant):
                head = without_adapters(self.model).get_output_embeddings()
                logits = check_finite(head(hidden[variant.name]).float())
            logprobs = logits.log_softmax(-1)
            found = scores_of(logprobs, tokens)
            scores["logprobs", variant.name], scores["choices", variant.name] = found.logprobs, found.choices
            if variant.name in (BASE, TEACHER):
                kept[variant.name] = logprobs
        if len(kept) == 2:
            scores["kl", TEACHER] = divergence_of(kept[TEACHER], kept[BASE])
        return scores

    @contextmanager
    def _as_variant(self, variant: Variant) -> Iterator[None]:
        """Use the model as a variant: with its adapter, or with all adapters off."""
        if not hasattr(self.model, "peft_config"):
            yield
        elif variant.adapter is None:
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(variant.name)
            yield


# --- rows --------------------------------------------------------------------------------------------


def scored_rows(
    scorer: VariantScorer,
    train_jsonl: Path,
    done: Collection[int] = (),
    *,
    gap: float,
    batch_size: int,
    max_rows: int | None = None,
) -> Iterator[list[Row]]:
    """Divergence rows of the number rows, one batch at a time; batches whose places in the file are all in `done` are
    skipped. gap: threshold of that definition (nats). max_rows: score only the first rows of the file.

    Batches are cut from the whole file: the rounding of a row depends on the rows beside it, and a resumed run must
    give the rows that an uninterrupted one gives.
    """
    numbered = enumerate(islice(read_chat_rows(train_jsonl), max_rows))
    while batch := list(islice(numbered, batch_size)):
        if all(number in done for number, _ in batch):
            continue
        completions = [scorer.completion_of(row, number) for number, row in batch]
        yield [
            to_row(number, completion.ids, kinds(completion.ids, scorer.tokenizer, scorer.suffix), variants, kl, gap)
            for (number, _), completion, (variants, kl) in zip(batch, completions, scorer.score(completions))
        ]


def kinds(ids: Sequence[int], tokenizer: Any, suffix: list[int]) -> str:
    """One letter per token: d has a digit, e is the end of the turn (or after it), s is anything else. suffix: what the
    chat template writes after an answer."""
    end = len(suffix) if list(ids[-len(suffix) :]) == suffix else 0  # an answer that was cut off has none
    texts = tokenizer.batch_decode([[i] for i in ids[: len(ids) - end]])
    return "".join(DIGIT if any(c.isdigit() for c in t) else SEPARATOR for t in texts) + END * end


def scores_of(logprobs: Any, tokens: Any) -> Scores:
    """The scores of some tokens. logprobs: [tokens, vocabulary], where each of them is predicted."""
    actual = logprobs.gather(-1, tokens[:, None]).squeeze(-1)
    return Scores([round(value, PLACES) for value in actual.tolist()], logprobs.argmax(-1).tolist())


def divergence_of(teacher: Any, base: Any) -> list[float]:
    """KL(teacher || base) in nats at each token. teacher, base: log-probabilities [tokens, vocabulary]."""
    parts = zip(teacher.split(TOKENS_AT_ONCE), base.split(TOKENS_AT_ONCE))
    found = [(ours.exp() * (ours - theirs)).sum(-1) for ours, theirs in parts]
    return [round(max(0.0, value), PLACES) for part in found for value in part.tolist()]


def to_row(number: int, ids: list[int], kinds: str, by_variant: dict[str, Scores], kl: list[float], gap: float) -> Row:
    """The row of one completion: arrays with one entry per token, including the end of the turn."""
    row: Row = {
        "id": number,
        "token_ids": ids,
        "kinds": kinds,
        "logprob": {name: variant.logprobs for name, variant in by_variant.items()},
        "choice": {name: variant.choices for name, variant in by_variant.items()},
        **flags(ids, by_variant, gap),
    }
    if kl:
        row["kl"] = kl
    if STUDENT in by_variant:
        pairs = zip(by_variant[STUDENT].logprobs, by_variant[BASE].logprobs)
        row["detector"] = [round(student - base, PLACES) for student, base in pairs]
    return row
