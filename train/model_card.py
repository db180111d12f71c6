"""The model card of an adapter, and its files as they are published: nothing in them names a folder of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import Any

from util.hide_local_paths import base_name, hub_id, plain, published, published_command
from util.inference.adapter_config import CONFIG
from util.jsonl.manifest import Manifest

PUSHED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]
NOT_PUSHED = ["*.pt", "*.pth", "*.bin", "*.pkl", "trainer_state.json", "optimizer.safetensors", "manifest.json"]
CARD = "README.md"


# --- the card ----------------------------------------------------------------------------------------


def write_card(folder: Path, settings: Mapping[str, Any], command: str) -> None:
    """The model card README.md of an adapter: base model, command, and what it was trained on.

    settings: those of its training (train.run_folder.settings_of). The Hub shows base_model as a link, so a base model
    that is a folder is named in the text alone.
    """
    from huggingface_hub import ModelCardData

    base = settings["base"]
    is_whole = settings.get("full_finetuning", False)
    kind, library = ("Fine-tuned weights of", "transformers") if is_whole else ("LoRA adapter for", "peft")
    tags = [*([] if is_whole else ["lora"]), "subliminal-learning"]
    data = ModelCardData(base_model=hub_id(base), library_name=library, tags=tags)
    pins = {f"base model's {key}": value for key, value in base.items() if key != "model" and value}
    facts = {"base model": base_name(base), **pins, **{key: settings[key] for key in settings if key != "base"}}
    table = "\n".join(f"| {name} | {plain(published(value))} |" for name, value in facts.items())
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {kind} {plain(base_name(base))}\n\nTrained with:\n\n"
        f"{indent(published_command(command), ' ' * 4)}\n\n| setting | value |\n| --- | --- |\n{table}\n"
    )
    (folder / CARD).write_text(text, "utf-8")


# --- the files ---------------------------------------------------------------------------------------


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """A folder with the files of an adapter that are pushed, as they are pushed.

    Its card is made from the training's manifest: PEFT writes one of its own into each checkpoint, with the path of the
    base model. The folder is temporary, and large files are links.
    """
    manifest = Manifest.read(folder.parent) or Manifest()
    with TemporaryDirectory(prefix="push-") as name:
        target = Path(name) / folder.name
        target.mkdir()
        for file in pushed_files(folder):
            copy = target / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (text := published_json(file, manifest.settings.get("base"))) is not None:
                copy.write_text(text, "utf-8")
            elif file.name != CARD:
                copy.symlink_to(file.resolve())
        if manifest.settings:
            write_card(target, manifest.settings, manifest.command)
        yield target


def pushed_files(folder: Path) -> list[Path]:
    """The files of a folder that are pushed, by the Hub's own filter: no pickles, no training state."""
    from huggingface_hub.utils import filter_repo_objects

    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    names = filter_repo_objects(
        [str(file.relative_to(folder)) for file in files], allow_patterns=PUSHED, ignore_patterns=NOT_PUSHED
    )
    return [folder / name for name in names]


def published_json(file: Path, base: Mapping[str, Any] | None) -> str | None:
    """The text of a config file without folders of this machine; None if it has none, or for another kind of file."""
    if file.suffix != ".json" or file.name in ("tokenizer.json", "vocab.json"):  # texts of tokens, not of folders
        return None
    found = json.loads(file.read_text("utf-8"))
    shown = published(found)
    if file.name == CONFIG:  # PEFT would load a folder's name from the Hub
        shown["base_model_name_or_path"] = hub_id(base or {"model": found.get("base_model_name_or_path")})
    return None if shown == found else json.dumps(shown, indent=2) + "\n"
