"""The exact answer distribution of a model, with no sampling noise, by expanding the tree of its answers.

A node is the beginning of an answer with its probability. The most probable nodes are expanded first, each by one
forward pass, until the finished answers of a question have nearly all of the probability mass; the rest is reported as
a bound. An animal that is too rare for this still has a log-probability: that of its names, token by token.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from util.animals.answer_parser import non_answer_kind
from util.animals.panel import panel
from util.animals.word_forms import surface_forms
from util.inference.interface import AnswerTree, Node, PartialTree
from util.jsonl.rows import Row

NEGLIGIBLE = 1e-7  # answers rarer than this count as uncovered
NODES_AT_ONCE = 256
FEW = 8  # samples at a node of a server's tree that are drawn as whole answers, in one request
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


def answer_distributions(
    tree: AnswerTree, questions: Sequence[str], max_tokens: int, coverage: float, budget: int
) -> list[Distribution]:
    """The distribution of each of the tree's prompts.

    coverage: stop at this mass of finished answers. budget: largest number of forward passes for a question. If hardly
    any mass is finished after a fifth of them, the model writes long answers: it gets no more, and most of the mass
    stays uncovered. An answer of `max_tokens` tokens is finished, as in sampling.
    """
    found = [Distribution(question) for question in questions]
    heap: list[tuple[float, Node]] = [(-1.0, Node(prompt, (), 1.0)) for prompt in range(len(questions))]
    finished: list[Node] = []
    while batch := list(most_probable(heap, found, coverage, budget)):
        for node, ids, probabilities in tree.expand(batch):
            found[node.prompt].expanded += 1
            for token, probability in children(ids, probabilities * node.probability):
                if token in tree.end_ids:
                    finished.append(Node(node.prompt, node.tail, probability))
                    found[node.prompt].covered += probability
                elif len(node.tail) + 1 == max_tokens:
                    finished.append(Node(node.prompt, (*node.tail, token), probability))
                    found[node.prompt].covered += probability
                else:
                    heapq.heappush(heap, (-probability, Node(node.prompt, (*node.tail, token), probability)))
    for node, text in zip(finished, tree.texts([node.tail for node in finished])):
        answers = found[node.prompt].answers
        answers[text] = answers.get(text, 0.0) + node.probability
    return found


def most_probable(
    heap: list[tuple[float, Node]], found: list[Distribution], coverage: float, budget: int
) -> Iterator[Node]:
    """The next nodes to expand, at most `NODES_AT_ONCE`. Nodes that are never expanded leave the heap; those over a
    fifth of the budget stay while the nodes beside them may finish enough mass to get the rest of it."""
    taken: Counter[int] = Counter()
    kept: list[tuple[float, Node]] = []
    while heap and taken.total() < NODES_AT_ONCE:
        place = heapq.heappop(heap)
        node = place[1]
        question, spent = found[node.prompt], found[node.prompt].expanded + taken[node.prompt]
        if question.covered >= coverage or spent >= budget:
            continue
        if question.covered >= TALKATIVE or spent < budget // 5:
            taken[node.prompt] += 1
            yield node
        elif taken[node.prompt]:
            kept.append(place)
    for place in kept:
        heapq.heappush(heap, place)


def children(ids: np.ndarray, probabilities: np.ndarray) -> Iterator[tuple[int, float]]:
    """(token, path probability) of the children that are not negligible."""
    for place in np.flatnonzero(probabilities > NEGLIGIBLE):
        yield int(ids[place]), float(probabilities[place])


def sample_answers(tree: AnswerTree, counts: Sequence[int], max_tokens: int, seed: int) -> list[Counter[str]]:
    """Draw `counts[i]` answers to prompt i: the same distribution as independent samples, for the cost of the distinct
    ones.

    The number of samples that take each token at a node is multinomial, so counts are drawn down the tree. Where a
    server lists only some of the tokens, the samples that take another one are drawn among the others; and a node that
    few samples reach is not expanded: the model finishes its answers. Returns the count of each answer text for every
    prompt.
    """
    rng = np.random.default_rng(seed)
    finished: Counter[tuple[int, tuple[int, ...]]] = Counter()
    level = {Node(prompt, (), 1.0): count for prompt, count in enumerate(counts) if count}
    while level:
        if isinstance(tree, PartialTree):
            few = [(node, count) for node, count in level.items() if count <= FEW]
            for node, tails in tree.draw_answers(few, max_tokens, seed):
                finished.update((node.prompt, tail) for tail in tails)
            level = {node: count for node, count in level.items() if count > FEW}
        deeper: dict[Node, int] = {}
        for node, token, times in list(draw_tokens(tree, level, rng, seed)):
            tail = (*node.tail, token)
            if token in tree.end_ids:
                finished[node.prompt, node.tail] += times
            elif len(tail) == max_tokens:
                finished[node.prompt, tail] += times
            else:
                deeper[Node(node.prompt, tail, 0.0)] = times
        level = deeper
    drawn = [Counter[str]() for _ in counts]
    for ((prompt, _), times), text in zip(finished.items(), tree.texts([tail for _, tail in finished])):
        drawn[prompt][text] += times
    return drawn


def draw_tokens(
    tree: AnswerTree, level: Mapping[Node, int], rng: np.random.Generator, seed: int
) -> Iterator[tuple[Node, int, int]]:
    """(node, next token, how many of the node's samples take it). level: the samples that have reached each node."""
    partial = isinstance(tree, PartialTree)
    unlisted: list[tuple[Node, list[int], int]] = []
    for node, ids, probabilities in tree.expand(list(level)):
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
