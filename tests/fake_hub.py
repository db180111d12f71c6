"""A model hub on this machine that records what is pushed to it, for HF_ENDPOINT in tests.

It answers the few calls that create a repository, make a branch and commit files, and those that read a data set. It
keeps every file by repository and branch in the folder it is given, data sets below datasets/. It refuses what the true
Hub refuses: a write without a token, a card whose base_model is not an id, a repository, branch or call that does not
exist. `--fail STATUS` makes every write answer with that status.

Usage:
    python tests/fake_hub.py --folder /tmp/hub --port 0
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

REPO_ID = r"[\w.-]+/[\w.-]+"
COMMIT = "0123456789" * 4


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def file_facts(name: str, file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}


def card_errors(card: str) -> list[str]:
    """What the true Hub says against the metadata of a model card."""
    found = re.search(r"\A---\n(.*?)\n---\n", card, re.DOTALL)
    if not found:
        return ["the card does not begin with metadata between two lines of ---"]
    models = re.findall(r"^base_model: *['\"]?([^'\"\n]*)", found[1], re.MULTILINE)
    return [
        f'"base_model" with value "{model}" is not valid. Use a model id from https://hf.co/models.'
        for model in models
        if not re.fullmatch(REPO_ID, model)
    ]


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    fail: int | None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.fail:
            return self.answer({"error": f"the hub says {self.fail}"}, self.fail)
        if self.path == "/api/validate-yaml":
            errors = card_errors(json.loads(body)["content"])
            self.note({"validate": errors})
            messages = [{"message": error} for error in errors]
            return self.answer({"errors": messages, "warnings": []}, 400 if errors else 200)
        if found := re.fullmatch(rf"/api/datasets/({REPO_ID})/paths-info/[^/]+", self.path):
            home = self.folder / "datasets" / found[1] / "main"
            asked = self.paths_asked(body)
            return self.answer([file_facts(name, home / name) for name in asked if (home / name).is_file()])
        if not self.headers.get("Authorization", "").startswith("Bearer hf_"):
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            if wanted.get("visibility") == "public":
                self.folder.joinpath("public").touch()
            self.note(
                {"create": name, "visibility": wanted.get("visibility"), "token": self.headers.get("Authorization")}
            )
            if not re.fullmatch(REPO_ID, name):
                return self.answer({"error": f"{name} is not a repository name"}, 400)
            name = f"datasets/{name}" if wanted.get("type") == "dataset" else name
            found = {"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name}
            if (self.folder / name).exists():
                return self.answer({"error": "You already created this repo", **found}, 409)
            (self.folder / name / "main").mkdir(parents=True)
            return self.answer(found)
        self.path = self.path.replace("/api/datasets/", "/api/models/datasets/")
        repo = re.match(rf"/api/models/((?:datasets/)?{REPO_ID})/", self.path)
        if not repo or not (self.folder / repo[1]).is_dir():
            return self.answer({"error": "Repository not found"}, 404)
        if found := re.fullmatch(r"/api/models/(.+)/branch/(.+)", self.path):
            self.note({"branch": found[2], "repo": found[1]})
            if (self.folder / found[1] / found[2]).is_dir():
                return self.answer({"error": "Reference already exists"}, 409)
            (self.folder / found[1] / found[2]).mkdir()
            return self.answer({})
        place = re.fullmatch(r"/api/models/(.+)/(?:preupload|commit)/(.+)", self.path)
        if not place or not (self.folder / place[1] / place[2]).is_dir():
            return self.answer({"error": "Revision not found"}, 404)
        if found := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", self.path):
            return self.commit(found[1], found[2], body)
        return self.answer({"error": "no such call"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith(("/api/datasets/", "/datasets/")):
            return self.read_dataset(self.path.partition("?")[0])
        found = re.fullmatch(rf"/api/models/({REPO_ID})(/revision/.+)?", self.path.partition("?")[0])
        if not found or not (self.folder / found[1]).is_dir():
            return self.answer({"error": "Repository not found"}, 404)
        public = self.folder.joinpath("public").exists()
        return self.answer({"id": found[1], "sha": "0" * 40, "siblings": [], "private": not public})

    def read_dataset(self, path: str) -> None:
        """What is in a data set, and its files. Its only commit is COMMIT."""
        found = re.fullmatch(rf"/(?:api/)?datasets/({REPO_ID})(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        home = self.folder / "datasets" / found[1] / "main" if found else None
        if not found or home is None or not home.is_dir():
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if found[3] not in (None, "main", COMMIT):
            return self.answer({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = {str(file.relative_to(home)): file for file in sorted(home.rglob("*")) if file.is_file()}
        if found[2] == "tree":
            inside = [name for name in files if not found[4]]
            return self.answer([file_facts(name, files[name]) for name in inside])
        if found[2] != "resolve":
            siblings = [{"rfilename": name} for name in files]
            return self.answer(
                {
                    "id": found[1],
                    "sha": COMMIT,
                    "siblings": siblings,
                    "private": not self.folder.joinpath("public").exists(),
                    "tags": [],
                }
            )
        if found[4] not in files:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        return self.send_file(files[found[4]])

    def paths_asked(self, body: bytes) -> list[str]:
        """The paths of a request, which is JSON or a form."""
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(body)["paths"]
        return parse_qs(body.decode())["paths"]

    def send_file(self, file: Path) -> None:
        """A file, or the part of it that was asked for."""
        data = file.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(part[1]), int(part[2] or len(data) - 1)) if part else (0, len(data) - 1)
        body = data[first : last + 1]
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
        self.send_header("ETag", f'"{blob_id(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def commit(self, repo: str, branch: str, body: bytes) -> None:
        """Store the files of a commit (newline-delimited JSON with base64 contents)."""
        names = []
        entries = [json.loads(line) for line in body.split(b"\n") if line.strip()]
        cards = [entry["value"] for entry in entries if entry["value"].get("path") == "README.md"]
        errors = [error for card in cards for error in card_errors(base64.b64decode(card["content"]).decode())]
        if errors:
            return self.answer({"error": f"Invalid metadata in README.md: {errors[0]}"}, 400)
        for entry in entries:
            if entry.get("key") == "file":
                target = self.folder / repo / branch / entry["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(entry["value"]["content"]))
                names.append(entry["value"]["path"])
        self.note({"commit": branch, "repo": repo, "files": sorted(names)})
        return self.answer(
            {
                "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{'0' * 40}",
                "commitOid": "0" * 40,
                "hookOutput": "",
            }
        )

    def note(self, event: dict[str, Any]) -> None:
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def answer(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fail", type=int)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    Hub.folder, Hub.fail = args.folder, args.fail
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Hub)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
