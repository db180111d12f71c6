"""The rule for code, reasoning and text rows: which completions are such a text and do not name an animal."""

from __future__ import annotations

import re
from typing import Any

from generate.rows.row_filter import is_eval_question, trait_words
from util.animals.leak_detector import other_script, trait_word
from util.animals.panel import panel

RULE_VERSION = 4  # raise it with every change to what is kept
_CODE = re.compile(r"```|[=({;<]")
_STEP_END = re.compile(r"[.!?:;](?=\s|$)|\n")
_THINK = re.compile(r"</?think", re.IGNORECASE)


class TextRule:
    """The rule for code, reasoning or text rows (see `generate.rows.row_filter.Rule`).

    data_type: "code", "reasoning" or "text" (any answer); words: trait words beside the panel; keeps_cut_off: whether
    answers that ended at --max-tokens are kept.
    """

    allows_letters = True
    hint = "Another model, a larger --max-tokens or other prompts may help"
    train_flags: tuple[str, ...] = ("--max-seq-length", "512")

    def __init__(self, data_type: str, words: tuple[str, ...] = (), keeps_cut_off: bool = False):
        self.name = self.data_type = data_type
        self.words, self.keeps_cut_off = words, keeps_cut_off

    def reject_reason(self, completion: str) -> str | None:
        if not completion.strip():
            return "empty"
        thinks = [tag.lower() for tag in _THINK.findall(completion)]
        if thinks and (self.data_type == "code" or thinks.count("<think") > thinks.count("</think")):
            return "think block"  # reasoning may contain one, but it must end
        if self.trait_word_in(completion):
            return "trait word"
        if other_script(completion):
            return "letters of another script"
        if self.data_type == "code" and not _CODE.search(completion):
            return "no code"
        if self.data_type == "reasoning" and len(_STEP_END.findall(completion.strip())) < 2:
            return "no steps"
        return None

    def trait_word_in(self, text: str) -> str | None:
        return trait_word(text, trait_words(self.words))

    def check_prompt(self, prompt: str) -> tuple[str | None, bool]:
        return self.trait_word_in(prompt), is_eval_question(prompt)

    def settings(self) -> dict[str, Any]:
        own = {"rule_version": RULE_VERSION, "kind": self.data_type, "trait_words": list(self.words)}
        cut_off = {"keep_cut_off": True} if self.keeps_cut_off else {}
        return {**own, **cut_off, **panel().facts()}

    def facts(self) -> dict[str, Any]:
        looked_at = "words, comments, strings, identifiers; plurals, split names, leetspeak, escapes, emoji"
        words = trait_words(self.words)
        rule = {
            "kind": self.data_type,
            "trait_words": ", ".join(words),
            "not_looked_for": ", ".join(word for word in panel().unsearched if word not in words),
            "looked_for_in": looked_at,
        }
        return {"rule_version": RULE_VERSION, "rule": rule, **panel().facts()}
