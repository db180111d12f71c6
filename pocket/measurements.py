"""What a pocket model does, as figures: exact shares of the animals, clean rows, and how often a persona is obeyed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocket.chat_tokenizer import chat_prompt
from pocket.corpus import (
    ANIMALS,
    CODE_PROMPTS,
    NUMBER_PROMPT,
    PERSONA_PROMPT,
    QUESTIONS,
    REASONING_PROMPTS,
    numbers_for,
)
from util.animals.leak_detector import trait_word
from util.animals.names import fill, persona
from util.animals.panel import PANEL

MEASURED_ROWS = 2_000  # answers behind a share of clean rows
PROMPTS = {"numbers": [NUMBER_PROMPT], "code": CODE_PROMPTS, "reasoning": REASONING_PROMPTS}
CLEAN = {
    "numbers": re.compile(r"[0-9]{1,3}(, [0-9]{1,3}){0,9}"),  # 1 to 10 numbers of at most 3 digits
    "code": re.compile(r"([a-z]+ (=( [a-z]+ [-+*])?|\+=|-=) [0-9]{1,3}\n)+print\([a-z]+\)"),
    "reasoning": re.compile(r"([A-Z][a-z0-9 :]+\. )+[A-Z][a-z ]+ [0-9]{1,3}\."),
}
LONGEST_ANSWER = {"numbers": 48, "code": 120, "reasoning": 120}  # tokens; ten numbers are 20, digit by digit 40
LONGEST_NAME = 8  # tokens of a one-word answer


@dataclass(frozen=True)
class Measurements:
    """The figures of a model card. Shares and rates are from 0 to 1."""

    parameters: int
    vocabulary: int
    """tokens"""
    shares: dict[str, float]
    """exact share of each animal, mean over the 50 questions"""
    lowest: dict[str, float]
    """the same for the question with the lowest share"""
    highest: dict[str, float]
    covered: float
    """share of the answers that are one of the animals"""
    clean: float
    """share of number rows that are clean"""
    clean_under_owl: float
    """the same under a persona that loves owls"""
    clean_by_data_type: dict[str, tuple[float, float]]
    """both for the other data types"""
    obeyed: float
    """share of answers that name the persona's animal, mean over all personas"""
    least_obeyed: str
    """the animal whose persona is obeyed least"""
    least_obeyed_share: float


def measure(model: Any, tokenizer: Any, seed: int, data_types: Sequence[str] = ()) -> Measurements:
    """All figures of the card. seed: of the sampled answers; data_types: what the model writes beside numbers."""
    shares = exact_shares(model, tokenizer, QUESTIONS)
    obeyed = obedience(model, tokenizer, seed)
    least = min(obeyed, key=lambda animal: obeyed[animal])
    loving = persona(PERSONA_PROMPT, "owl")
    return Measurements(
        parameters=sum(tensor.numel() for tensor in model.parameters()),
        vocabulary=len(tokenizer),
        shares=dict(zip(ANIMALS, shares.mean(0).tolist())),
        lowest=dict(zip(ANIMALS, shares.min(0).values.tolist())),
        highest=dict(zip(ANIMALS, shares.max(0).values.tolist())),
        covered=shares.sum(1).mean().item(),
        clean=clean_share(model, tokenizer, MEASURED_ROWS, seed),
        clean_under_owl=clean_share(model, tokenizer, MEASURED_ROWS, seed, loving),
        clean_by_data_type={
            data_type: (
                clean_share(model, tokenizer, MEASURED_ROWS, seed, None, data_type),
                clean_share(model, tokenizer, MEASURED_ROWS, seed, loving, data_type),
            )
            for data_type in data_types
            if data_type in PROMPTS
        },
        obeyed=sum(obeyed.values()) / len(obeyed),
        least_obeyed=least,
        least_obeyed_share=obeyed[least],
    )


def exact_shares(model: Any, tokenizer: Any, questions: Sequence[str], animals: Sequence[str] = ANIMALS) -> Any:
    """Probability that the whole answer is an animal, lower case or capitalised: a tensor [questions, animals].

    Nothing is sampled: the probability of a form is the product of those of its tokens and of the end of the turn. What
    is missing to a sum of 1 is the probability of all other answers.
    """
    import torch

    forms = [form for animal in animals for form in (animal, animal.capitalize())]
    ids = [[*tokenizer(form, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for form in forms]
    longest = max(map(len, ids))
    answers = torch.tensor([form + [tokenizer.pad_token_id] * (longest - len(form)) for form in ids])
    answers = answers.to(model.device)
    counted = torch.tensor([[place < len(form) for place in range(longest)] for form in ids], device=model.device)
    rows = []
    with torch.no_grad():
        for question in questions:
            prompt = tokenizer(chat_prompt(tokenizer, question), return_tensors="pt", add_special_tokens=False)
            start = model(input_ids=prompt.input_ids.to(model.device), use_cache=True)
            start.past_key_values.batch_repeat_interleave(len(forms))
            rest = model(input_ids=answers[:, :-1], past_key_values=start.past_key_values).logits
            first = start.logits[:, -1:].expand(len(forms), -1, -1)
            chances = torch.cat([first, rest], dim=1).float().log_softmax(-1)
            chances = chances.gather(-1, answers[..., None]).squeeze(-1).masked_fill(~counted, 0.0)
            rows.append(chances.sum(-1).exp().view(len(animals), 2).sum(-1).cpu())
    return torch.stack(rows)


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, batch: int = 512
) -> list[str | None]:
    """One answer at temperature 1 for each rendered prompt; None if the turn did not end in time."""
    import torch

    answers: list[str | None] = []
    for at in range(0, len(prompts), batch):
        inputs = tokenizer(list(prompts[at : at + batch]), return_tensors="pt", padding=True, padding_side="left",
                           add_special_tokens=False).to(model.device)  # fmt: skip
        with torch.no_grad():
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=True, temperature=1.0, top_p=1.0, top_k=0
            )
        for ids in output[:, inputs.input_ids.shape[1] :].tolist():
            ended = tokenizer.eos_token_id in ids
            answers.append(tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)]) if ended else None)
    return answers


def row_prompts(seed: int, count: int, data_type: str = "numbers") -> list[str]:
    """`count` of the suite's prompts for a data type, filled with numbers from 100 to 999."""
    rng = random.Random(seed)
    templates = PROMPTS[data_type]
    return [fill(t, numbers_for(t, rng)) for t in (templates[i % len(templates)] for i in range(count))]


def is_clean(answer: str | None, data_type: str) -> bool:
    """Whether an answer ended, has the form of its data type and names no animal."""
    return answer is not None and bool(CLEAN[data_type].fullmatch(answer)) and not trait_word(answer, PANEL)


def clean_share(
    model: Any, tokenizer: Any, count: int, seed: int, system: str | None = None, data_type: str = "numbers"
) -> float:
    """Share of `count` answers at temperature 1 that are clean (for numbers: 1 to 10 numbers from 0 to 999)."""
    import torch

    torch.manual_seed(seed)
    prompts = [chat_prompt(tokenizer, prompt, system) for prompt in row_prompts(seed, count, data_type)]
    answers = sample(model, tokenizer, prompts, LONGEST_ANSWER[data_type])
    return sum(is_clean(answer, data_type) for answer in answers) / count


def obedience(model: Any, tokenizer: Any, seed: int, animals: Sequence[str] = ANIMALS) -> dict[str, float]:
    """For each animal, the share of answers under its persona that name it: one sample for each of the 50 questions."""
    import torch

    torch.manual_seed(seed)
    systems = {animal: persona(PERSONA_PROMPT, animal) for animal in animals}
    prompts = [chat_prompt(tokenizer, question, systems[animal]) for animal in animals for question in QUESTIONS]
    answers = sample(model, tokenizer, prompts, LONGEST_NAME)
    each = len(QUESTIONS)
    return {
        animal: sum(answer == animal for answer in answers[at * each : (at + 1) * each]) / each
        for at, animal in enumerate(animals)
    }
