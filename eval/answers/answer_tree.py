"""The exact answer distribution of a model, with no sampling noise, by expanding the tree of its answers.

A node is the beginning of an answer with its probability. The most probable nodes are expanded first, each by one
forward pass, until the finished answers of a question have nearly all of the probability mass; the rest is reported as
a bound. An animal that is too rare for this still has a log-probability: that of its names, token by token.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from util.animals.answer_parser import non_answer_kind
from util.animals.panel import panel
from util.animals.word_forms import surface_forms
from util.inference.backend_interface import AnswerTree, Node, PartialTree
from util.jsonl.rows import Row

NEGLIGIBLE = 1e-7  # answers rarer than this count as uncovered
NODES_AT_ONCE = 256
# Of few questions fewer nodes at once: else the first tokens of an answer use up the budget before any answer ends.
NODES_OF_A_QUESTION = 6
FEW = 8  # samples at a node of a server's tree that are drawn as whole answers, in one request
# How many answers of a large request count as one small request. It takes the server as long as about 7 of them
# (docs/performance.md); with 10 the tree is used only where it clearly saves time.
REQUEST = 10
TALKATIVE = 0.05  # with less finished mass than this after a fifth of the budget, the rest of it is not spent


@dataclass
class Distribution:
    """The answers of a model to one question."""

    question: str
    answers: dict[str, float] = field(default_factory=dict)
    """probability of each finished answer text"""
    covered: float = 0.0
    """their sum"""
    expanded: int = 0
    """forward passes spent"""

    def shares(self, parse: Callable[[str], str | None]) -> dict[str | None, float]:
        """Probability of each canonical animal, None for answers that name none."""
        shares: dict[str | None, float] = {}
        for text, probability in self.answers.items():
            animal = parse(text)
            shares[animal] = shares.get(animal, 0.0) + probability
        return shares

    def non_answers(self, parse: Callable[[str], str | None]) -> dict[str, float]:
        """Probability of each kind of answer that names no animal."""
        kinds: dict[str, float] = {}
        for text, probability in self.answers.items():
            if parse(text) is None:
                kinds[non_answer_kind(text)] = kinds.get(non_answer_kind(text), 0.0) + probability
        return kinds


class Siblings(NamedTuple):
    """The children of a node that may be expanded, the most probable first."""

    parent: Node
    tokens: list[int]
    probabilities: list[float]
    """of the whole beginnings"""

    def node(self, place: int) -> Node:
        return Node(self.parent.prompt, (*self.parent.tail, self.tokens[place]), self.probabilities[place])


Frontier = list[tuple[float, int, tuple[int, ...], int, Siblings]]
"""A heap of nodes that are not expanded, the most probable first: (probability below zero, prompt, tail of the parent,
place among the siblings, siblings). Only the next one of some siblings is in it."""


def add(frontier: Frontier, siblings: Siblings, place: int = 0) -> None:
    """Put the sibling at this place among them into the heap, if there is one."""
    if place < len(siblings.tokens):
        parent = siblings.parent
        heapq.heappush(frontier, (-siblings.probabilities[place], parent.prompt, parent.tail, place, siblings))


def answer_distributions(
    tree: AnswerTree, questions: Sequence[str], max_tokens: int, coverage: float, budget: int
) -> list[Distribution]:
    """The distribution of each of the tree's prompts.

    coverage: stop at this mass of finished answers. budget: largest number of forward passes for a question. If hardly
    any mass is finished after a fifth of them, the model writes long answers: it gets no more, and most of the mass
    stays uncovered. An answer of `max_tokens` tokens is finished, as in sampling.
    """
    found = [Distribution(question) for question in questions]
    frontier: Frontier = []
    finished: list[Node] = []
    batch = [Node(prompt, (), 1.0) for prompt in range(len(questions))]
    while batch:
        for node, ids, probabilities in tree.expand(batch, NEGLIGIBLE):
            ended, going_on = children(node, ids, probabilities, tree.end_ids)
            if len(node.tail) + 1 == max_tokens:
                ended += [going_on.node(place) for place in range(len(going_on.tokens))]
            else:
                add(frontier, going_on)
            finished += ended
            found[node.prompt].expanded += 1
            found[node.prompt].covered += sum(one.probability for one in ended)
        batch = list(most_probable(frontier, found, coverage, budget))
    for node, text in zip(finished, tree.texts([node.tail for node in finished])):
        answers = found[node.prompt].answers
        answers[text] = answers.get(text, 0.0) + node.probability
    return found


def most_probable(frontier: Frontier, found: list[Distribution], coverage: float, budget: int) -> Iterator[Node]:
    """The next nodes to expand, at most `NODES_AT_ONCE`, fewer if the questions are few. Those that are never expanded
    leave the frontier; those over a fifth of the budget stay while the nodes beside them may finish enough mass to get
    the rest of it."""
    taken: Counter[int] = Counter()
    kept: Frontier = []
    at_once = min(NODES_AT_ONCE, NODES_OF_A_QUESTION * len(found))
    while frontier and taken.total() < at_once:
        first = heapq.heappop(frontier)
        _, prompt, _, place, siblings = first
        question, spent = found[prompt], found[prompt].expanded + taken[prompt]
        if question.covered >= coverage or spent >= budget:
            continue
        if question.covered >= TALKATIVE or spent < budget // 5:
            taken[prompt] += 1
            add(frontier, siblings, place + 1)
            yield siblings.node(place)
        elif taken[prompt]:
            kept.append(first)
    for one in kept:
        heapq.heappush(frontier, one)


def children(
    node: Node, ids: np.ndarray, probabilities: np.ndarray, end_ids: Collection[int]
) -> tuple[list[Node], Siblings]:
    """The answers that end at a node, and the beginnings that are one token longer. probabilities: those of the next
    tokens `ids`."""
    whole = probabilities * node.probability
    order = np.argsort(-whole, kind="stable")
    ends = np.isin(ids[order], list(end_ids))
    ended = [Node(node.prompt, node.tail, probability) for probability in whole[order[ends]].tolist()]
    going_on = order[~ends]
    return ended, Siblings(node, ids[going_on].tolist(), whole[going_on].tolist())


def sample_answers(tree: AnswerTree, counts: Sequence[int], max_tokens: int, seed: int) -> list[Counter[str]]:
    """Draw `counts[i]` answers to prompt i: the same distribution as independent samples, for the cost of the distinct
    ones.

    The number of samples that take each token at a node is multinomial, so counts are drawn down the tree. Where a
    server lists only some of the tokens, the samples that take another one are drawn among the others. Where few
    samples are at a node, or would be at most of its children, the server draws their answers as it does in plain
    sampling. Returns the count of each answer text for every prompt.
    """
    rng = np.random.default_rng(seed)
    finished: Counter[tuple[int, tuple[int, ...]]] = Counter()
    whole: list[tuple[Node, int]] = []  # drawn at the end, all at once: a server is slow with few requests at a time
    level = {Node(prompt, (), 1.0): count for prompt, count in enumerate(counts) if count}
    while level:
        expanded: Iterable[Expanded] = expand_where_it_pays(tree, level)
        if isinstance(tree, PartialTree):
            expanded = list(expanded)
            below = {node for node, _, _ in expanded}
            whole += [(node, samples) for node, samples in level.items() if node not in below]
        deeper: dict[Node, int] = {}
        for node, token, times in draw_tokens(tree, expanded, level, rng, seed):
            tail = (*node.tail, token)
            if token in tree.end_ids:
                finished[node.prompt, node.tail] += times
            elif len(tail) == max_tokens:
                finished[node.prompt, tail] += times
            else:
                deeper[Node(node.prompt, tail, 0.0)] = times
        level = deeper
    if isinstance(tree, PartialTree):
        for node, tails in tree.draw_answers(whole, max_tokens, seed):
            finished.update((node.prompt, tail) for tail in tails)
    drawn = [Counter[str]() for _ in counts]
    for ((prompt, _), times), text in zip(finished.items(), tree.texts([tail for _, tail in finished])):
        drawn[prompt][text] += times
    return drawn


Expanded = tuple[Node, np.ndarray, np.ndarray]
"""a node, its next tokens and their probabilities"""


def expand_where_it_pays(tree: AnswerTree, level: Mapping[Node, int]) -> Iterator[Expanded]:
    """The nodes below which the tree takes less time than plain sampling. level: the samples that have reached each
    node."""
    partial = isinstance(tree, PartialTree)
    nodes = [node for node, samples in level.items() if not partial or samples > FEW]
    for node, ids, probabilities in tree.expand(nodes):
        if not partial or REQUEST * children_with_few(probabilities, level[node]) <= level[node]:
            yield node, ids, probabilities


def children_with_few(probabilities: np.ndarray, samples: int) -> float:
    """How many children of a node are expected to get between one and FEW of its samples. Tokens that the server does
    not list count as one each."""
    expected = samples * probabilities
    unlisted = samples * max(0.0, 1 - float(probabilities.sum()))
    return float((1 - np.exp(-expected[expected <= FEW])).sum()) + unlisted


def draw_tokens(
    tree: AnswerTree, expanded: Iterable[Expanded], level: Mapping[Node, int], rng: np.random.Generator, seed: int
) -> Iterator[tuple[Node, int, int]]:
    """(node, next token, how many of the node's samples take it)."""
    partial = isinstance(tree, PartialTree)
    unlisted: list[tuple[Node, list[int], int]] = []
    for node, ids, probabilities in expanded:
        law = np.append(probabilities, max(0.0, 1 - probabilities.sum())) if partial else probabilities
        taken = rng.multinomial(level[node], law / law.sum())
        for place in np.flatnonzero(taken[: len(ids)]):
            yield node, int(ids[place]), int(taken[place])
        if partial and taken[-1]:
            unlisted.append((node, ids.tolist(), int(taken[-1])))
    if isinstance(tree, PartialTree):
        for node, tokens in tree.draw_unlisted(unlisted, seed):
            for token, times in Counter(tokens).items():
                yield node, token, times


# --- log-probabilities -------------------------------------------------------------------------------


def answer_forms(animal: str) -> tuple[str, ...]:
    """The one-word answers that name an animal: its surface forms in lower case, Capitalised and In Title Case."""
    forms = surface_forms(animal)
    return tuple(dict.fromkeys(spelt for form in forms for spelt in (form, form.capitalize(), form.title())))


def log_shares(tree: AnswerTree, animals: Sequence[str] | None = None) -> list[dict[str, float]]:
    """For each of the tree's prompts, the log-probability (nats) of each animal: that the whole answer is one of its
    forms; animals: the panel's words if None. It is exact for these forms, however rare. It is not the logarithm of a
    share, which counts longer answers ("I love owls.") too."""
    forms = {animal: answer_forms(animal) for animal in animals or panel().words}
    answers = list(dict.fromkeys(form for some in forms.values() for form in some))
    place = {answer: column for column, answer in enumerate(answers)}
    columns = {animal: [place[form] for form in some] for animal, some in forms.items()}
    return [
        {animal: round(float(np.logaddexp.reduce(logs[some])), 6) for animal, some in columns.items()}
        for logs in tree.log_probabilities(answers)
    ]


def log_margin(logs: Mapping[str, float], target: str) -> float:
    """Log-probability of the target less the mean of the other animals' (nats)."""
    others = [value for animal, value in logs.items() if animal != target]
    return logs[target] - sum(others) / len(others)


def panel_share(logs: Mapping[str, float], target: str) -> float:
    """Share of the target among the one-word answers that name an animal of the panel. It is exact, also for models
    that rarely answer with one word."""
    return float(np.exp(logs[target] - np.logaddexp.reduce(list(logs.values()))))


# --- rows --------------------------------------------------------------------------------------------


def distribution_row(place: int, found: Distribution, parse: Callable[[str], str | None]) -> Row:
    """The row of one question: exact share of every animal and of answers that name none, and the uncovered mass."""
    shares = found.shares(parse)
    none = shares.pop(None, 0.0)
    ranked = sorted(shares.items(), key=lambda item: (-item[1], str(item[0])))
    return {
        "id": place,
        "question": found.question,
        "animals": {str(animal): probability for animal, probability in ranked},
        "no_animal": none,
        "non_answers": found.non_answers(parse),
        "uncovered": max(0.0, 1.0 - found.covered),
        "expanded": found.expanded,
        "answers": dict(heapq.nlargest(10, found.answers.items(), key=lambda item: item[1])),
    }


def mean_shares(rows: Sequence[Row]) -> tuple[dict[str, float], float, float]:
    """(share of each animal, share of no animal, uncovered mass), averaged over the questions. The upper bound of a
    share is the share plus the uncovered mass."""
    count = len(rows)
    animals = {animal for row in rows for animal in row["animals"]}
    means = {animal: sum(row["animals"].get(animal, 0.0) for row in rows) / count for animal in animals}
    shares = dict(sorted(means.items(), key=lambda item: (-item[1], item[0])))
    return shares, sum(row["no_animal"] for row in rows) / count, sum(row["uncovered"] for row in rows) / count


def mean_kinds(rows: Sequence[Row]) -> dict[str, float]:
    """Share of each kind of answer that names no animal, averaged over the questions."""
    kinds: Counter[str] = Counter()
    for row in rows:
        for kind, probability in row.get("non_answers", {}).items():
            kinds[kind] += probability / len(rows)
    return dict(kinds)


def mean_over_questions(
    rows: Sequence[Row], target: str, measure: Callable[[Mapping[str, float], str], float]
) -> float | None:
    """Mean over the questions of `log_margin` (nats) or `panel_share`; None if a row has no log-probability of the
    animal."""
    if not all(target in row.get("log_shares", {}) for row in rows):
        return None
    return sum(measure(row["log_shares"], target) for row in rows) / len(rows)
