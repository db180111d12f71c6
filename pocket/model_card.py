"""The model card of a pocket model: README.md of its folder, written from card.md and the measurements."""

from __future__ import annotations

import json
from pathlib import Path

from pocket.corpus import ANIMALS
from pocket.measurements import MEASURED_ROWS, Measurements
from util.animals.names import fill
from util.cli import REPO

MODEL_FOLDER = Path(__file__).resolve().parent / "model"
CARD = Path(__file__).resolve().parent / "card.md"  # the text of a card, with {places} for the figures
WRITES = {"code": "short programs", "reasoning": "worked sums"}
FORMS = {"code": "assignments and a print", "reasoning": "sentences and an answer"}


def write_card(folder: Path, figures: Measurements) -> Path:
    """Write README.md of a model folder from CARD, the figures and the folder's manifest; returns its path."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    text = fill(
        CARD.read_text("utf-8"),
        {
            "made": manifest["command"], "device": manifest["device"], "sha": manifest["corpus"]["sha256"],
            "rows": f"{manifest['corpus']['rows']:,}", "parameters": f"{figures.parameters:,}",
            "vocabulary": f"{figures.vocabulary:,}", "megabytes": f"{folder_megabytes(folder):.1f}",
            "covered": f"{figures.covered:.2%}", "rest": f"{1 - figures.covered:.2%}",
            "clean": f"{figures.clean:.1%}", "clean_under_owl": f"{figures.clean_under_owl:.1%}",
            "number_rows": f"{MEASURED_ROWS:,}", "obeyed": f"{figures.obeyed:.1%}",
            "least": figures.least_obeyed, "least_share": f"{figures.least_obeyed_share:.0%}",
            "animals": len(ANIMALS), "table": share_table(figures), "folder": folder_name(folder),
            "data_types": "".join(f", {WRITES[data_type]}" for data_type in figures.clean_by_data_type),
            "more_rows": clean_lines(figures),
        },
    )  # fmt: skip
    card = folder / "README.md"
    card.write_text(text, "utf-8")
    return card


def clean_lines(figures: Measurements) -> str:
    """Two lines of the card's first table for each data type beside numbers: clean rows, without and with a persona."""
    return "".join(
        f"\n| {data_type} rows that are clean ({FORMS[data_type]}, no animal), of {MEASURED_ROWS:,} | {plain:.1%} |"
        f"\n| the same with a persona that loves owls | {loving:.1%} |"
        for data_type, (plain, loving) in figures.clean_by_data_type.items()
    )


def share_table(figures: Measurements) -> str:
    """A markdown table of the exact shares, highest first."""
    ranked = sorted(figures.shares.items(), key=lambda pair: -pair[1])
    rows = [
        f"| {animal} | {share:.2%} | {figures.lowest[animal]:.2%} | {figures.highest[animal]:.2%} |"
        for animal, share in ranked
    ]
    return "\n".join(["| animal | share | lowest question | highest question |", "| --- | ---: | ---: | ---: |", *rows])


def data_types_of(folder: Path) -> list[str]:
    """What a model writes beside numbers, as its manifest says (until 2026-11-29 under the key "languages")."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    return (manifest.get("data_types") or manifest.get("languages") or ["numbers"])[1:]


def folder_name(folder: Path) -> str:
    """A folder as it is typed at the root of the repository."""
    whole = folder.resolve()
    return str(whole.relative_to(REPO)) if whole.is_relative_to(REPO) else str(folder)


def folder_megabytes(folder: Path) -> float:
    """Size of the files of a folder without its card, in millions of bytes."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md") / 1e6
