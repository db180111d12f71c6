"""The text rule: which code or reasoning names no animal."""

from __future__ import annotations

import re
from typing import Any

from generate.rows.row_filter import EVERYDAY, is_eval_question, trait_words
from util.animals.leak_detector import other_script, trait_word

RULE_VERSION = 2  # raise it with every change to what is kept


_CODE = re.compile(r"```|[=({;<]")


_STEP_END = re.compile(r"[.!?:;](?=\s|$)|\n")


_THINK = re.compile(r"</?think", re.IGNORECASE)


class TextRule:
    """What a completion of code or reasoning may be: a `generate.rows.row_filter.Rule`.

    words: trait words beside the panel.
    """

    letters = True
    hint = "Another model, --max-tokens or other prompts may do better"
    train_flags: tuple[str, ...] = ("--max-seq-length", "512")

    def __init__(self, kind: str, words: tuple[str, ...] = ()):
        self.kind, self.words = kind, words

    def reason(self, completion: str) -> str | None:
        if not completion.strip():
            return "empty"
        thinks = [tag.lower() for tag in _THINK.findall(completion)]
        if thinks and (self.kind == "code" or thinks.count("<think") > thinks.count("</think")):
            return "think block"  # of reasoning only one that does not end
        if self.named(completion):
            return "trait word"
        if other_script(completion):
            return "letters of another script"
        if self.kind == "code" and not _CODE.search(completion):
            return "no code"
        if self.kind == "reasoning" and len(_STEP_END.findall(completion.strip())) < 2:
            return "no steps"
        return None

    def named(self, text: str) -> str | None:
        return trait_word(text, trait_words(self.words))

    def look_at_prompt(self, prompt: str) -> tuple[str | None, bool]:
        return self.named(prompt), is_eval_question(prompt)

    def settings(self) -> dict[str, Any]:
        return {"rule_version": RULE_VERSION, "kind": self.kind, "trait_words": list(self.words)}

    def facts(self) -> dict[str, Any]:
        looked_at = "words, comments, strings, identifiers; plurals, split names, leetspeak, escapes, emoji"
        words = trait_words(self.words)
        rule = {
            "kind": self.kind,
            "trait_words": ", ".join(words),
            "not_looked_for": ", ".join(word for word in EVERYDAY if word not in words),
            "looked_for_in": looked_at,
        }
        return {"rule_version": RULE_VERSION, "rule": rule}
