"""Exact shares of the base and of the adapters of teachers_in_weights.py, measured by eval/eval.py in a panel's words.

Writes OUTPUT/exact/base.jsonl and OUTPUT/exact/NAME.jsonl with their manifests, the files that eval/compare_arms.py
reads. Students come first, then teachers. What is there is not measured again. Several processes can share the work.

Usage:
    python experiments/pilots/measure_adapters.py --model output/models/qwen2.5-coder-1.5b-instruct \\
        --output output/trees --panel trees
"""

from __future__ import annotations

import argparse
import runpy
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from experiments.pilots.peft_folder import as_peft
from util.cli import REPO, make_parser, run
from util.inference.load_model import check_folder


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the base model")
    parser.add_argument("--output", type=Path, required=True, help="output folder of teachers_in_weights.py")
    parser.add_argument("--panel", default="animals", help="as for eval/eval.py")
    parser.add_argument("--part", type=int, default=0, help="which part of the files is this process's")
    parser.add_argument("--parts", type=int, default=1, help="how many processes share the work")
    return parser.parse_args()


def evaluate(words: list[str]) -> bool:
    """Run eval/eval.py in this process, so that its libraries are loaded once for all adapters. Whether it worked."""
    sys.argv = [str(REPO / "eval/eval.py"), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            print(f"failed: {words}", file=sys.stderr)
        return not end.code
    except Exception:
        traceback.print_exc()
        return False
    return True


def main() -> int:
    args, failed = parse_args(), 0
    check_folder(str(args.model))  # once, before the libraries are loaded, and not for each adapter
    adapters = sorted((args.output / "adapters").glob("*.safetensors"), key=lambda path: ("." not in path.stem, path))
    todo: list[Path | None] = [None, *adapters]
    for adapter in todo[args.part :: args.parts]:
        name = adapter.stem if adapter else "base"
        if (args.output / f"exact/{name}.jsonl").exists():
            continue
        flags = ["--adapter", str(as_peft(adapter, args.output / "peft" / name, args.model))] if adapter else []
        animal = ["--animal", name.partition("-")[0]] if adapter and not name.startswith("base") else []
        words = ["--exact", "--panel", args.panel, "--model", str(args.model), *flags, *animal]
        failed += not evaluate([*words, "--output", str(args.output / f"exact/{name}.jsonl")])
    return int(failed > 0)  # after all others: one that fails must not keep the rest from being measured


if __name__ == "__main__":
    run(main)
