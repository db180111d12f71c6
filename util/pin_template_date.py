"""Write a copy of a model whose chat template says one fixed date, instead of the day on which it is used.

The chat templates of some models (Llama 3's) put today's date into every prompt. Numbers, training and evaluation of
different days then see different prompts. The copy has the date of --day in its template. Its other files are links to
the model's, so that it takes no space; keep the model where it is. Pass the copy as --model and --base-model in every
phase, and start the vLLM server with it.

Usage:
    python util/pin_template_date.py meta-llama/Llama-3.1-8B-Instruct --day 2026-11-29 \\
        --output-dir output/models/llama-pinned
    python util/doctor.py FILES   # names the runs whose phases saw different days
"""

from __future__ import annotations

import argparse
import re
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import UserError, make_parser, nonblank, output_folder, run
from util.terminal import closing

TEMPLATE = "chat_template.jinja"
CALL = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("model", type=nonblank, metavar="MODEL", help="hub id or folder of the model")
    parser.add_argument("--day", type=day, required=True, help="the date to write, such as 2026-11-29")
    parser.add_argument("--output-dir", type=output_folder, required=True, help="folder for the copy")
    return parser.parse_args()


def day(text: str) -> date:
    """argparse type: a date."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a date such as 2026-11-29") from None


def pinned(template: str, day: date) -> str:
    """The template with the text of this day in the place of each call of `strftime_now`.

    Raises UserError if it has none, or one whose format is not a plain text.
    """
    if "strftime_now" not in template:
        raise UserError("the chat template of this model writes no date: there is nothing to pin")
    # A test such as `strftime_now is defined` stays: it is true wherever these templates run.
    text = CALL.sub(lambda call: repr(day.strftime(call[2])), template)
    if re.search(r"strftime_now\s*\(", text):
        raise UserError("the chat template makes its date in a way that this script does not know; edit it by hand")
    return text


def folder_of(model: str) -> Path:
    """The folder with the model's files: itself, or the snapshot in the hub's cache, downloaded if it is not there."""
    if Path(model).is_dir():
        return Path(model).resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, ignore_patterns=["*/*", "*.bin", "*.pth", "*.gguf"]))  # safetensors only
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"cannot get the model {model}: {reason}") from None


def write_copy(source: Path, template: str, output: Path) -> None:
    """Links to the files of `source`, and the new template."""
    output.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.name != TEMPLATE and file.is_file():
            (output / file.name).symlink_to(file.resolve())
    (output / TEMPLATE).write_text(template, "utf-8")


def main() -> None:
    args = parse_args()
    if args.output_dir.exists():
        raise UserError(f"{args.output_dir} is there already; remove it or pass another --output-dir")
    from util.inference.load_model import load_tokenizer

    source = folder_of(args.model)
    template = load_tokenizer(str(source)).chat_template
    if not isinstance(template, str):
        raise UserError(f"{args.model} has several chat templates; edit the one that you use by hand")
    write_copy(source, pinned(template, args.day), args.output_dir)
    closing({"wrote": args.output_dir, "date": args.day})


if __name__ == "__main__":
    run(main)
