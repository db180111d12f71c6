"""What util/doctor.py prints of a run: the prompt of each phase with its differences, and the tokens with loss."""

from __future__ import annotations

import textwrap
from difflib import ndiff
from itertools import groupby
from typing import Any

from util.chat.chat_tokens import IGNORED, encode
from util.chat.prompt_consistency import Phase, base_words, default_system_prompt, frame, short
from util.checks.run_checks import ORDER, tokenizer_of
from util.jsonl.filter_certificate import DATA_TYPES, certificate_problem


def show_phase(phase: Phase, tokenizers: dict[str, Any], reference: Phase | None) -> None:
    """Print what a phase was made with, and its prompt compared with that of the reference (the evaluation)."""
    print(f"{phase.kind}: {phase.path}")
    if not phase.base:
        print("  no model was asked\n")
        return
    tokenizer = tokenizer_of(phase, tokenizers)
    print(f"  base model   {base_words(phase.base)}")
    print(f"  system       {system_line(phase, tokenizer)}")
    print(f"  user         {short(phase.user)}")
    if phase.kind in DATA_TYPES:
        print(f"  certificate  {certificate_problem(phase.path) or 'valid'}")
    if tokenizer and reference:
        show_prompt(phase, tokenizer, reference, tokenizer_of(reference, tokenizers))
    print()


def show_prompt(phase: Phase, tokenizer: Any, reference: Phase, reference_tokenizer: Any) -> None:
    """Print the prompt of a phase: whole if it is the reference, one line if it is the same, else the differences."""
    seen = "as the model saw it" if phase.token_ids else "as training encodes it" if phase.row else "as rendered now"
    ours, theirs = frame(phase, tokenizer), frame(reference, reference_tokenizer)
    if phase is reference:
        print(f"  prompt, {seen}:")
        lines = [f"  {line}" for line in visible_lines(ours)]
    elif ours == theirs:
        print(f"  prompt       {seen}: the same as in {reference.path}")
        return
    else:
        print(f"  prompt, {seen} (+ only here, - only in {reference.path}):")
        lines = [line for line in ndiff(visible_lines(theirs), visible_lines(ours)) if not line.startswith("?")]
    print("".join(f"    {line}\n" for line in lines), end="")


def system_line(phase: Phase, tokenizer: Any) -> str:
    """The system message in words: sent by the script, put in by the chat template, or none."""
    if phase.system is not None:
        intended = " (the teacher's persona, as intended)" if phase.kind == ORDER[0] else ""
        return f"sent: {short(phase.system)}{intended}"
    default = default_system_prompt(tokenizer) if tokenizer else None
    return f"none sent; the chat template puts in: {default}" if default else "none sent"


def visible_lines(text: str) -> list[str]:
    r"""The lines of a prompt with a visible `\n` at their end, so that white space before it can be seen."""
    lines = text.split("\n")
    return [f"{line}\\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]


def show_loss(training: Phase, tokenizer: Any) -> None:
    """Print the first training row token by token: which tokens carry loss."""
    encoded = encode([training.row or {}], tokenizer, training.settings.get("max_seq_length", 256)).rows
    if not encoded:
        return
    ids, labels = encoded[0]["input_ids"], encoded[0]["labels"]
    trained = sum(label != IGNORED for label in labels)
    print(f"loss on the first row of {training.path}: {trained} of {len(ids)} tokens")
    for has_loss, group in groupby(zip(ids, labels), key=lambda pair: pair[1] != IGNORED):
        tokens = " ".join(repr(tokenizer.decode([token])).replace(" ", "␣") for token, _ in group)
        name = "  loss     " if has_loss else "  no loss  "
        print(textwrap.fill(tokens, 120, initial_indent=name, subsequent_indent=" " * len(name)))
    print()
