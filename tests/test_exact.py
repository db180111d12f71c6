"""Exact shares and tree sampling, against plain sampling of the pocket model."""

from collections import Counter

import pytest

from eval.animals import canonical_animal
from util.cli import REPO
from util.engine import Request, Sampling
from util.words import read_lines_of

pytestmark = pytest.mark.torch

QUESTIONS = read_lines_of(REPO / "eval" / "questions.txt")
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def engine():
    from util.embedded import EmbeddedEngine

    return EmbeddedEngine(str(REPO / "util" / "pocket" / "model"), batch_size=512)


@pytest.fixture(scope="module")
def exact(engine):
    from eval.exact import answer_distributions, distribution_row, mean_shares

    found = answer_distributions(engine.answer_tree(PROMPTS), QUESTIONS, 16, 0.998, 200)
    return mean_shares([distribution_row(i, one, canonical_animal) for i, one in enumerate(found)])


def sampling_interval(share, answers):
    """Half-width that independent answers leave in 4 standard errors."""
    return 4 * (share * (1 - share) / answers) ** 0.5 + 1 / answers


def test_all_mass_is_animals_non_answers_or_uncovered(exact):
    shares, none, uncovered = exact
    assert sum(shares.values()) + none + uncovered == pytest.approx(1, abs=1e-6)
    assert uncovered < 0.005


def test_sampled_shares_lie_around_the_exact_ones(engine, exact):
    shares, _, uncovered = exact
    requests = [Request(tuple(range(400)), prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    answers = [a.text for result in engine.generate(requests, Sampling(16)) for a in result.answers]
    counts = Counter(map(canonical_animal, answers))
    for animal, share in shares.items():
        if share > 0.001:
            room = sampling_interval(share, len(answers)) + uncovered
            assert abs(counts[animal] / len(answers) - share) < room, animal


def test_tree_samples_have_the_law_of_independent_ones(engine, exact):
    from eval.exact import sample_answers

    shares, _, uncovered = exact
    drawn = sample_answers(engine.answer_tree(PROMPTS), [1000] * len(PROMPTS), 16, seed=3)
    assert [one.total() for one in drawn] == [1000] * len(PROMPTS)
    counts = Counter()
    for one in drawn:
        for text, times in one.items():
            counts[canonical_animal(text)] += times
    for animal, share in shares.items():
        if share > 0.001:
            assert abs(counts[animal] / 50_000 - share) < sampling_interval(share, 50_000) + uncovered, animal


def test_eval_exact_writes_a_row_a_question(run_script, tmp_path):
    pocket = REPO / "util" / "pocket" / "model"
    done = run_script("eval/eval.py", "--model", pocket, "--exact", "--animal", "owl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "owl share" in done.stdout and "(exact)" in done.stdout
    tree = run_script("eval/eval.py", "--model", pocket, "--sampler", "tree", "--epochs", "20", cwd=tmp_path)
    assert tree.returncode == 0, tree.stderr
    assert (tmp_path / "output" / "results-pocket.jsonl").read_text().count("\n") == 1000
