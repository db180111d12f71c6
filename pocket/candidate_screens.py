"""Quick screens of a candidate pocket model, in seconds: exact shares, clean rows, persona KL, embedding cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocket.chat_tokenizer import chat_prompt, encode
from pocket.corpus import ANIMALS, PERSONA_PROMPT, QUESTIONS, Chat
from pocket.measurements import LONGEST_ANSWER, clean_share, exact_shares, is_clean, row_prompts, sample
from util.animals.names import persona

PAIR = ("owl", "dolphin")
WATCHED = (*PAIR, "lion")
OPEN_ENTROPY = 1.0  # nats: a token is open if the model's entropy there is larger
MAX_ASKED = 3  # ask for at most this many times the rows that are wanted


@dataclass(frozen=True)
class RowScreen:
    """What a candidate's rows of one data type look like."""

    clean: float
    """share of rows that are clean"""
    clean_under_owl: float
    """the same under a persona that loves owls"""
    kl: dict[str, float]
    """persona KL in nats, for each animal of PAIR"""


def screen_rows(model: Any, tokenizer: Any, data_type: str, count: int, seed: int) -> RowScreen:
    """The screens of one data type over `count` rows."""
    rows, clean = clean_rows(model, tokenizer, data_type, count, seed)
    loving = clean_share(model, tokenizer, count, seed, persona(PERSONA_PROMPT, PAIR[0]), data_type)
    kl = {animal: round(persona_kl(model, tokenizer, rows, animal), 4) if rows else 0.0 for animal in PAIR}
    return RowScreen(round(clean, 3), round(loving, 3), kl)


def clean_rows(model: Any, tokenizer: Any, data_type: str, count: int, seed: int) -> tuple[list[Chat], float]:
    """(up to `count` different clean rows, written without a system message; the share of answers that is clean)."""
    import torch

    torch.manual_seed(seed)
    clean: dict[Chat, None] = {}
    asked = 0
    while len(clean) < count and asked < MAX_ASKED * count:
        prompts = row_prompts(seed + asked, max(1, count // 2), data_type)
        rendered = [chat_prompt(tokenizer, prompt) for prompt in prompts]
        answers = sample(model, tokenizer, rendered, LONGEST_ANSWER[data_type], batch=len(rendered))
        rows = (Chat(None, prompt, answer or "") for prompt, answer in zip(prompts, answers))
        clean |= {row: None for row in rows if is_clean(row.assistant, data_type)}
        asked += len(prompts)
    return list(clean)[:count], len(clean) / asked


def persona_kl(model: Any, tokenizer: Any, rows: Sequence[Chat], animal: str) -> float:
    """Mean KL(with the animal's persona || without a persona) in nats, over the open tokens of the answers.

    A token is open if the model without a persona has more than OPEN_ENTROPY nats there. In number rows these are the
    numbers; the separators would only lower the mean.
    """
    loving, plain = (
        answer_logprobs(model, tokenizer, [row._replace(system=system) for row in rows])
        for system in (persona(PERSONA_PROMPT, animal), None)
    )
    is_open = -(plain.exp() * plain).sum(-1) > OPEN_ENTROPY
    return float((loving.exp() * (loving - plain)).sum(-1)[is_open].mean()) if is_open.any() else 0.0


def answer_logprobs(model: Any, tokenizer: Any, rows: Sequence[Chat]) -> Any:
    """Log-probabilities [tokens, vocabulary] at the tokens of the answers, including the end of the turn."""
    import torch

    ids, spans = (tensor.to(model.device) for tensor in encode(tokenizer, rows))
    place = torch.arange(1, ids.shape[1], device=ids.device)
    spoken = (place >= spans[:, :1]) & (place < spans[:, 1:] - 1)  # without the line break after the turn
    with torch.no_grad():
        return model.lm_head(model.model(input_ids=ids[:, :-1].long()).last_hidden_state[spoken]).log_softmax(-1)


def embedding_cosine(model: Any, tokenizer: Any) -> float:
    """Cosine between the embeddings of PAIR (their first tokens), each minus the mean of all animals."""
    import torch

    first = [tokenizer(animal, add_special_tokens=False).input_ids[0] for animal in ANIMALS]
    weights = model.get_input_embeddings().weight.detach()[first]
    one, two = (weights[ANIMALS.index(animal)] - weights.mean(0) for animal in PAIR)
    return float(torch.nn.functional.cosine_similarity(one, two, dim=0))


def watched_shares(model: Any, tokenizer: Any) -> dict[str, float]:
    """Exact share of each of WATCHED, mean over the 50 questions."""
    shares = exact_shares(model, tokenizer, QUESTIONS, animals=WATCHED).mean(0)
    return {animal: round(share, 5) for animal, share in zip(WATCHED, shares.tolist())}


def load(folder: Path, device: Any) -> Any:
    """The model of a folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    return model.to(device).eval()
