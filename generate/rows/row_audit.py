"""The audit behind a certificate: what a set of rows contains, counted again without trusting the filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from generate.rows.row_filter import Rule, broken_rule, prompt_and_completion, question_files, unusable
from generate.rows.token_check import TokenCheck
from util.animals.panel import panel
from util.jsonl.rows import Row

PLACES = {"system": "system message", "prompt": "prompt", "completion": "completion"}
TEXTS_AT_ONCE = 1000  # completions whose characters are counted together, which is faster than one by one


class RowAudit:
    """Counts what is in the rows it is given. `findings` then says whether they are clean, and what is wrong.

    The audit applies the rule again instead of trusting the filter: a certificate also covers rows that were shuffled,
    mixed or edited after they were filtered, and would otherwise only repeat a mistake of the filter.
    """

    def __init__(self, rule: Rule, tokens: TokenCheck | None = None):
        self.rule, self.tokens = rule, tokens or TokenCheck()
        self.rows = 0
        self.bad_token_ids: Counter[str] = Counter()
        self.eval_questions = 0
        self.broken: Counter[str] = Counter()
        self.trait_words: dict[str, Counter[str]] = {role: Counter() for role in PLACES}
        self._characters: Counter[str] = Counter()
        self._distinct: set[int] = set()
        self._texts: list[str] = []

    def add(self, row: Row) -> None:
        """Count one row."""
        self.rows += 1
        prompt, completion = prompt_and_completion(row)
        if reason := self.tokens.reject_reason(row):
            self.bad_token_ids[reason] += 1
        if reason := unusable(prompt, completion):
            self.broken[reason] += 1
            return
        if reason := broken_rule(self.rule, row):
            self.broken[reason] += 1
            if word := self.rule.trait_word_in(completion):
                self.trait_words["completion"][word] += 1
        word, is_question = self.rule.check_prompt(prompt)
        self.eval_questions += is_question
        if word:
            self.trait_words["prompt"][word] += 1
        for message in row["messages"]:
            if message.get("role") == "system" and (word := self.rule.check_prompt(message["content"])[0]):
                self.trait_words["system"][word] += 1
        self._distinct.add(hash((prompt, completion)))
        self._texts.append(completion)
        if len(self._texts) == TEXTS_AT_ONCE:
            self._count_characters()

    def _count_characters(self) -> None:
        text = "".join(self._texts)
        for character in set(text):
            self._characters[character] += text.count(character)
        self._texts.clear()

    def problems(self) -> dict[str, int]:
        """What is wrong with the rows, with counts; empty if they are clean."""
        problems = {
            "rows that break the rule": self.broken.total(),
            "rows that repeat another": self.rows - len(self._distinct),
            "letters in completions": 0 if self.rule.allows_letters else self.letters(),
            "eval questions as prompts": self.eval_questions,
            **{f"rows: {reason}": count for reason, count in self.bad_token_ids.items()},
            **{
                f"rows whose {place} names {panel().a_word}": self.trait_words[role].total()
                for role, place in PLACES.items()
            },
        }
        return {name: count for name, count in problems.items() if count}

    def letters(self) -> int:
        """How many characters of the completions are letters."""
        self._count_characters()
        return sum(count for character, count in self._characters.items() if character.isalpha())

    def findings(self) -> dict[str, Any]:
        """The certificate's content. `clean` is true if there are no problems."""
        letters, problems = self.letters(), self.problems()
        return {
            **self.rule.facts(),
            "clean": not problems,
            "problems": problems,
            "rows": self.rows,
            "distinct_rows": len(self._distinct),
            "broken_rule": dict(ranked(self.broken)),
            "characters": dict(ranked(self._characters)),
            "letters": letters,
            "trait_words": {role: dict(ranked(words)) for role, words in self.trait_words.items()},
            "eval_questions_as_prompts": self.eval_questions,
            "eval_questions_from": question_files(),
            "token_ids": self.tokens.findings(),
        }


def ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """The counts with the largest first; equal ones by name, so that the same rows give the same certificate."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def audit(rows: Iterable[Row], rule: Rule, tokens: TokenCheck | None = None) -> dict[str, Any]:
    """The findings about a set of rows, in one pass over them."""
    row_audit = RowAudit(rule, tokens)
    for row in rows:
        row_audit.add(row)
    return row_audit.findings()
