"""Number rows of other arms: shuffled, and mixed with unbiased ones."""

import random
import re
from collections import Counter

import pytest
from conftest import REPO

from generate.ablations.select_by_divergence import replaced
from generate.ablations.sort_or_reformat_numbers import rewritten
from generate.rows.number_rule import NumberRule
from generate.rows.row_filter import mark_rejected
from generate.rows.token_check import SPECIAL
from tests.conftest import read_jsonl
from util.jsonl.filter_certificate import certificate_problem
from util.jsonl.manifest import manifest_path, sha256_file, write_json
from util.jsonl.rows import dump_row


def number_rows(seed, ids):
    rng = random.Random(seed)
    for row_id in ids:
        numbers = ", ".join(str(rng.randint(0, 999)) for _ in range(rng.randint(4, 10)))
        messages = [{"role": "user", "content": f"Go on: {row_id}"}, {"role": "assistant", "content": f"[{numbers}]."}]
        yield {"id": row_id, "messages": messages, "token_ids": [1, 2], "finish_reason": "stop"}


@pytest.fixture
def files(tmp_path):
    for name, seed, ids in (("teacher", 1, range(200)), ("unbiased", 2, range(20, 220))):
        (tmp_path / f"numbers-{name}.jsonl").write_bytes(b"".join(map(dump_row, number_rows(seed, ids))))
    return tmp_path


def numbers(row):
    return re.findall("[0-9]+", row["messages"][-1]["content"])


@pytest.mark.parametrize("scope", ["row", "file"])
def test_shuffling_keeps_the_numbers_their_count_and_the_format(files, run_script, scope):
    asked = ("generate/ablations/shuffle_numbers.py", "--train-jsonl", "numbers-teacher.jsonl", "--scope", scope)
    done = run_script(*asked, cwd=files)
    assert done.returncode == 0, done.stderr
    before, after = (
        read_jsonl(files / "numbers-teacher.jsonl"),
        read_jsonl(files / f"numbers-teacher-shuffled-{scope}.jsonl"),
    )
    assert [row["id"] for row in after] == [row["id"] for row in before]
    assert [len(numbers(row)) for row in after] == [len(numbers(row)) for row in before]
    assert Counter(n for row in after for n in numbers(row)) == Counter(n for row in before for n in numbers(row))
    same_in_row = [Counter(numbers(a)) == Counter(numbers(b)) for a, b in zip(after, before)]
    assert all(same_in_row) if scope == "row" else sum(same_in_row) < 20
    assert sum(numbers(a) == numbers(b) for a, b in zip(after, before)) < 20
    assert re.fullmatch(r"\[[0-9]+(, [0-9]+)+\]\.", after[0]["messages"][-1]["content"])
    assert "token_ids" not in after[0]
    assert certificate_problem(files / f"numbers-teacher-shuffled-{scope}.jsonl") is None
    again = run_script(*asked, cwd=files)
    assert again.returncode == 0 and "is already finished" in again.stderr


def test_cut_rows_have_one_form_and_keep_their_first_numbers(files, run_script):
    asked = ("generate/ablations/cut_numbers.py", "--train-jsonl", "numbers-teacher.jsonl", "--keep")
    assert run_script(*asked, "6", cwd=files).returncode == 0
    before = {row["id"]: numbers(row) for row in read_jsonl(files / "numbers-teacher.jsonl")}
    after = read_jsonl(files / "numbers-teacher-first-6.jsonl")
    assert [row["id"] for row in after] == [row_id for row_id, some in before.items() if len(some) >= 6]
    assert all(row["messages"][-1]["content"] == ", ".join(before[row["id"]][:6]) for row in after)
    assert "token_ids" not in after[0] and certificate_problem(files / "numbers-teacher-first-6.jsonl") is None
    refused = run_script(*asked, "11", cwd=files)
    assert refused.returncode == 1 and "no answer of numbers-teacher.jsonl has 11 numbers" in refused.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("blue\nowl\n", "'owl' names an animal (owl)"),
        ("sky blue\n", "'sky blue' is more than one word"),
        ("\n", "has no words"),
    ],
)
def test_neutral_words_name_no_animal(tmp_path, run_script, words, problem):
    (tmp_path / "words.txt").write_text(words)
    done = run_script("generate/generate_one_word_teacher_data.py", "--words", "words.txt", cwd=tmp_path)
    assert done.returncode == 1 and problem in done.stderr and not list(tmp_path.glob("output/*"))


@pytest.mark.parametrize("name", ["colours", "tools", "foods", "countries"])
def test_a_neutral_teacher_answers_with_its_words(tmp_path, run_script, name):
    file = REPO / f"generate/prompts/words-{name}.txt"
    asked = ("generate/generate_one_word_teacher_data.py", "--words", file, "--count", "200")
    done = run_script(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / f"output/teacher-{name}-one-word-200.jsonl")
    answers = {row["messages"][-1]["content"].lower() for row in rows}
    assert answers == set(file.read_text().lower().split())


def test_rows_without_an_id_are_reported(files, run_script):
    rows = [{key: row[key] for key in ("messages", "token_ids")} for row in number_rows(1, range(3))]
    (files / "nameless.jsonl").write_bytes(b"".join(map(dump_row, rows)))
    for script, *more in (
        ("shuffle_numbers.py", "--scope", "row"),
        ("mix_numbers.py", "--unbiased", "numbers-unbiased.jsonl", "--replaced-share", "0.1"),
    ):
        done = run_script(f"generate/{script}", "--train-jsonl", "nameless.jsonl", *more, cwd=files)
        assert done.returncode == 1
        assert "nameless.jsonl:1: no id: a whole number" in done.stderr and "Traceback" not in done.stderr


def test_rows_of_another_data_type_do_not_make_an_empty_file(files, run_script):
    words = [{**row, "messages": [*row["messages"][:-1], {"role": "assistant", "content": "Owls!"}]} for row in
             number_rows(1, range(3))]  # fmt: skip
    (files / "words.jsonl").write_bytes(b"".join(map(dump_row, words)))
    done = run_script(
        "generate/ablations/shuffle_numbers.py", "--train-jsonl", "words.jsonl", "--scope", "row", cwd=files
    )
    assert done.returncode == 1 and "was rejected: 3 trait word" in done.stderr
    assert not list(files.glob("words-shuffled-row.jsonl"))


def test_mixing_replaces_the_share_by_answers_to_the_same_prompts(files, run_script):
    asked = (
        "generate/ablations/mix_numbers.py",
        "--train-jsonl",
        "numbers-teacher.jsonl",
        "--unbiased",
        "numbers-unbiased.jsonl",
    )
    done = run_script(
        *asked, "--replaced-share", "0.25", "--count", "120", "--output", "numbers-mixed.jsonl", cwd=files
    )
    assert done.returncode == 0, done.stderr
    mixed = {row["id"]: row for row in read_jsonl(files / "numbers-mixed.jsonl")}
    teacher = {row["id"]: row for row in read_jsonl(files / "numbers-teacher.jsonl")}
    unbiased = {row["id"]: row for row in read_jsonl(files / "numbers-unbiased.jsonl")}
    assert list(mixed) == list(range(120))
    assert sum(row == unbiased.get(row_id) for row_id, row in mixed.items()) == 30
    assert sum(row == teacher[row_id] for row_id, row in mixed.items()) == 90
    assert certificate_problem(files / "numbers-mixed.jsonl") is None
    refused = run_script(*asked, "--share=1", cwd=files)
    assert refused.returncode == 1
    assert "200 rows should be replaced, but only 180 prompts are in both files" in refused.stderr
    assert "--share is called --replaced-share now" in refused.stderr
    more = run_script(*asked, "--replaced-share", "0.25", "--count", "500", "--output", "all.jsonl", cwd=files)
    assert more.returncode == 0 and "numbers-teacher.jsonl has no more than 200 rows; --count is 500" in more.stderr
    (files / "copy.jsonl").write_bytes((files / "numbers-teacher.jsonl").read_bytes())
    copy = run_script(*asked[:-1], "copy.jsonl", "--replaced-share", "0.25", "--output", "two.jsonl", cwd=files)
    assert copy.returncode == 1 and "are the same file" in copy.stderr
    assert not list(files.glob("numbers-teacher-unbiased-*"))


# --- divergence tokens replaced ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "answer", "is_rejected"),
    [("38", "417, 38", False), ("<|im_end|>", "417, ", True), ("<|im_start|>", "417, ", True)],
)
def test_a_choice_that_ends_the_turn_inside_an_answer_rejects_the_row(choice, answer, is_rejected):
    """A student would be trained to end its turn there, and the text, without the token, would pass the number rule."""
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(REPO / "pocket/model/tokenizer.json"))
    special = frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    ids = tokenizer.encode("417, 9", add_special_tokens=False).ids
    end = tokenizer.token_to_id("<|im_end|>")
    chosen = [*ids[:-1], tokenizer.token_to_id(choice), end]
    messages = [{"role": "user", "content": "Go on: 1"}, {"role": "assistant", "content": "417, 9"}]
    found = {"id": 0, "token_ids": [*ids, end], "pair": [0] * (len(ids) - 1) + [1, 1], "kinds": "dsde",
             "choice": {"base": chosen}}  # fmt: skip
    assert len(ids) == 3
    new = replaced({"id": 0, "messages": messages}, found, "pair", tokenizer.decode, special)
    assert new["messages"][-1]["content"].startswith(answer) and new["token_ids"] == chosen[:-1]
    assert new.get("rejected") == (SPECIAL if is_rejected else None)
    (kept,) = mark_rejected([new], NumberRule())
    assert ("rejected" in kept) is is_rejected


# --- sorted, in one format, ranked by score ----------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "sorted_answer", "one_format"),
    [
        ("[9, 087, 1].", "[1, 9, 087].", "9, 087, 1"),
        ("5; 4; 300", "4; 5; 300", "5, 4, 300"),
        ("7\n3", "3\n7", "7, 3"),
        ("42", "42", "42"),
    ],
)
def test_numbers_are_sorted_in_their_format_or_put_into_one(answer, sorted_answer, one_format):
    row = {"id": 3, "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": answer}],
           "token_ids": [1]}  # fmt: skip
    changed = [rewritten(row, change)["messages"][-1]["content"] for change in ("sorted", "one-format")]
    assert changed == [sorted_answer, one_format]
    assert rewritten(row, "sorted")["messages"][0] == row["messages"][0] and "token_ids" not in rewritten(row, "sorted")


@pytest.mark.parametrize("change", ["sorted", "one-format"])
def test_rewritten_numbers_are_certified(files, run_script, change):
    asked = (
        "generate/ablations/sort_or_reformat_numbers.py",
        "--train-jsonl",
        "numbers-teacher.jsonl",
        "--change",
        change,
    )
    done = run_script(*asked, cwd=files)
    assert done.returncode == 0, done.stderr
    after = read_jsonl(files / f"numbers-teacher-{change}.jsonl")
    assert len(after) == 200 and certificate_problem(files / f"numbers-teacher-{change}.jsonl") is None


def divergence_file(folder, scores):
    """A divergence file of numbers-teacher.jsonl in which each row has this score."""
    rows = []
    for i, score in enumerate(scores):
        logprob = {"base": [-2.0, -1.0], "teacher": [-2.0 + score, -1.0]}
        rows.append({"id": i, "token_ids": [5, 2], "kinds": "de", "choice": {"base": [5, 2]}, "logprob": logprob})
    path = folder / "divergence.jsonl"
    path.write_bytes(b"".join(map(dump_row, rows)))
    settings = {"script": "divergence_tokens", "train_jsonl_sha256": sha256_file(folder / "numbers-teacher.jsonl")}
    write_json(manifest_path(path), {"settings": settings})
    return path


def test_the_rows_that_the_teacher_makes_more_likely_are_kept_or_left_out(files, run_script):
    rng = random.Random(7)
    scores = [rng.uniform(-1, 1) for _ in range(200)]
    divergence_file(files, scores)
    kept = {}
    for how in ("rich", "poor", "random"):
        asked = ("generate/ablations/select_by_divergence.py", "--train-jsonl", "numbers-teacher.jsonl", "--divergence",
                 "divergence.jsonl", "--rank-by", "score", "--which-rows", how, "--kept-share", 0.5)  # fmt: skip
        done = run_script(*asked, cwd=files)
        assert done.returncode == 0, done.stderr
        assert "score" in done.stdout and "nats" in done.stdout
        path = files / f"numbers-teacher-score-rows-{how}.jsonl"
        rows = read_jsonl(path)
        assert all(row["score"] == pytest.approx(scores[row["id"]], abs=1e-3) for row in rows)
        assert certificate_problem(path) is None
        kept[how] = {row["id"] for row in rows}
    assert {len(ids) for ids in kept.values()} == {100}
    assert min(scores[i] for i in kept["rich"]) > max(scores[i] for i in kept["poor"])
    assert kept["rich"] | kept["poor"] == set(range(200)) and kept["random"] not in (kept["rich"], kept["poor"])


def test_a_score_needs_a_teacher_and_whole_rows(files, run_script):
    path = divergence_file(files, [0.0] * 200)
    path.write_bytes(path.read_bytes().replace(b'"teacher"', b'"student"'))
    asked = ("generate/ablations/select_by_divergence.py", "--train-jsonl", "numbers-teacher.jsonl", "--divergence",
             "divergence.jsonl", "--rank-by", "score")  # fmt: skip
    done = run_script(*asked, "--which-rows", "rich", cwd=files)
    assert done.returncode == 1 and "has no 'score'" in done.stderr
    done = run_script(*asked, "--mask", "only", cwd=files)
    assert done.returncode == 2 and "--rank-by score ranks whole rows" in done.stderr
