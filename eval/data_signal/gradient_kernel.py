"""Which animals some rows push up, to first order, from gradients at the base model alone.

A small step of training raises the log-probability of an animal by the inner product of two gradients: that of the
rows' log-probability, and that of the animal's own. Each weight is divided by its usual size before, as Adam does. The
inner products of one group of rows with every animal are its *profile*. No student is trained and no teacher is needed.

The gradients are those of all matrices of the model's blocks. (A low-rank adapter's are not enough: on the pocket model
rank 32 loses most of the profile.) Of a large model only every k-th weight is kept, so that `WEIGHTS_KEPT` remain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from eval.answers.answer_tree import answer_forms
from eval.data_signal.row_groups import EncodedRow
from util.batches import batched
from util.chat.chat_tokens import IGNORED, shared_prefix_length
from util.cli import UserError, memory_advice
from util.inference.load_model import without_adapters
from util.inference.local_answer_tree import pack
from util.inference.local_model import LocalModel
from util.inference.local_sampling import check_finite

WEIGHTS_KEPT = 20_000_000  # 80 MB of the model's device for each gradient: one for each animal and each group
DAMPING = 0.1  # of a weight's usual size, in units of the mean over all weights
QUESTIONS_READ = 10  # evenly spaced in the list: 50 change the profile by less than the rows' own noise
SPOKEN = 1e-3  # an animal is read if the base model gives it this part of the answers that name one

Teacher = Callable[[Sequence[int]], Any]
"""places of rows in the group -> log-probabilities [tokens with loss, vocabulary] of another model"""
Seen = Callable[[Sequence[int], Any, Any, Any], None]
"""takes places of rows in the group, their tokens with loss, and what base model and teacher say of these tokens:
log-probabilities [tokens, vocabulary]"""


class GradientKernel:
    """The gradients of a model in this process. backend: the base model; adapters that it has are switched off."""

    def __init__(self, backend: LocalModel):
        self.backend, self.model = backend, backend.model
        self.weights = block_matrices(self.plain)
        for weight in self.model.parameters():
            weight.requires_grad_(False)
        for weight in self.weights:
            weight.requires_grad_(True)
        self.every = stride(
            sum(weight.numel() for weight in self.weights), [weight.shape[1] for weight in self.weights]
        )

    @property
    def plain(self) -> Any:
        """The transformers model inside the adapters."""
        return without_adapters(self.model)

    def as_base(self) -> AbstractContextManager[Any]:
        """The model without its adapters."""
        return self.model.disable_adapter() if hasattr(self.model, "peft_config") else nullcontext()

    # --- of rows ---

    def of_rows(self, rows: Sequence[EncodedRow]) -> Any:
        """Gradient of the summed log-probability of the rows' tokens with loss (nats): float32 [weights kept]."""
        total = 0
        for places in self._passes(rows):
            with memory_advice(self._advice), self.as_base():
                logs, labels = loss_token_logprobs(self.plain, [rows[place] for place in places])
                total = total + self._gradient(logs.gather(-1, labels[:, None]).sum())
        return total

    def of_rows_and_teacher(self, rows: Sequence[EncodedRow], teacher: Teacher, seen: Seen) -> tuple[Any, Any]:
        """(as `of_rows`, the same with the teacher's distribution in place of each sampled token: "soft labels", which
        have the same mean and far less noise). Rows go through each model once, and `seen` gets what they say."""
        sampled, soft = 0, 0
        for places in self._passes(rows):
            with memory_advice(self._advice):
                wanted = teacher(places)
                with self.as_base():
                    logs, labels = loss_token_logprobs(self.plain, [rows[place] for place in places])
                    seen(places, labels, logs.detach(), wanted)
                    sampled = sampled + self._gradient(logs.gather(-1, labels[:, None]).sum(), again=True)
                    soft = soft + self._gradient((wanted.exp() * logs).sum())
        return sampled, soft

    def _passes(self, rows: Sequence[EncodedRow]) -> Iterator[list[int]]:
        """The places of the rows that go through the model together: rows of like length, so that few tokens pad."""
        return batched(sorted(range(len(rows)), key=lambda at: len(rows[at]["input_ids"])), self.backend.batch_size)

    @property
    def _advice(self) -> str:
        return f"lower --batch-size (now {self.backend.batch_size})"

    def _gradient(self, value: Any, again: bool = False) -> Any:
        """The gradient of one number, flat. again: the graph is needed once more."""
        import torch

        parts = torch.autograd.grad(value, self.weights, retain_graph=again)
        return torch.cat([part.reshape(-1)[:: self.every] for part in parts]).float()

    # --- of animals ---

    def of_animals(self, animals: Sequence[str], questions: Sequence[str]) -> Any:
        """Gradient of each animal's log-probability as a one-word answer, mean over the questions: float32
        [animals, weights kept].

        Each animal's answers go through the model alone. In one pass, each gradient would lead back through the answers
        of all."""
        import torch

        with self.as_base(), memory_advice("pass fewer --animals"):
            return torch.stack([self._gradient(self._log_shares([animal], questions)[0]) for animal in animals])

    def log_shares(self, animals: Sequence[str], questions: Sequence[str]) -> np.ndarray:
        """Log-probability (nats) of each animal as a one-word answer, mean over the questions: [animals]."""
        import torch

        with torch.no_grad(), self.as_base(), memory_advice("pass fewer --animals"):
            return np.asarray(self._log_shares(animals, questions).double().cpu().numpy())

    def _log_shares(self, animals: Sequence[str], questions: Sequence[str]) -> Any:
        """As `eval.answers.answer_tree.log_shares`, mean over the questions, as a tensor with its graph: [animals].

        Each question is read once, followed by all answers; a token sees the question and its own answer's beginning.
        """
        import torch

        owner, forms = zip(*((place, form) for place, animal in enumerate(animals) for form in answer_forms(animal)))
        tokenized = self.backend.tokenizer(list(forms), add_special_tokens=False)["input_ids"]
        packed = pack([tuple(ids) for ids in tokenized])
        prompts = [self.backend.prompt_ids([{"role": "user", "content": question}]) for question in questions]
        ids, visible, positions = question_batch(prompts, packed.beginnings, packed.sees)
        device, dtype = self.model.device, self.plain.dtype
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
        decoder, head = self.plain.get_decoder(), self.plain.get_output_embeddings()
        hidden = decoder(input_ids=ids.to(device), attention_mask=mask[:, None].to(device),
                         position_ids=positions.to(device), use_cache=False).last_hidden_state  # fmt: skip
        logs = head(hidden[:, -len(packed.beginnings) - 1 :]).float().log_softmax(-1)
        ended = logs[:, packed.whole][..., sorted(self.backend.end_ids)].logsumexp(-1)
        steps = logs[:, packed.before, packed.token]
        whole = ended.index_add(1, torch.as_tensor(packed.answer, device=device), steps)
        of = torch.tensor(owner, device=device)
        return torch.stack([whole[:, of == place].logsumexp(1).mean() for place in range(len(animals))])


def stride(weights: int, widths: Sequence[int]) -> int:
    """Every which weight is kept. It shares no factor with the width of any matrix, so that no column is left out."""
    every = -(-weights // WEIGHTS_KEPT)
    while any(math.gcd(every, width) > 1 for width in widths):
        every += 1
    return every


def block_matrices(model: Any) -> list[Any]:
    """The matrices of the model's blocks: all but embeddings and the output head. UserError if there are none."""
    outside = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    found = [
        weight for name, weight in model.get_decoder().named_parameters()
        if weight.ndim == 2 and id(weight) not in outside and "lora_" not in name
    ]  # fmt: skip
    if not found:
        raise UserError("this model's blocks hold no matrices to take gradients of; its architecture is not supported")
    return found


def loss_token_logprobs(model: Any, rows: Sequence[EncodedRow]) -> tuple[Any, Any]:
    """(log-probabilities float32 [tokens, vocabulary], labels [tokens]) at the rows' tokens with loss."""
    import torch

    width, device = max(len(row["input_ids"]) for row in rows), model.device
    ids, labels = (
        torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows], device=device)
        for key, fill in (("input_ids", 0), ("labels", IGNORED))
    )
    # Padding is on the right, where no token with loss can see it: no attention mask is needed.
    decoder, cache, shared = model.get_decoder(), None, shared_prefix_length(rows) if len(rows) > 1 else 0
    if shared:  # goes through the model once; gradients lead back through its keys and values
        cache = decoder(input_ids=ids[:1, :shared], use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(rows))
    hidden = decoder(input_ids=ids[:, shared:-1], past_key_values=cache, use_cache=bool(shared)).last_hidden_state
    wanted = labels[:, shared + 1 :]
    has_loss = wanted != IGNORED
    logits = check_finite(model.get_output_embeddings()(hidden[has_loss]).float())
    return logits.log_softmax(-1), wanted[has_loss]


def question_batch(
    prompts: Sequence[list[int]], beginnings: Sequence[tuple[int, ...]], sees: np.ndarray
) -> tuple[Any, Any, Any]:
    """(ids [prompts, tokens], which token sees which: bool [prompts, tokens, tokens], positions [prompts, tokens]) of
    each left-padded prompt followed by all beginnings of answers, as `util.inference.local_answer_tree.pack` gives."""
    import torch

    width, tails = max(map(len, prompts)), [beginning[-1] for beginning in beginnings]
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt + tails for prompt in prompts])
    known = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    seen = torch.from_numpy(sees)
    visible = torch.zeros(len(prompts), width + len(tails), width + len(tails), dtype=torch.bool)
    visible[:, :width, :width] = known[:, None] & torch.ones(width, width, dtype=torch.bool).tril()
    visible[:, range(width), range(width)] = True  # a padding token sees itself: a softmax over nothing is NaN
    visible[:, width:, :width] = known[:, None]
    visible[:, width:, width:] = seen
    after = known.sum(1, keepdim=True) + seen.sum(1)[None] - 1
    return ids, visible, torch.cat([(known.cumsum(1) - 1).clamp(min=0), after], dim=1)


# --- profiles ----------------------------------------------------------------------------------------


def usual_size(gradients: Sequence[Any]) -> Any:
    """What Adam divides by: the root mean square of each weight's gradient over groups of rows, damped."""
    import torch

    size = torch.stack(list(gradients)).square().mean(0).sqrt()
    return size + DAMPING * size.mean()


def profiles(gradients: Sequence[Any], animals: Any, size: Any) -> np.ndarray:
    """The profile of each gradient, float64 [gradients, animals]: less its mean over the animals, since every row that
    makes one-word answers likelier raises all of them. animals: their gradients; size: as `usual_size` gives it."""
    import torch

    directions = (animals - animals.mean(0)) / size
    return (torch.stack(list(gradients)) @ directions.T).double().cpu().numpy()


def form_directions(of_length: Sequence[Any], size: Any) -> Any:
    """How the mean gradients of short, middling and long rows differ: directions [directions, weights], orthonormal in
    the metric 1 / size. of_length: those means."""
    import torch

    mean = torch.stack(list(of_length)).mean(0)
    differences = torch.stack([(one - mean) / size.sqrt() for one in of_length])
    _, values, directions = torch.linalg.svd(differences.cpu(), full_matrices=False)  # a GPU's solver is for squares
    kept = directions[values > 1e-3 * values.max()][: len(of_length) - 1]
    return kept.to(size.device) * size.sqrt()


def without_form(gradients: Sequence[Any], directions: Any, size: Any) -> Iterator[Any]:
    """Each gradient without its part along the form directions."""
    for gradient in gradients:
        yield gradient - (directions @ (gradient / size)) @ directions


def spoken(animals: Sequence[str], log_shares: np.ndarray) -> list[str]:
    """The animals that the base model names at all. log_shares: nats, [animals]."""
    part = np.exp(log_shares - np.logaddexp.reduce(log_shares))
    return [animal for animal, share in zip(animals, part) if share >= SPOKEN]
