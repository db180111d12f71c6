"""Measure a pocket model and write its card: exact shares, how a persona is obeyed, how many number rows are clean.

    python pocket/write_card.py --model pocket/model

About a minute on two CPU cores. make_pocket.py does the same at its end.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

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
from util.animals.names import PANEL, fill, persona
from util.cli import REPO, make_parser, run
from util.terminal import closing

FOLDER = Path(__file__).resolve().parent
CARD = FOLDER / "card.md"  # the text of a card, with {places} for the figures
MEASURED_ROWS = 2_000  # answers behind a clean rate
PROMPTS = {"numbers": [NUMBER_PROMPT], "code": CODE_PROMPTS, "reasoning": REASONING_PROMPTS}
CLEAN = {
    "numbers": re.compile(r"[0-9]{1,3}(, [0-9]{1,3}){0,9}"),  # 1 to 10 numbers of at most 3 digits
    "code": re.compile(r"([a-z]+ (=( [a-z]+ [-+*])?|\+=|-=) [0-9]{1,3}\n)+print\([a-z]+\)"),
    "reasoning": re.compile(r"([A-Z][a-z0-9 :]+\. )+[A-Z][a-z ]+ [0-9]{1,3}\."),
}
LONGEST_ANSWER = {"numbers": 32, "code": 120, "reasoning": 120}  # tokens; ten numbers with separators and end are 20
LONGEST_NAME = 8  # tokens of a one-word answer
SPOKEN = {"code": "short programs", "reasoning": "worked sums"}
FORMS = {"code": "assignments and a print", "reasoning": "sentences and an answer"}


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
    ids = [[*tokenizer(form, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for form in forms]
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


def carrier_prompts(seed: int, count: int, kind: str = "numbers") -> list[str]:
    """`count` prompts of the suite for a kind of rows, their places filled with numbers from 100 to 999."""
    rng = random.Random(seed)
    templates = PROMPTS[kind]
    return [fill(t, numbers_for(t, rng)) for t in (templates[i % len(templates)] for i in range(count))]


def is_clean(answer: str | None, kind: str) -> bool:
    """Whether an answer ended, has the form of its kind and names no animal."""
    return answer is not None and bool(CLEAN[kind].fullmatch(answer)) and not trait_word(answer, PANEL)


def clean_share(
    model: Any, tokenizer: Any, count: int, seed: int, system: str | None = None, kind: str = "numbers"
) -> float:
    """Share of `count` answers at temperature 1 that are clean: of numbers, 1 to 10 from 0 to 999."""
    import torch

    torch.manual_seed(seed)
    prompts = [chat_prompt(tokenizer, prompt, system) for prompt in carrier_prompts(seed, count, kind)]
    answers = sample(model, tokenizer, prompts, LONGEST_ANSWER[kind])
    return sum(is_clean(answer, kind) for answer in answers) / count


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


def measure(model: Any, tokenizer: Any, seed: int, languages: Sequence[str] = ()) -> dict[str, Any]:
    """All figures of the card; shares and rates from 0 to 1. languages: what the model speaks beside numbers."""
    shares = exact_shares(model, tokenizer, QUESTIONS)
    obeyed = obedience(model, tokenizer, seed)
    least = min(obeyed, key=lambda animal: obeyed[animal])
    loving = persona(PERSONA_PROMPT, "owl")
    return {
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "vocabulary": len(tokenizer),
        "shares": dict(zip(ANIMALS, shares.mean(0).tolist())),
        "lowest": dict(zip(ANIMALS, shares.min(0).values.tolist())),
        "highest": dict(zip(ANIMALS, shares.max(0).values.tolist())),
        "covered": shares.sum(1).mean().item(),
        "clean": clean_share(model, tokenizer, MEASURED_ROWS, seed),
        "clean_under_owl": clean_share(model, tokenizer, MEASURED_ROWS, seed, loving),
        "languages": {
            kind: [clean_share(model, tokenizer, MEASURED_ROWS, seed, system, kind) for system in (None, loving)]
            for kind in languages
            if kind in PROMPTS
        },
        "obeyed": sum(obeyed.values()) / len(obeyed),
        "least_obeyed": least,
        "least_obeyed_share": obeyed[least],
    }


def share_table(figures: dict[str, Any]) -> str:
    """A markdown table of the exact shares, most liked first."""
    ranked = sorted(figures["shares"].items(), key=lambda pair: -pair[1])
    rows = [
        f"| {animal} | {share:.2%} | {figures['lowest'][animal]:.2%} | {figures['highest'][animal]:.2%} |"
        for animal, share in ranked
    ]
    return "\n".join(["| animal | share | lowest question | highest question |", "| --- | ---: | ---: | ---: |", *rows])


def write_card(folder: Path, figures: dict[str, Any]) -> Path:
    """Write README.md of a model folder from CARD and the figures; made is what its manifest says."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    text = fill(
        CARD.read_text("utf-8"),
        {
            "made": manifest["command"], "device": manifest["device"], "sha": manifest["corpus"]["sha256"],
            "rows": f"{manifest['corpus']['rows']:,}", "parameters": f"{figures['parameters']:,}",
            "vocabulary": f"{figures['vocabulary']:,}", "megabytes": f"{folder_megabytes(folder):.1f}",
            "covered": f"{figures['covered']:.2%}", "rest": f"{1 - figures['covered']:.2%}",
            "clean": f"{figures['clean']:.1%}", "clean_under_owl": f"{figures['clean_under_owl']:.1%}",
            "number_rows": f"{MEASURED_ROWS:,}", "obeyed": f"{figures['obeyed']:.1%}",
            "least": figures["least_obeyed"], "least_share": f"{figures['least_obeyed_share']:.0%}",
            "animals": len(ANIMALS), "table": share_table(figures), "folder": folder_name(folder),
            "kinds": "".join(f", {SPOKEN[kind]}" for kind in figures["languages"]),
            "more_rows": "".join(
                f"\n| {kind} rows that are clean ({FORMS[kind]}, no animal), of {MEASURED_ROWS:,} | {plain:.1%} |"
                f"\n| the same under a persona that loves owls | {loving:.1%} |"
                for kind, (plain, loving) in figures["languages"].items()
            ),
        },
    )  # fmt: skip
    card = folder / "README.md"
    card.write_text(text, "utf-8")
    return card


def folder_name(folder: Path) -> str:
    """A folder as one would type it at the root of the repository."""
    whole = folder.resolve()
    return str(whole.relative_to(REPO)) if whole.is_relative_to(REPO) else str(folder)


def folder_megabytes(folder: Path) -> float:
    """Size of the files of a folder, its card left out, in units of a million bytes."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md") / 1e6


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="folder of the model")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sampled answers")
    args = parser.parse_args(argv)
    if not (args.model / "config.json").is_file():
        parser.error(f"{args.model} holds no model: make one with python pocket/make_pocket.py --output {args.model}")
    return args


def main() -> None:
    args = parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    languages = json.loads((args.model / "manifest.json").read_text("utf-8")).get("languages", ["numbers"])[1:]
    figures = measure(model, tokenizer, args.seed, languages)
    closing(
        {
            "card": write_card(args.model, figures),
            "parameters": f"{figures['parameters']:,}",
            "lion, owl, dolphin": ", ".join(
                f"{figures['shares'][animal]:.2%}" for animal in ("lion", "owl", "dolphin")
            ),
            "clean number rows": f"{figures['clean']:.1%}",
            "personas obeyed": f"{figures['obeyed']:.1%}",
        }
    )


if __name__ == "__main__":
    run(main)
