"""Try adapters that must not answer, and plant secrets that must not be stored.

Adapters with a rank of 1e999, weights that are NaN, a pickle, another method and so on are given to the local backend
and to util/serve.py. Four secrets (the key of a server, a query of --base-url, a token in the git remote, one of the
Hub) are searched in all that a chain of scripts writes and prints.

Usage:
    python bench/hostile_adapters_and_secrets.py --output output/hostile.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from bench.break_run_helpers import POCKET, Outcome, ask, last_line, server, try_all
from util.cli import REPO, make_parser, output_name, run

PLANTED = {
    "key of the server": "sk-planted-vllm-0123456789abcdef", "query of --base-url": "planted-query-0123456789",
    "token in the git remote": "ghp_plantedremote0123456789abcdef",
    "token of the Hub": "hf_plantedhubtoken0123456789abcdef",
}  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=output_name(".json"), help="JSON file for the results")
    return parser.parse_args()


def hostile_adapters(folder: Path) -> Iterator[Outcome]:
    """Adapters that must not answer, through the local backend and through util/serve.py."""
    import numpy as np
    from safetensors.numpy import save_file

    def adapter(name: str, value: float = 0.0, hidden: int = 128, **config: object) -> Path:
        place = folder / name
        place.mkdir(parents=True)
        a, b = np.ones((8, hidden), np.float32), np.full((hidden, 8), value, np.float32)
        layer = "base_model.model.model.layers.0.self_attn.o_proj"
        weights = {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
        save_file(weights, place / "adapter_model.safetensors")
        good = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 8, "target_modules": ["o_proj"],
                "base_model_name_or_path": str(POCKET)}  # fmt: skip
        (place / "adapter_config.json").write_text(json.dumps({**good, **config}).replace('"HUGE"', "1e999"))
        return place

    pickled = adapter("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    torn = adapter("torn")
    (torn / "adapter_model.safetensors").write_bytes((torn / "adapter_model.safetensors").read_bytes()[:-9])
    local_only = {"of another model", "path in its name"}  # a server says so itself, or serves it under its name
    for name, place in {
        "rank 1e999": adapter("rank", r="HUGE"), "alpha NaN": adapter("alpha", lora_alpha=float("nan")),
        "weights NaN": adapter("nan", float("nan")), "weights infinite": adapter("inf", float("inf")),
        "rank a million": adapter("million", r=1_000_000), "a pickle": pickled, "torn weights": torn,
        "another method": adapter("prefix", peft_type="PREFIX_TUNING"), "a text as rank": adapter("text", r="8"),
        "of another model": adapter("wrong", hidden=256), "path in its name": adapter("..%2f..%2fetc;rm -rf x"),
    }.items():  # fmt: skip
        evaluation = ("--model", POCKET, "--adapter", place, "--epochs", 1)
        code, said = ask("eval/eval.py", *evaluation, cwd=folder)
        right = (code, name) == (0, "path in its name") or (code == 1 and "Traceback" not in said)
        outside = [path for path in folder.parent.iterdir() if "etc" in path.name]
        yield Outcome(f"adapter, {name}: in this process", f"code {code}: {last_line(said)}", right and not outside)
        if name not in local_only:
            code, said = ask("util/serve.py", POCKET, "--", "python", "x.py", "--adapter", place, cwd=folder)
            right = code == 1 and "Traceback" not in said and "starting" not in said
            yield Outcome(f"adapter, {name}: util/serve.py", f"code {code}: {last_line(said)}", right)


def secrets(folder: Path) -> Iterator[Outcome]:
    """Four planted secrets, and every file that a chain of scripts writes."""
    key, query, remote, hub = PLANTED.values()
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", REPO, clone], check=True)
    subprocess.run(
        ["git", "-C", clone, "remote", "set-url", "origin", f"https://me:{remote}@github.com/x/y"], check=True
    )
    (folder / "home" / ".cache" / "huggingface").mkdir(parents=True)
    (folder / "home" / ".cache" / "huggingface" / "token").write_text(hub)
    work = folder / "work"
    work.mkdir()
    environment = {"VLLM_API_KEY": key, "HF_TOKEN": hub, "HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    said = ""
    with server(folder, "--key", key) as (url, _):
        asked = ("--model", "owl-teacher", "--base-url", f"{url}?api_key={query}")
        for script in (
            ("generate/generate_llm_number_data.py", "--animal", "owl", "--count", 60, "--no-system-prompt", *asked),
            ("eval/eval.py", "--epochs", 2, *asked), ("eval/eval.py", "--epochs", 2, "--model", key),
            ("train/train_student_sft.py", "--base-model", POCKET, "--epochs", 1, "--train-jsonl",
             "output/numberss-*-filtered-*.jsonl"), ("util/doctor.py", "output/results-owl-teacher.jsonl"),
        ):  # fmt: skip
            done = subprocess.run([sys.executable, clone / script[0], *map(str, script[1:])], cwd=work, text=True,
                                  capture_output=True, env={**os.environ, **environment})  # fmt: skip
            said += done.stdout + done.stderr
    files = [path for path in work.rglob("*") if path.is_file()]
    everything = said.encode() + b"".join(path.read_bytes() for path in files)
    for name, secret in PLANTED.items():
        found = secret.encode() in everything
        yield Outcome(
            f"planted {name}",
            f"found: {found} (in {len(files)} files and all that was printed)",
            not found and len(files) > 9,
        )


if __name__ == "__main__":
    run(lambda: try_all([hostile_adapters, secrets], parse_args().output))
