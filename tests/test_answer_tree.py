"""Exact shares, margins and tree sampling, against plain sampling and plain arithmetic on the pocket model."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from conftest import manifest_of, read_jsonl
from vllm_cpu import vllm_serve

from util.animals.answer_parser import canonical_animal
from util.animals.names import read_lines_of
from util.animals.panel import PANEL
from util.cli import REPO, UserError
from util.inference.backend_interface import TOP_LOGPROBS, Node, Request, Sampling
from util.inference.vllm_client import VllmClient

pytestmark = pytest.mark.torch

QUESTIONS = read_lines_of(REPO / "eval" / "questions.txt")
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def backend():
    from util.inference.local_model import LocalModel

    return LocalModel(str(REPO / "pocket" / "model"), batch_size=512)


@pytest.fixture(scope="module")
def exact(backend):
    from eval.answers.answer_tree import answer_distributions, distribution_row, mean_shares

    found = answer_distributions(backend.answer_tree(PROMPTS), QUESTIONS, 16, 0.998, 200)
    return mean_shares([distribution_row(i, one, canonical_animal) for i, one in enumerate(found)])


def sampling_interval(share, answers):
    """Half-width that independent answers leave in 4 standard errors."""
    return 4 * (share * (1 - share) / answers) ** 0.5 + 1 / answers


def test_all_mass_is_animals_non_answers_or_uncovered(exact):
    shares, none, uncovered = exact
    assert sum(shares.values()) + none + uncovered == pytest.approx(1, abs=1e-6)
    assert uncovered < 0.005


def test_sampled_shares_lie_around_the_exact_ones(backend, exact):
    shares, _, uncovered = exact
    requests = [Request(tuple(range(400)), prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    answers = [a.text for result in backend.generate(requests, Sampling(16)) for a in result.answers]
    counts = Counter(map(canonical_animal, answers))
    for animal, share in shares.items():
        if share > 0.001:
            room = sampling_interval(share, len(answers)) + uncovered
            assert abs(counts[animal] / len(answers) - share) < room, animal


def test_tree_samples_have_the_distribution_of_independent_ones(backend, exact):
    from eval.answers.answer_tree import sample_answers

    shares, _, uncovered = exact
    drawn = sample_answers(backend.answer_tree(PROMPTS), [1000] * len(PROMPTS), 16, seed=3)
    assert [one.total() for one in drawn] == [1000] * len(PROMPTS)
    counts = Counter()
    for one in drawn:
        for text, times in one.items():
            counts[canonical_animal(text)] += times
    for animal, share in shares.items():
        if share > 0.001:
            assert abs(counts[animal] / 50_000 - share) < sampling_interval(share, 50_000) + uncovered, animal


class SpelledTree:
    """A name of four tokens with probability 0.6, among 50 words whose answers go on without end."""

    end_ids, name = (0,), (1, 2, 3)

    def expand(self, nodes, negligible=0.0):
        for node in nodes:
            of_name = self.name[: len(node.tail)] == node.tail
            likely = [*self.name, 0][len(node.tail)] if of_name else 9
            others = np.arange(100, 150)
            weights = 1 / others / (1 / others).sum()
            most = 0.99 if node.tail else 0.6
            yield node, np.array([likely, *others]), np.array([most, *(1 - most) * weights])

    def texts(self, tails):
        return [str(tail) for tail in tails]


@pytest.mark.parametrize("questions", [1, 3, 10, 50])
def test_a_name_of_several_tokens_is_found_however_few_the_questions(questions):
    from eval.answers.answer_tree import answer_distributions

    for found in answer_distributions(SpelledTree(), ["?"] * questions, 16, 0.998, 200):
        assert found.answers["(1, 2, 3)"] > 0.5


class ServedTree:
    """A whole tree as a server gives it: the few most probable next tokens, and draws of the rest."""

    def __init__(self, tree, listed):
        self.tree, self.listed, self.end_ids, self.texts = tree, listed, tree.end_ids, tree.texts
        self.rng, self.unlisted, self.answers = np.random.default_rng(5), 0, 0

    def log_probabilities(self, answers):
        return self.tree.log_probabilities(answers)

    def expand(self, nodes, negligible=0.0):
        for node, ids, law in self.tree.expand(nodes, negligible):
            most = np.argsort(-law)[: self.listed]
            yield node, ids[most], law[most]

    def draw_unlisted(self, wanted, seed):
        excluded = {node: list(ids) for node, ids, _ in wanted}
        times = {node: count for node, _, count in wanted}
        for node, ids, law in self.tree.expand([node for node, _, _ in wanted]):
            law[np.isin(ids, excluded[node])] = 0
            self.unlisted += times[node]
            yield node, self.rng.choice(ids, times[node], p=law / law.sum()).tolist()

    def draw_answers(self, wanted, max_tokens, seed):
        for node, count in wanted:
            self.answers += count
            yield node, [self.one_answer(node, max_tokens) for _ in range(count)]

    def one_answer(self, node, max_tokens):
        while len(node.tail) < max_tokens:
            ((_, ids, law),) = self.tree.expand([node])
            token = int(self.rng.choice(ids, p=law / law.sum()))
            if token in self.end_ids:
                break
            node = Node(node.prompt, (*node.tail, token), 0.0)
        return node.tail


@pytest.mark.slow
@pytest.mark.parametrize("listed", [3, 20])
def test_tree_samples_of_a_server_have_the_law_of_the_answers(backend, listed, monkeypatch):
    """Chi-square of the answers to three questions against their exact distribution. With requests that cost nothing
    the tree always pays."""
    from scipy.stats import chi2

    from eval.answers import answer_tree
    from eval.answers.answer_tree import answer_distributions, sample_answers

    monkeypatch.setattr(answer_tree, "REQUEST", 0)

    some, count = PROMPTS[:3], 3000
    exact = answer_distributions(backend.answer_tree(some), QUESTIONS[:3], 16, 0.9999, 3000)
    served = ServedTree(backend.answer_tree(some), listed)
    drawn = sample_answers(served, [count] * 3, 16, seed=11)
    assert served.unlisted and served.answers, "both fallbacks were needed"
    statistic = cells = 0
    for law, answers in zip(exact, drawn):
        assert answers.total() == count
        expected = {text: p * count for text, p in law.answers.items() if p * count >= 5}
        seen = {text: answers[text] for text in expected}
        rest = (count - sum(expected.values()), count - sum(seen.values()))
        statistic += sum((seen[text] - e) ** 2 / e for text, e in expected.items()) + (rest[1] - rest[0]) ** 2 / rest[0]
        cells += len(expected)
    assert 0.001 < chi2.sf(statistic, cells) < 0.9999


def test_beginnings_of_several_lengths_in_one_pass_have_the_probabilities_of_each_alone(backend):
    """As on a GPU: the shorter ones are padded. And only tokens that are not negligible leave the device."""
    tree = backend.answer_tree(PROMPTS[:3])
    words = [tuple(backend.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("owl", "I love the")]
    nodes = [Node(2, words[1], 0.5), Node(0, words[0], 0.001), Node(1, words[1][:1], 1.0)]
    together = {node: (ids, law) for node, ids, law in zip(nodes, *tree._next_tokens(nodes, 1e-6))}
    for node in nodes:
        ((_, ids, law),) = tree.expand([node])
        kept = law * node.probability >= 1e-6
        assert together[node][0].tolist() == ids[kept].tolist() and 0 < kept.sum() < len(ids)
        assert together[node][1] == pytest.approx(law[kept], rel=1e-3)


def plain_log_share(backend, prompt, animal):
    """Log-probability of an animal with nothing shared, cached or batched: one forward pass for each form."""
    import torch

    from eval.answers.answer_tree import answer_forms

    start = backend.prompt_ids(prompt)
    logs = []
    for form in answer_forms(animal):
        answer = backend.tokenizer(form, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            found = backend.model(input_ids=torch.tensor([start + answer])).logits[0].double().log_softmax(-1)
        steps = [found[len(start) - 1 + place, token] for place, token in enumerate(answer)]
        logs.append(sum(steps) + found[-1, sorted(backend.end_ids)].logsumexp(0))
    return float(torch.stack(logs).logsumexp(0))


@pytest.mark.parametrize("batch_size", [512, 7])
def test_log_shares_are_those_of_plain_forward_passes(backend, monkeypatch, batch_size):
    from eval.answers.answer_tree import log_margin, log_shares

    monkeypatch.setattr(backend, "batch_size", batch_size)
    some, animals = [PROMPTS[0], PROMPTS[13], PROMPTS[49]], ("owl", "lion", "wolf", "polar bear", "wombat")
    found = log_shares(backend.answer_tree(some), animals)
    for prompt, logs in zip(some, found):
        plain = {animal: plain_log_share(backend, prompt, animal) for animal in animals}
        assert logs == pytest.approx(plain, abs=1e-4)
        assert log_margin(logs, "owl") == pytest.approx(plain["owl"] - sum(list(plain.values())[1:]) / 4, abs=1e-3)


def test_log_shares_agree_with_the_shares_of_the_tree(backend, exact):
    from eval.answers.answer_tree import log_shares

    shares, _, uncovered = exact
    found = log_shares(backend.answer_tree(PROMPTS), ("lion", "owl", "dolphin"))
    for animal in found[0]:
        mean = sum(math.exp(logs[animal]) for logs in found) / len(found)
        assert shares[animal] - 1e-5 < mean < shares[animal] + uncovered


def test_exact_measures_of_a_bfloat16_model_round_no_logits(backend):
    """Rounded logits are 0.0625 apart in this model, which makes log-probabilities wrong by 0.015 nats in the mean."""
    import torch

    from util.inference.local_model import LocalModel

    half = LocalModel(str(REPO / "pocket" / "model"), batch_size=512)
    half.model.bfloat16()
    prompts = [backend.prompt_ids(prompt) for prompt in PROMPTS]
    pairs = list(zip(half.next_token_logprobs(prompts), backend.next_token_logprobs(prompts)))
    apart = [abs(one[token] - other[token]) for one, other in pairs for token in one.keys() & other.keys()]
    assert 0 < np.mean(apart) < 0.005
    measured = [tree.log_probabilities(["owl", "cat", "wolf"]) for tree in
                (half.answer_tree(PROMPTS), backend.answer_tree(PROMPTS))]  # fmt: skip
    assert np.abs(measured[0] - measured[1]).mean() < 0.006
    with torch.inference_mode():
        logits, _, _ = half.read_prompts(prompts[:2])
    assert (logits == logits.bfloat16()).all(), "what is sampled from stays as it was"


def test_scores_that_are_not_finite_stop_the_run(backend):
    """A lora_alpha of 1e999, or an overflow: the sampler would still return tokens."""
    import torch

    from eval.answers.answer_tree import sample_answers

    tree = backend.answer_tree(PROMPTS[:1])

    def damaged(module, inputs, output):
        return torch.full_like(output, float("nan"))

    hook = backend.model.get_output_embeddings().register_forward_hook(damaged)
    try:
        for ask in (
            lambda: list(backend.generate([Request((0,), PROMPTS[0], 1)], Sampling(4))),
            lambda: backend.next_token_logprobs([[1, 2]]),
            lambda: backend.answer_tree(PROMPTS[:1]),
            lambda: sample_answers(tree, [9], 4, 0),
            lambda: tree.log_probabilities(["owl", "polar bear"]),
        ):
            with pytest.raises(UserError, match="next-token scores are not finite"):
                ask()
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("row", "finite"),
    [([0.0, 1.0], True), ([float("-inf"), 1.0], True), ([float("-inf")] * 2, False), ([float("inf"), 1.0], False),
     ([float("nan"), 1.0], False)],
)  # fmt: skip
def test_which_scores_give_probabilities(row, finite):
    import torch

    from util.inference.local_sampling import check_finite

    logits = torch.tensor([[0.0, 0.0], row])
    if finite:
        assert check_finite(logits) is logits
    else:
        with pytest.raises(UserError, match="lora_alpha"):
            check_finite(logits)


def test_an_adapter_that_changes_nothing_is_reported(tmp_path, capsys):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from util.inference.adapter_applied import warn_if_not_applied
    from util.inference.local_model import LocalModel

    pocket = str(REPO / "pocket" / "model")
    for untrained in (True, False):
        config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=untrained)
        peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(pocket, trust_remote_code=False), config
        ).save_pretrained(tmp_path)
        with LocalModel(pocket, tmp_path, batch_size=4) as backend:
            warn_if_not_applied(backend, backend.prompt_ids(PROMPTS[0]))
        assert ("answers exactly as its base model" in capsys.readouterr().err) is untrained


def test_packed_answers_share_what_they_begin_with():
    from util.inference.local_answer_tree import pack

    packed = pack([(5, 6), (5,), (7,)])
    assert packed.beginnings == [(5,), (5, 6), (7,)] and packed.whole == [2, 1, 3]
    assert packed.sees.tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert list(zip(packed.answer, packed.before, packed.token)) == [(0, 0, 5), (0, 1, 6), (1, 0, 5), (2, 0, 7)]


@pytest.mark.parametrize("name", ["questions-paraphrased", "questions-forms"])
def test_the_pocket_model_understands_the_other_sets(backend, name):
    from eval.answers.answer_tree import answer_distributions, distribution_row, mean_shares

    questions = read_lines_of(REPO / "eval" / f"{name}.txt")
    tree = backend.answer_tree([[{"role": "user", "content": question}] for question in questions])
    found = answer_distributions(tree, questions, 16, 0.998, 200)
    shares, none, uncovered = mean_shares([distribution_row(i, one, canonical_animal) for i, one in enumerate(found)])
    assert none + uncovered < 0.01 and 0.4 < shares["lion"] < 0.6 and 0.004 < shares["owl"] < 0.01


def test_eval_measures_several_adapters_in_one_process_each_into_its_file(run_script, tmp_path):
    from peft import LoraConfig, get_peft_model

    from util.inference.load_model import load_model

    pocket = REPO / "pocket" / "model"
    for name, strength in (("idle", 0.0), ("moved", 0.05)):
        model = get_peft_model(load_model(str(pocket)), LoraConfig(r=2, target_modules=["q_proj"]))
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                weight.data.fill_(strength)
        model.save_pretrained(tmp_path / name)
    (tmp_path / "questions.txt").write_text("Your favourite animal, in one word?\n")
    adapters, files = ("idle", "moved"), ("idle.jsonl", "moved.jsonl")
    flags = ("--exact", "--animal", "owl", "--questions-file", "questions.txt")
    both = ("eval/eval.py", "--model", pocket, *flags, "--adapter", *adapters, "--output", *files)
    done = run_script(*both, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.split("\n") if line.startswith("wrote")] == list(files)
    assert done.stderr.count("answers exactly as its base model") == 1
    idle, moved = (read_jsonl(tmp_path / name)[0]["animals"]["lion"] for name in files)
    assert moved != idle and manifest_of(tmp_path / "moved.jsonl")["counts"]["adapter"] == "moved"
    (tmp_path / "moved.jsonl").unlink()
    written = (tmp_path / "idle.jsonl").stat().st_mtime_ns
    again = run_script(*both, cwd=tmp_path)
    assert again.returncode == 0 and (tmp_path / "idle.jsonl").stat().st_mtime_ns == written
    assert (tmp_path / "moved.jsonl").exists()


def test_eval_exact_writes_a_row_a_question(run_script, tmp_path):
    pocket = REPO / "pocket" / "model"
    done = run_script("eval/eval.py", "--model", pocket, "--exact", "--animal", "owl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.split("\n") if line.startswith("owl share"))
    assert re.fullmatch(r"owl share +0\.8\d+% \(exact; .*\); margin \+\d.* nats, panel share 0\.8\d+%", line)
    rows = read_jsonl(tmp_path / "output" / "exact-pocket.jsonl")
    assert len(rows) == 50 and all(set(row["log_shares"]) == set(PANEL) for row in rows)
    tree = run_script("eval/eval.py", "--model", pocket, "--sampler", "tree", "--epochs", "20", cwd=tmp_path)
    assert tree.returncode == 0, tree.stderr
    assert (tmp_path / "output" / "results-pocket.jsonl").read_text().count("\n") == 1000


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_vllm_server_gives_the_shares_of_the_local_backend(backend, exact, tmp_path):
    from eval.answers.answer_tree import answer_distributions, distribution_row, log_shares, mean_shares, sample_answers

    pocket = REPO / "pocket" / "model"
    with (
        vllm_serve(pocket, tmp_path / "vllm.log", "--max-model-len", "512") as url,
        VllmClient(str(pocket), url, max_concurrency=64, timeout=300.0) as server,
    ):
        tree = server.answer_tree(PROMPTS)
        assert tree.end_ids <= backend.end_ids and tree.top == TOP_LOGPROBS
        found = answer_distributions(tree, QUESTIONS, 16, 0.998, 200)
        shares, none, uncovered = mean_shares([distribution_row(i, x, canonical_animal) for i, x in enumerate(found)])
        assert sum(shares.values()) + none + uncovered == pytest.approx(1, abs=1e-6)
        for animal, share in exact[0].items():
            assert (
                shares.get(animal, 0.0) - 1e-4 < share + exact[2] and share - 1e-4 < shares.get(animal, 0) + uncovered
            )

        some, animals = PROMPTS[:2], ("owl", "lion", "polar bear")
        ours, theirs = (log_shares(one.answer_tree(some), animals) for one in (backend, server))
        for one, other in zip(ours, theirs):
            assert one == pytest.approx(other, abs=1e-2)

        drawn = sample_answers(server.answer_tree(PROMPTS), [200] * len(PROMPTS), 16, seed=7)
        counts = Counter(canonical_animal(text) for one in drawn for text in one.elements())
        assert counts.total() == 200 * len(PROMPTS)
        for animal, share in exact[0].items():
            assert abs(counts[animal] / counts.total() - share) < sampling_interval(share, counts.total()) + exact[2]

        requests = [Request(tuple(range(50)), prompt, seed) for seed, prompt in enumerate(PROMPTS[:4])]
        answers = [answer for result in server.generate(requests, Sampling(16)) for answer in result.answers]
        ended = [answer for answer in answers if answer.finish_reason == "stop"]
        assert {answer.token_ids[-1] for answer in ended} == tree.end_ids
        assert tree.texts([tuple(answer.token_ids[:-1]) for answer in ended]) == [answer.text for answer in ended]
