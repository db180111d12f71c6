"""Pack the results of a rented machine into one file before it goes, or unpack that file elsewhere.

Packed are manifests, measures (results, comparisons, pages, tables, pictures), certified training rows with their
certificates, and final adapters. Left out are other rows (teacher data, unfiltered rows), checkpoints, W&B folders and
logs; what is left out is listed with its size. Every packed file has its SHA-256 in the pack, and unpacking checks it.
Unpacked, the folder has the same path, so that the commands of a report or a comparison run there as they ran here.

Usage:
    python util/take_home.py output --output results.tar.gz
    python util/take_home.py output/four_arms --no-adapters --output small.tar.gz
    python util/take_home.py --unpack results.tar.gz --output-dir elsewhere      # makes elsewhere/output
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import PARTIAL, UserError, input_file, make_parser, output_folder, output_name, run
from util.jsonl.filter_certificate import certificate_path
from util.jsonl.manifest import Manifest, now, provenance, sha256_file
from util.terminal import closing, say, table

CONTENTS = "contents.json"
MEASURES = (".json", ".csv", ".html", ".png", ".svg", ".pdf", ".txt", ".md", ".tsv")
MEASURING = ("eval", "divergence_tokens")
ADAPTER = "adapter_config.json"


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("output"), help="folder with the results")
    parser.add_argument("--output", type=output_name(".tar.gz"), default=Path("results.tar.gz"), help="file to write")
    parser.add_argument("--no-adapters", action="store_true", help="leave the adapters out")
    parser.add_argument("--unpack", type=input_file, metavar="FILE", help="unpack this file instead")
    parser.add_argument("--output-dir", type=output_folder, default=Path(), help="with --unpack: where to unpack")
    args = parser.parse_args()
    flag, folder = ("--output-dir", args.output_dir) if args.unpack else ("--output", args.output.parent)
    parser.check_writable(flag, folder)
    return args


# --- what is packed ------------------------------------------------------------------------------------


def left_out(path: Path, folder: Path, adapters: bool) -> str | None:
    """Why a file of `folder` is left out, as the name of a kind of files; None if it is packed."""
    inside = path.relative_to(folder).parts
    if path.is_symlink():
        return "links"
    if any(part.startswith("checkpoint-") for part in inside[:-1]):
        return "checkpoints"
    if "wandb" in inside[:-1]:
        return "W&B folders"
    if path.name.startswith(".") or path.name.endswith((PARTIAL, f"{PARTIAL}.manifest.json", ".lock", ".tmp", ".bak")):
        return "unfinished files and locks"
    if (path.parent / ADAPTER).is_file():
        return None if adapters else "adapters"
    if path.suffix == ".jsonl":
        manifest = Manifest.read(path)
        is_measure = manifest is None or manifest.script in ("", *MEASURING)
        return None if is_measure or certificate_path(path).is_file() else "rows without a certificate"
    return None if path.suffix in MEASURES else "logs and other files"


def sort_files(folder: Path, adapters: bool) -> tuple[list[Path], dict[str, list[Path]]]:
    """The files of a folder: those to pack, and by kind those that are left out."""
    packed: list[Path] = []
    out: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink()):
        kind = left_out(path, folder, adapters)
        (packed if kind is None else out.setdefault(kind, [])).append(path)
    return packed, out


def size(files: list[Path]) -> int:
    """The bytes of these files together."""
    return sum(path.lstat().st_size for path in files)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


# --- packing -------------------------------------------------------------------------------------------


def pack(folder: Path, output: Path, adapters: bool) -> dict[str, Any]:
    """Write the pack. Returns its table of contents. UserError if a file changes meanwhile."""
    files, out = sort_files(folder, adapters)
    if not files:
        raise UserError(f"{folder} has no results; pass the folder that the scripts wrote to")
    for path in out.get("links", []):
        if path.is_dir():
            say(f"warning: {path} is a link to a folder, which is not packed; pack it by itself")
    unfinished = output.with_name(output.name + PARTIAL)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        before = {path: last_change(path) for path in files}
        contents = {
            "made": now(), **provenance(),
            "files": {name_in_pack(path, folder): sha256_file(path) for path in files},
            "left_out": {kind: {"files": len(paths), "bytes": size(paths)} for kind, paths in out.items()},
        }  # fmt: skip
        write_tar(unfinished, contents, {name_in_pack(path, folder): path for path in files})
        for path in files:
            if last_change(path) != before[path]:
                raise changed_meanwhile(path)
        unfinished.replace(output)
    except FileNotFoundError as error:
        raise changed_meanwhile(Path(error.filename)) from None
    finally:
        unfinished.unlink(missing_ok=True)
    return contents


def write_tar(path: Path, contents: dict[str, Any], files: dict[str, Path]) -> None:
    """Write contents and files by their names in the pack."""
    with tarfile.open(path, "w:gz", compresslevel=6) as tar:
        text = json.dumps(contents, indent=2).encode()
        head = tarfile.TarInfo(CONTENTS)
        head.size = len(text)
        tar.addfile(head, io.BytesIO(text))
        for name, file in files.items():
            tar.add(file, name, recursive=False)


def last_change(path: Path) -> tuple[int, int]:
    """Size and time of the last change: reading a large adapter again would take much longer."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def changed_meanwhile(path: Path) -> UserError:
    return UserError(f"{path} changed while it was packed; wait until no run writes there, then pack again")


def name_in_pack(path: Path, folder: Path) -> str:
    """A file's name by the folder as it was given, as commands name it: output/four_arms/compare.json. A folder given
    from the root, or from above this one, has its own name alone: output/results.jsonl of /box/sl/output."""
    named = folder.parts
    if folder.is_absolute() or not named or ".." in named:
        named = ((folder if folder.is_symlink() else folder.resolve()).name,)
    return PurePosixPath(*named, *path.relative_to(folder).parts).as_posix()


# --- unpacking -----------------------------------------------------------------------------------------


def unpack(pack_file: Path, target: Path) -> int:
    """Write the files of a pack below `target`; each gets its name when its hash is right. Returns how many."""
    try:
        with tarfile.open(pack_file, "r:gz") as tar:
            head = tar.extractfile(tar.next() or CONTENTS)
            wanted = dict(json.load(head)["files"]) if head else {}
            count = len(wanted)
            for member in tar:
                if member.name in wanted and member.isfile():
                    write_checked(tar, member, target / inside(member.name), wanted.pop(member.name))
    except (tarfile.TarError, zlib.error, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{pack_file} is damaged, or no pack of util/take_home.py ({error}); copy it again") from None
    if wanted or not count:
        raise UserError(f"{pack_file} lacks {len(wanted)} of {count} files; copy it again")
    return count


def inside(name: str) -> PurePosixPath:
    """The name of a packed file. Raises ValueError if it would leave the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} would leave the folder")
    return path


def write_checked(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, sha256: str) -> None:
    """Write one file. A file that is there already is kept if it is the same, and refused otherwise."""
    if path.exists():
        if sha256_file(path) != sha256:
            raise UserError(f"{path} exists and is another file; choose an empty --output-dir")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + PARTIAL)
    source = tar.extractfile(member)
    with unfinished.open("wb") as file:
        shutil.copyfileobj(source, file)  # type: ignore[arg-type]
    if sha256_file(unfinished) != sha256:
        unfinished.unlink()
        raise ValueError(f"the hash of {member.name} is wrong")
    unfinished.replace(path)


def main() -> None:
    args = parse_args()
    if args.unpack:
        count = unpack(args.unpack, args.output_dir)
        closing({"wrote": args.output_dir, "files": f"{count:,}, every hash as it was packed"})
        return
    if not args.folder.is_dir():
        raise UserError(f"no folder {args.folder}; pass the folder that the scripts wrote to")
    contents = pack(args.folder, args.output, not args.no_adapters)
    kinds = [[kind, out["files"], megabytes(out["bytes"])] for kind, out in contents["left_out"].items()]
    if kinds:
        print(table(["left out", "files", "size"], kinds) + "\n")
    facts = {"wrote": args.output, "files": len(contents["files"]), "size": megabytes(args.output.stat().st_size)}
    closing(facts, f"python util/take_home.py --unpack {args.output.name} --output-dir elsewhere")


if __name__ == "__main__":
    run(main)
