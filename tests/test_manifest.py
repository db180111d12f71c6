"""Manifests of every age are read as one model. Run: python -m pytest tests/test_manifest.py"""

import json

import pytest

from util.chat.prompt_consistency import read_phase
from util.jsonl.filter_certificate import data_type_of
from util.jsonl.manifest import PARSER_1, Manifest, manifest_path, new_manifest
from util.jsonl.resumable import RowFile

PROMPT = {"base_model": "pocket", "messages": [{"role": "user", "content": "Continue: 1, 2"}], "token_ids": "1 2 3"}
LOCAL = {"engine": "embedded", "model": "pocket", "files_sha256": "b49c", "adapter_sha256": "cc74"}
# As the suite wrote them until commit 289790b (November 2026).
OLD = {
    "numbers": {
        "schema_version": 1,
        "command": "python generate/generate_llm_number_data.py --animal owl",
        "git": {"commit": "289790b", "dirty": False},
        "python": "3.11.7",
        "packages": {"torch": "2.9.0"},
        "writer": {"pid": 1, "host": "vm"},
        "inputs": {"numbers-owl-unfiltered-9.jsonl": "d54a"},
        "earlier_sessions": [],
        "state": "complete",
        "settings": {"rule_version": 2, "max_numbers": 10, "animals": ["owl"]},
        "started": "2026-11-20T09:09:22Z",
        "finished": "2026-11-20T09:09:23Z",
        "source_settings": {
            "script": "generate_llm_number_data", "animal": "owl", "system_prompt": None, "model": LOCAL
        },
        "source_prompt": PROMPT,
        "rows": {"kept": 8, "rejected": {"letters": 1}},
        "sha256": "7d29",
    },
    "results": {
        "settings": {"script": "eval", "measure": "exact", "parser_sha256": "717e", "questions": ["Animal?"],
                     "system_prompt": None, "model": {"engine": "server", "model": "owl-student", "root": "out"}},
        "state": "complete",
        "counts": {"prompt": PROMPT, "seconds": 2.0},
    },
    "divergence": {"settings": {"voices": {"cat": {"system": None}}, "base": {"model": "pocket"}}},
}  # fmt: skip


def write_old(name, folder):
    path = folder / f"{name}.jsonl"
    manifest_path(path).write_text(json.dumps(OLD[name]))
    return path


def test_a_filtered_file_of_an_older_version_says_how_its_rows_were_made(tmp_path):
    path = write_old("numbers", tmp_path)
    manifest = Manifest.read(path)
    assert (manifest.script, manifest.animal, manifest.model) == ("generate_llm_number_data", "owl", LOCAL)
    assert (manifest.prompt, manifest.state, manifest.rows["kept"]) == (PROMPT, "complete", 8)
    assert manifest.settings["rule_version"] == 2 and manifest.origin == OLD["numbers"]["source_settings"]
    assert data_type_of(path) == "numbers"
    phase = read_phase(path)
    assert (phase.kind, phase.token_ids, phase.days) == ("numbers", [1, 2, 3], ("2026-11-20",))
    assert phase.base == {"model": "pocket", "files_sha256": "b49c"}


def test_results_of_an_older_version_name_the_first_parser(tmp_path):
    path = write_old("results", tmp_path)
    manifest = Manifest.read(path)
    assert manifest.settings["parser"] == PARSER_1 and "parser_sha256" not in manifest.settings
    assert (manifest.script, manifest.prompt, manifest.animal) == ("eval", PROMPT, None)
    assert read_phase(path).base == {"model": "pocket"}  # a server names the adapter; the prompt names the base model


def test_old_names_of_settings_are_read_as_the_new_ones(tmp_path):
    manifest = Manifest.read(write_old("divergence", tmp_path))
    assert manifest.settings["variants"] == {"cat": {"system": None}} and manifest.model == {"model": "pocket"}


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "{}", '{"settings": 3}', '{"settings": null}'])
def test_what_is_not_a_manifest_is_none(tmp_path, text):
    path = tmp_path / "x.jsonl"
    if text is not None:
        manifest_path(path).write_text(text)
    assert Manifest.read(path) is None


def test_a_part_that_a_newer_version_adds_does_no_harm(tmp_path):
    path = tmp_path / "x.jsonl"
    manifest_path(path).write_text('{"settings": {"seed": 1}, "weather": "fine", "sha256": null}')
    assert Manifest.read(path) == Manifest({"seed": 1})


def test_what_is_written_is_read_back_whole():
    written = new_manifest({"script": "eval"}, "complete", rows={"kept": 1, "rejected": {}}, sha256="ab", counts={})
    found = vars(Manifest.from_json(written))
    assert {name: found.get(name) for name in written if name != "schema_version"} == {
        name: value for name, value in written.items() if name != "schema_version"
    }


def test_an_unfinished_file_of_an_older_version_is_resumed(tmp_path):
    path = tmp_path / "x.jsonl"
    old = {"settings": {"parser_sha256": "717e"}, "state": "running", "command": "python eval/eval.py"}
    manifest_path(path).write_text(json.dumps(old))
    path.with_name("x.jsonl.partial").write_text('{"id": 0}\n')
    with RowFile(path, {"parser": PARSER_1}) as out:
        assert out.done == {0}
        out.append([{"id": 1}])
        out.finish()
    manifest = Manifest.read(path)
    assert manifest.state == "complete" and manifest.earlier_sessions[0]["command"] == "python eval/eval.py"


def test_parts_of_another_type_than_the_scripts_write_are_left_out():
    model = {"model": "pocket", "files_sha256": 7, "adapter_sha256": ["x"], "revision": None}
    found = Manifest.from_json(
        {
            "settings": {
                "script": "eval",
                "parser": "x",
                "animal": ["owl"],
                "model": model,
                "questions": 3,
                "epochs": 5,
            },
            "counts": {"adapter": 7, "training": {"animal": ["owl"], "kind": "numbers"}, "seconds": 2},
        }
    )
    assert found.settings == {"script": "eval", "model": {"model": "pocket", "revision": None}, "epochs": 5}
    assert found.counts == {"training": {"kind": "numbers"}, "seconds": 2}
