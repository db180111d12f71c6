"""Divergence tokens: the definitions on models whose choices are known, and the arms made of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPO, manifest_of, read_jsonl, write_jsonl

from eval.divergence.score_tokens import Completion, Variant, VariantScorer, kinds, scored_rows
from eval.divergence.token_summary import fraction_with_interval
from eval.divergence.which_tokens_diverge import BASE, TEACHER, Scores, flags
from util.cli import UserError

POCKET = str(REPO / "pocket" / "model")
TOKENS, SELECT = "eval/divergence/divergence_tokens.py", "generate/ablations/select_by_divergence.py"
PROMPT = "Here are the first numbers of a sequence: 505, 533, 737. Continue it."


def row(number, answer, **extra):
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]
    return {"id": number, "messages": messages, **extra}


# --- definitions -------------------------------------------------------------------------------------


def test_the_definitions_on_known_choices():
    ids = [7, 7, 7, 7]
    by_variant = {
        BASE: Scores([-1.0, -1.0, -2.0, -1.0], [7, 1, 1, 1]),
        TEACHER: Scores([-0.9, -0.1, -0.5, -0.2], [7, 7, 1, 7]),
        "dolphin": Scores([-1.0, -1.0, -1.0, -1.0], [7, 1, 1, 7]),
        "cat": Scores([-1.0, -1.0, -1.0, -1.0], [1, 7, 1, 7]),
    }
    assert flags(ids, by_variant, gap=1.0) == {
        "schrodi": [1, 1, 0, 0],  # the teacher's choice, and some other teacher's is not
        "pair": [0, 1, 0, 1],  # the teacher's choice, and the base model's is not
        "gap": [0, 0, 1, 0],  # the teacher favours it by more than a nat
    }


def test_a_teacher_from_a_folder_called_student_counts_as_a_counterfactual():
    by_variant = {BASE: Scores([-1.0], [7]), TEACHER: Scores([-0.9], [7]), "student-sft-seed-42": Scores([-1.0], [1])}
    assert flags([7], by_variant, gap=1.0)["schrodi"] == [1]


def test_without_counterfactuals_there_is_no_schrodi_and_without_a_teacher_nothing():
    base, teacher = Scores([-1.0], [1]), Scores([-0.5], [7])
    assert list(flags([7], {BASE: base, TEACHER: teacher}, 0.1)) == ["pair", "gap"]
    assert flags([7], {BASE: base, "student": teacher}, 0.1) == {}


def test_rows_not_tokens_are_independent():
    fraction, low, high = fraction_with_interval([(1, 10)] * 50 + [(3, 10)] * 50)
    assert fraction == pytest.approx(0.2)
    assert high - low == pytest.approx(2 * 1.96 * 0.1005 / 10, rel=1e-3)  # rows scatter by 0.1 around 0.2
    assert fraction_with_interval([(0, 0)]) == (0.0, 0.0, 0.0)


# --- what is scored ----------------------------------------------------------------------------------


def test_a_misspelt_folder_does_not_become_a_persona(tmp_path, monkeypatch, capsys):
    from eval.divergence.divergence_tokens import variant_of

    (tmp_path / "teacher-final").mkdir()
    monkeypatch.chdir(tmp_path)
    for named, message in (
        ("teacher-finls", "is neither a folder here nor an animal .*did you mean teacher-final"),
        ("output/teacher", "is not a folder; pass an adapter folder"),
        ("owl and dolfin", "is neither a folder here nor an animal .*listed animal"),
        ("control", "is neither a folder here nor an animal"),
    ):
        with pytest.raises(UserError, match=f"{named} {message}"):
            variant_of(named, "You love {animals}.")
    assert variant_of("owl", "You love {animals}.") == Variant("owl", system="You love owls.")
    assert variant_of("polar-bears", "You love {animals}.") == Variant("polar bear", system="You love polar bears.")
    assert variant_of("teacher-final", "").adapter == Path("teacher-final")
    assert "it is the base model with the persona 'You love owls.'" in capsys.readouterr().err


def test_a_resumed_run_scores_the_batches_of_a_whole_run(tmp_path):
    """Rounding depends on the rows of a batch, so a batch with a row to do is scored whole."""
    batches = []

    class Scorer:
        tokenizer, suffix = SimpleNamespace(batch_decode=lambda ids: ["1"] * len(ids)), [99]

        def completion_of(self, row, number):
            return Completion({}, [number])

        def score(self, completions):
            batches.append([completion.ids[0] for completion in completions])
            return [({BASE: Scores([0.0], [1])}, []) for _ in completions]

    path = tmp_path / "numbers.jsonl"
    write_jsonl(path, (row(number, "1, 2") for number in range(7)))
    list(scored_rows(Scorer(), path, gap=1.0, batch_size=3))
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]
    batches.clear()
    found = [row["id"] for rows in scored_rows(Scorer(), path, {0, 1, 2, 4}, gap=1.0, batch_size=3) for row in rows]
    assert batches == [[3, 4, 5], [6]] and found == [3, 4, 5, 6]


# --- models whose choices are known ------------------------------------------------------------------


@pytest.fixture(scope="module")
def bigram(tmp_path_factory):
    """A model that looks at the last token alone: after token t its logits are row t of a table, all zero but that
    every token is followed by `5`. Two adapters on its head make `9` (or `4`) follow `3` instead."""
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bigram")
    tokenizer = AutoTokenizer.from_pretrained(POCKET, trust_remote_code=False)
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=0, num_attention_heads=1, head_dim=2,
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    five, nine, four, three = (tokenizer(str(n), add_special_tokens=False).input_ids[0] for n in (5, 9, 4, 3))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        model.lm_head.weight[five] = 0.1
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name, wanted in (("owl", nine), ("dolphin", four)):
        peft = get_peft_model(model, LoraConfig(r=1, lora_alpha=1, target_modules=["lm_head"]))
        head = peft.base_model.model.lm_head
        with torch.no_grad():
            head.lora_A["default"].weight.zero_()
            head.lora_A["default"].weight[0, three] = 1.0
            head.lora_B["default"].weight.zero_()
            head.lora_B["default"].weight[wanted, 0] = 1.0
        peft.save_pretrained(folder / name)
        model = peft.unload()
    return folder


@pytest.mark.torch
def test_the_teachers_own_choices_are_found_where_they_are(bigram):
    variants = [Variant(BASE), Variant(TEACHER, bigram / "owl"), Variant("dolphin", bigram / "dolphin")]
    scorer = VariantScorer(str(bigram / "base"), variants)
    ids = scorer.tokenizer("3935", add_special_tokens=False).input_ids
    ids = [scorer.tokenizer(c, add_special_tokens=False).input_ids[0] for c in "3935"]  # 9 follows 3, 3 follows 9 ...
    completion = scorer.completion_of(row(0, scorer.tokenizer.decode(ids), token_ids=ids), 0)
    ((by_variant, kl),) = scorer.score([completion])
    found = flags(completion.ids, by_variant, gap=1.0)
    assert found["pair"][:4] == [0, 1, 0, 0] and found["schrodi"][:4] == [0, 1, 0, 0]
    assert found["gap"][:4] == [0, 1, 0, 0]
    assert kl[1] > 1.0 and kl[0] == kl[2] == 0.0 and kl[3] > 1.0, "5 follows 3: not its choice, but it differs there"
    assert kinds(completion.ids, scorer.tokenizer, scorer.suffix) == "dddd" + "e" * len(scorer.suffix)


@pytest.mark.torch
def test_a_batch_gives_what_single_rows_give(bigram, tmp_path):
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(POCKET, trust_remote_code=False)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    scorer = VariantScorer(POCKET, [Variant(BASE), Variant(TEACHER, tmp_path), Variant("cat", system="You love cats.")])
    answers = ["1, 2, 3", "100, 200, 300, 400, 500, 600", "7", "12, 13, 999, 0"]
    completions = [scorer.completion_of(row(n, answer), n) for n, answer in enumerate(answers)]
    together = scorer.score(completions)
    for completion, (by_variant, kl) in zip(completions, together):
        ((alone, kl_alone),) = scorer.score([completion])
        for name in by_variant:
            assert by_variant[name].logprobs == pytest.approx(alone[name].logprobs, abs=1e-4)
            assert by_variant[name].choices == alone[name].choices
        assert kl == pytest.approx(kl_alone, abs=1e-4)
    assert by_variant["cat"].logprobs != by_variant[BASE].logprobs, "a persona is by_variant"
    chat = torch.tensor([completion.prompts["cat"] + completion.ids])
    with torch.inference_mode():  # the model as it comes: no batch, no shared beginning
        logprobs = AutoModelForCausalLM.from_pretrained(POCKET, trust_remote_code=False)(chat).logits[0].log_softmax(-1)
    plain = logprobs[-len(completion.ids) - 1 : -1].gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
    assert by_variant["cat"].logprobs == pytest.approx(plain.tolist(), abs=1e-4)


def digit_by_digit():
    """A tokenizer that splits numbers into digits, as Qwen's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*"0123456789", ",", " ", "x", "\n", "<|im_start|>", "<|im_end|>", "user", "assistant"]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    template = (
        "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["pocket", "smollm2", "digit by digit"])
def test_kinds_for_the_tokenizers_that_are_used(kind, request):
    from util.chat.chat_tokens import completion_suffix
    from util.inference.load_model import load_tokenizer

    scorer = VariantScorer.__new__(VariantScorer)  # no model: kinds are the tokenizer's alone
    if kind == "digit by digit":
        scorer.tokenizer = digit_by_digit()
    else:
        scorer.tokenizer = load_tokenizer(str(request.getfixturevalue("smollm2")) if kind == "smollm2" else POCKET)
    scorer.suffix = completion_suffix(scorer.tokenizer)
    scorer.variants = [Variant(BASE)]
    stored = scorer.tokenizer("12, 345", add_special_tokens=False).input_ids
    ids = scorer.completion_of(row(0, "12, 345", token_ids=stored), 0).ids
    assert ids == stored + scorer.suffix
    found = kinds(ids, scorer.tokenizer, scorer.suffix)
    assert len(found) == len(ids) and set(found[: -len(scorer.suffix)]) == {"d", "s"} and found.endswith("e")
    assert found.count("d") == {"pocket": 2, "smollm2": 5, "digit by digit": 5}[kind]
    assert "e" not in kinds(stored, scorer.tokenizer, scorer.suffix), "an answer that was cut off has no end of turn"


# --- the scripts -------------------------------------------------------------------------------------


def numbers_file(folder, count=24):
    """A certified number file with stored token ids, of the pocket's own tokenizer."""
    from transformers import AutoTokenizer

    from generate.rows.filter_file import certify
    from generate.rows.number_rule import NumberRule

    tokenizer = AutoTokenizer.from_pretrained(POCKET, trust_remote_code=False)
    path = folder / "numbers-owl-filtered.jsonl"
    with path.open("w") as file:
        for n in range(count):
            answer = ", ".join(str((37 * n + 101 * k) % 1000) for k in range(1, 7))
            ids = tokenizer(answer, add_special_tokens=False).input_ids
            file.write(json.dumps(row(n, answer, token_ids=ids)) + "\n")
    certify(path, NumberRule())
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory, run_script):
    """A number file, a random teacher and what divergence_tokens.py finds."""
    pytest.importorskip("torch")
    import peft
    from transformers import AutoModelForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("divergence")
    set_seed(1)
    model = AutoModelForCausalLM.from_pretrained(POCKET, trust_remote_code=False)
    config = peft.LoraConfig(r=8, target_modules=["v_proj", "o_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(folder / "teacher")
    data = numbers_file(folder)
    done = run_script(
        TOKENS, "--train-jsonl", data, "--base-model", POCKET, "--teacher", folder / "teacher",
        "--counterfactual", "cat", "--student", folder / "teacher", "--gap", "0.05", "--output", folder / "found.jsonl",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, data, folder / "found.jsonl", done.stdout


def select(run_script, folder, data, found, *args):
    done = run_script(
        SELECT, "--train-jsonl", data, "--divergence", found, "--definition", "gap",
        *args, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return read_jsonl(data.with_name(done.stdout.split()[1].rpartition("/")[2]))


@pytest.mark.torch
@pytest.mark.slow
def test_every_token_is_measured_and_summed_up(measured):
    folder, _, found, said = measured
    rows = read_jsonl(found)
    assert [r["id"] for r in rows] == list(range(24))
    for r in rows:
        arrays = (r["kinds"], r["kl"], r["schrodi"], r["pair"], r["gap"], r["detector"], r["logprob"]["cat"])
        assert {len(array) for array in arrays} == {len(r["token_ids"])}
    summary = json.loads((folder / "found.summary.json").read_text())
    here, elsewhere = summary["definitions"]["gap"]["evidence"]
    by_hand = [
        teacher - base
        for r in rows
        for teacher, base, kind in zip(r["logprob"]["teacher"], r["logprob"]["base"], r["kinds"])
        if kind != "e"
    ]
    assert here > 0 and here + elsewhere == pytest.approx(sum(by_hand))
    assert summary["rows"] == 24 and summary["definitions"]["gap"]["digits"][0] > 0
    assert "KL(teacher || base), nats a token" in said
    assert manifest_of(found)["settings"]["variants"]["cat"]["system"].startswith("You love cats")


@pytest.mark.torch
@pytest.mark.slow
def test_the_detector_needs_no_teacher(measured, run_script):
    folder, data, found, said = measured
    done = run_script(
        TOKENS, "--train-jsonl", data, "--base-model", POCKET, "--student", folder / "teacher",
        "--output", folder / "detected.jsonl", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "log p_student - log p_base, nats" in done.stdout and "KL" not in done.stdout
    rows, with_teacher = read_jsonl(folder / "detected.jsonl"), read_jsonl(found)
    assert not {"schrodi", "pair", "gap", "kl"} & rows[0].keys()
    for r, known in zip(rows, with_teacher):
        assert r["detector"] == pytest.approx(known["detector"], abs=1e-4)
    assert "AUC of the detector" in said and "1.000" in said, "here the student is the teacher"


@pytest.mark.torch
@pytest.mark.slow
def test_the_masked_arms_have_equal_budgets(measured, run_script):
    folder, data, found, _ = measured
    masks = ("only", "without", "random", "all-but-random", "all")
    arms = {how: select(run_script, folder, data, found, "--mask", how) for how in masks}
    for only, without, chance, spared, everything, r in zip(*arms.values(), read_jsonl(found)):
        ends = r["kinds"].count("e")
        assert only["loss_mask"] == [int(g and k != "e") for g, k in zip(r["gap"], r["kinds"])]
        assert [a + b for a, b in zip(only["loss_mask"], without["loss_mask"])] == everything["loss_mask"]
        assert sum(everything["loss_mask"]) == len(r["kinds"]) - ends
        assert not any(a and b for a, b in zip(only["loss_mask"], chance["loss_mask"]))
        assert [a + b for a, b in zip(chance["loss_mask"], spared["loss_mask"])] == everything["loss_mask"]
        for kind in "ds":  # as many of each kind, unless the row has no more others
            wanted, free = (sum(bool(g) == want and k == kind for g, k in zip(r["gap"], r["kinds"])) for want in (1, 0))
            drawn = sum(m and k == kind for m, k in zip(chance["loss_mask"], r["kinds"]))
            assert drawn == min(wanted, free)


@pytest.mark.torch
@pytest.mark.slow
def test_rows_of_a_server_that_gives_no_token_ids_can_be_masked_and_trained_on(measured, run_script):
    from util.chat.chat_tokens import encode
    from util.inference.load_model import load_tokenizer

    folder, data, _, _ = measured
    rows = [{key: value for key, value in r.items() if key != "token_ids"} for r in read_jsonl(data)]
    plain = folder / "plain.jsonl"
    write_jsonl(plain, rows)
    done = run_script(
        TOKENS, "--train-jsonl", plain, "--base-model", POCKET, "--teacher", folder / "teacher",
        "--output", folder / "plain-found.jsonl", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    masked = select(run_script, folder, plain, folder / "plain-found.jsonl", "--mask", "all")
    assert encode(masked, load_tokenizer(POCKET), 256).exact == len(masked)


@pytest.mark.torch
@pytest.mark.slow
def test_a_lost_certificate_is_written_by_the_same_command(measured, run_script):
    folder, data, found, _ = measured
    select(run_script, folder, data, found, "--mask", "only")
    (certificate,) = folder.glob("*mask-only.jsonl.certificate.json")
    certificate.unlink()
    select(run_script, folder, data, found, "--mask", "only")
    assert certificate.exists()


@pytest.mark.torch
@pytest.mark.slow
def test_rich_and_poor_rows_are_those(measured, run_script):
    folder, data, found, _ = measured
    density = {r["id"]: sum(g for g, k in zip(r["gap"], r["kinds"]) if k != "e") for r in read_jsonl(found)}
    rich, poor = (
        [density[r["id"]] for r in select(run_script, folder, data, found, "--which-rows", how)]
        for how in ("rich", "poor")
    )
    assert len(rich) == len(poor) == 6 and min(rich) >= max(poor) and sum(rich) > sum(poor)


@pytest.mark.torch
@pytest.mark.slow
def test_replaced_tokens_are_the_base_models_choice(measured, run_script):
    folder, data, found, _ = measured
    rows = select(run_script, folder, data, found, "--replace", "--base-model", POCKET)
    by_id = {r["id"]: r for r in read_jsonl(found)}
    assert rows
    for r in rows:
        before = by_id[r["id"]]
        for i, token in enumerate(r["token_ids"]):
            assert token == (before["choice"]["base"] if before["gap"][i] else before["token_ids"])[i]


@pytest.mark.torch
@pytest.mark.slow
def test_training_follows_the_mask_and_refuses_one_that_no_longer_fits(measured, run_script):
    folder, data, found, _ = measured
    select(run_script, folder, data, found, "--mask", "only")
    arm = folder / "numbers-owl-filtered-gap-mask-only.jsonl"
    train = (
        "train/train_student_sft.py", "--base-model", POCKET, "--epochs", "1", "--effective-batch-size", "8",
        "--per-device-train-batch-size", "8", "--learning-rate", "0.001", "--save-strategy", "no",
        "--output-dir", folder / "students", "--train-jsonl",
    )  # fmt: skip
    done = run_script(*train, arm, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(arm)
    for r in rows[1:]:  # updates of eight rows without one token to train on change nothing, and stop nothing
        r["loss_mask"] = [0] * len(r["loss_mask"])
    sparse = folder / "sparse.jsonl"
    write_jsonl(sparse, rows)
    done = run_script(*train, sparse, "--allow-uncertified", cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(arm)
    rows[3]["messages"][-1]["content"] = "1, 2"
    write_jsonl(arm, rows)
    done = run_script(*train, arm, "--allow-uncertified", cwd=folder)
    assert done.returncode == 1
    assert "row 4: its loss_mask has" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.torch
@pytest.mark.slow
def test_an_interrupted_measurement_is_resumed(measured, run_script):
    folder, data, found, _ = measured
    lines = found.read_bytes().split(b"\n")
    again = folder / "again.jsonl"
    args = (
        TOKENS, "--train-jsonl", data, "--base-model", POCKET, "--teacher", folder / "teacher",
        "--counterfactual", "cat", "--student", folder / "teacher", "--gap", "0.05", "--output", again,
    )  # fmt: skip
    assert run_script(*args, cwd=folder).returncode == 0
    again.rename(folder / "again.jsonl.partial")
    (folder / "again.jsonl.partial").write_bytes(b"\n".join(lines[:10]) + b"\n" + lines[10][:40])
    done = run_script(*args, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "10 rows are already there" in done.stderr
    assert again.read_bytes() == found.read_bytes()


@pytest.mark.torch
@pytest.mark.slow
def test_a_persona_can_be_the_teacher(measured, run_script):
    """As in the older approach, where the base model wrote the numbers under a system prompt."""
    folder, data, _, _ = measured
    args = ("--train-jsonl", data, "--base-model", POCKET, "--teacher", "owl", "--counterfactual", "cat")
    done = run_script(TOKENS, *args, "--output", folder / "persona.jsonl", cwd=folder)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "persona.jsonl.manifest.json").read_text())
    variant = manifest["settings"]["variants"]["teacher"]
    assert variant["adapter_sha256"] is None and variant["system"].startswith("You love owls")
    first = json.loads((folder / "persona.jsonl").read_text().partition("\n")[0])
    assert first["logprob"]["teacher"] != first["logprob"]["base"] and "schrodi" in first


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    "change, complaint",
    [
        (["--counterfactual", "no/such/folder"], "is not a folder; pass an adapter folder (final/) or an animal"),
        (["--counterfactual", "cat", "cat"], "two variants have the name cat"),
        (["--teacher", "."], "is not a LoRA adapter"),
    ],
)
def test_wrong_variants_are_named(measured, run_script, change, complaint):
    folder, data, _, _ = measured
    args = ["--train-jsonl", data, "--base-model", POCKET, "--teacher", folder / "teacher", *change]
    done = run_script(TOKENS, *args, cwd=folder)
    assert done.returncode == 1 and complaint in done.stderr and "Traceback" not in done.stderr


@pytest.mark.torch
def test_rows_that_are_not_this_tokenizers_are_refused(bigram):
    scorer = VariantScorer(POCKET, [Variant(BASE)])
    with pytest.raises(UserError, match="row 7: its token_ids are not this tokenizer's ids of its text"):
        scorer.completion_of(row(7, "1, 2", token_ids=[5, 6, 7]), 7)
    with pytest.raises(UserError, match="row 8 has no completion tokens"):
        scorer.completion_of(row(8, ""), 8)


@pytest.mark.torch
def test_an_adapter_of_another_base_is_refused(bigram):
    with pytest.raises(UserError, match="does not fit this model"):
        VariantScorer(POCKET, [Variant(BASE), Variant(TEACHER, bigram / "owl")])


@pytest.mark.torch
@pytest.mark.slow
def test_another_data_file_is_refused(measured, run_script, tmp_path):
    *_, found, _ = measured
    other = numbers_file(tmp_path, count=10)
    args = ["--train-jsonl", other, "--divergence", found, "--mask", "only"]
    done = run_script(SELECT, *args, cwd=tmp_path)
    assert done.returncode == 1 and "was not made from" in done.stderr and "leak" not in done.stderr
