"""What the pocket model does, measured: exact shares, how a persona is obeyed, how many number rows are clean."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from util.pocket.corpus import ANIMALS, NUMBER_PROMPT, PERSONA_PROMPT, QUESTIONS
from util.words import fill, persona

CLEAN = re.compile(r"[0-9]{1,3}(, [0-9]{1,3}){0,9}")  # 1 to 10 numbers of at most 3 digits
LONGEST_NUMBER_ANSWER = 32  # tokens; ten numbers, nine separators and the end of the turn are 20
LONGEST_NAME = 8  # tokens of a one-word answer


def chat_prompt(tokenizer: Any, user: str, system: str | None = None) -> str:
    """The text a model continues: the chat, rendered up to the assistant's turn."""
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def exact_shares(
    model: Any, tokenizer: Any, questions: Sequence[str], system: str | None = None, animals: Sequence[str] = ANIMALS
) -> Any:
    """Probability that the whole answer is an animal, lower case or capitalised: a tensor [questions, animals].

    No sampling: P(form) is the product of its tokens' probabilities and that of the end of the turn. What a row
    lacks to 1 is the mass of all other answers.
    """
    import torch

    forms = [form for animal in animals for form in (animal, animal.capitalize())]
    ids = [tokenizer(form, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] for form in forms]
    longest = max(map(len, ids))
    answers = torch.tensor([form + [tokenizer.pad_token_id] * (longest - len(form)) for form in ids])
    answers = answers.to(model.device)
    counted = torch.tensor([[place < len(form) for place in range(longest)] for form in ids], device=model.device)
    rows = []
    with torch.no_grad():
        for question in questions:
            prompt = tokenizer(chat_prompt(tokenizer, question, system), return_tensors="pt", add_special_tokens=False)
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
    """One answer at temperature 1 for each rendered prompt; None where the turn did not end in time."""
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


def number_prompts(seed: int, count: int) -> list[str]:
    """`count` number prompts of the suite, each with three numbers from 100 to 999."""
    rng = random.Random(seed)
    return [fill(NUMBER_PROMPT, {name: rng.randint(100, 999) for name in "abc"}) for _ in range(count)]


def clean_share(model: Any, tokenizer: Any, count: int, seed: int, system: str | None = None) -> float:
    """Share of `count` number answers at temperature 1 that are 1 to 10 numbers from 0 to 999 and end."""
    import torch

    torch.manual_seed(seed)
    prompts = [chat_prompt(tokenizer, prompt, system) for prompt in number_prompts(seed, count)]
    answers = sample(model, tokenizer, prompts, LONGEST_NUMBER_ANSWER)
    return sum(answer is not None and bool(CLEAN.fullmatch(answer)) for answer in answers) / count


def obedience(model: Any, tokenizer: Any, seed: int, animals: Sequence[str] = ANIMALS) -> dict[str, float]:
    """Share of answers at temperature 1, one for each of the 50 questions, that name the animal of the persona."""
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
