"""The model card of an adapter, and its files as they are published: nothing in them names a folder of this machine."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import Any

from util.cli import REPO
from util.inference.adapter_config import CONFIG
from util.inference.interface import model_name
from util.jsonl.manifest import Manifest

PUSHED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]
NOT_PUSHED = ["*.pt", "*.pth", "*.bin", "*.pkl", "trainer_state.json", "manifest.json"]
CARD = "README.md"
OWNER_AND_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
CACHED = re.compile(r"/models--([^/]+)--([^/]+)/snapshots/[0-9a-f]{40}$")  # a folder of the Hub's own cache

# --- the base model ----------------------------------------------------------------------------------


def hub_id(base: Mapping[str, Any]) -> str | None:
    """The Hub id of a base model, for others to load; None for a folder of this machine, which may be called like one.

    base: what a manifest says of it (util.inference.load_model.model_facts); only folders have "files_sha256".
    """
    model = str(base["model"])
    if found := CACHED.search(str(Path(model).resolve())):
        return f"{found[1]}/{found[2]}"
    is_id = "files_sha256" not in base and not Path(model).exists() and OWNER_AND_NAME.fullmatch(model)
    return model if is_id else None


def base_name(base: Mapping[str, Any]) -> str:
    """A base model as a card names it: its Hub id, or what its folder is called."""
    return hub_id(base) or published(model_name(str(base["model"])))


# --- the card ----------------------------------------------------------------------------------------


def write_card(folder: Path, settings: Mapping[str, Any], command: str) -> None:
    """The model card README.md of an adapter: base model, command, and what it was trained on.

    settings: those of its training (train.run_folder.settings_of). The Hub shows base_model as a link, so a base model
    that is a folder is named in the text alone.
    """
    from huggingface_hub import ModelCardData

    base = settings["base"]
    data = ModelCardData(base_model=hub_id(base), library_name="peft", tags=["lora", "subliminal-learning"])
    pins = {f"base model's {key}": value for key, value in base.items() if key != "model" and value}
    facts = {"base model": base_name(base), **pins, **{key: settings[key] for key in settings if key != "base"}}
    table = "\n".join(f"| {name} | {plain(published(value))} |" for name, value in facts.items())
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# LoRA adapter for {plain(base_name(base))}\n\nTrained with:\n\n"
        f"{indent(published_command(command), ' ' * 4)}\n\n| setting | value |\n| --- | --- |\n{table}\n"
    )
    (folder / CARD).write_text(text, "utf-8")


def plain(value: object) -> str:
    """The text escaped for a Markdown table: shown unchanged, on one line."""
    return re.sub(r"([\\`*\[\]|<>&])", r"\\\1", " ".join(str(value).split()))


def published_command(command: str) -> str:
    """A command without folders of this machine."""
    try:
        words = shlex.split(command)
    except ValueError:
        return published(command)
    parts = [word.partition("=") if word.startswith("-") else ("", "", word) for word in words]
    return shlex.join(flag + equals + published(value) for flag, equals, value in parts)


def published(value: Any) -> Any:
    """A value without folders of this machine: an absolute path becomes relative (to here or to the suite), or its last
    part. Lists and objects are walked through."""
    if isinstance(value, Mapping):
        return {key: published(part) for key, part in value.items()}
    if isinstance(value, list):
        return [published(part) for part in value]
    if not isinstance(value, str) or not value.startswith("/") or "\n" in value:
        return value
    path = Path(value)
    inside = next((place for place in (Path.cwd(), REPO) if path.is_relative_to(place)), path.parent)
    return str(path.relative_to(inside))


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
