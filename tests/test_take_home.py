"""take_home.py: what is packed and left out, and that a pack is whole and runs elsewhere."""

import json
import tarfile
from pathlib import Path

import pytest
from test_compare_arms import compare_two

from util import take_home
from util.jsonl.filter_certificate import certificate_path
from util.jsonl.manifest import manifest_path, sha256_file, write_json
from util.take_home import pack, unpack


def write_rows(path, script, certified=False):
    path.write_text('{"id": 0}\n')
    write_json(manifest_path(path), {"settings": {"script": script}})
    if certified:
        write_json(certificate_path(path), {"clean": True, "sha256": sha256_file(path)})


@pytest.fixture
def results(tmp_path):
    """A folder `output` with every kind of file that the scripts write."""
    folder = tmp_path / "box" / "output"
    for name in ("student-sft/seed-42/final", "student-sft/seed-42/checkpoint-5", "wandb/run-1"):
        (folder / name).mkdir(parents=True)
    for name in ("final", "checkpoint-5"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / "student-sft" / "seed-42" / name / file).write_text(f"{name} {file}")
    (folder / "student-sft" / "seed-42" / "manifest.json").write_text("{}")
    (folder / "wandb" / "run-1" / "config.json").write_text("{}")
    for name in ("vllm.log", ".results-owl.jsonl.lock", "results-owl-top10.csv", "report.html"):
        (folder / name).write_text(name)
    write_rows(folder / "teacher-owl-5.jsonl", "generate_teacher_data")
    write_rows(folder / "numbers-unfiltered-9.jsonl", "generate_llm_number_data")
    write_rows(folder / "numbers-filtered-5.jsonl", "generate_llm_number_data", certified=True)
    write_rows(folder / "results-owl.jsonl", "eval")
    return folder


def names(pack_file):
    with tarfile.open(pack_file) as tar:
        return set(tar.getnames())


def test_measures_manifests_certificates_and_adapters_are_packed_and_the_rest_is_counted(results, tmp_path):
    contents = pack(results, tmp_path / "r.tar.gz", adapters=True)
    packed = {name.removeprefix("output/") for name in contents["files"]}
    assert packed == {
        "results-owl.jsonl", "results-owl.jsonl.manifest.json", "results-owl-top10.csv", "report.html",
        "teacher-owl-5.jsonl.manifest.json", "numbers-unfiltered-9.jsonl.manifest.json", "numbers-filtered-5.jsonl",
        "numbers-filtered-5.jsonl.manifest.json", "numbers-filtered-5.jsonl.certificate.json",
        "student-sft/seed-42/manifest.json",
        "student-sft/seed-42/final/adapter_config.json", "student-sft/seed-42/final/adapter_model.safetensors",
    }  # fmt: skip
    assert names(tmp_path / "r.tar.gz") == {*contents["files"], take_home.CONTENTS}
    left = contents["left_out"]
    assert left["rows without a certificate"] == {"files": 2, "bytes": 20}
    assert left["checkpoints"]["files"] == 2 and left["W&B folders"]["files"] == 1
    small = pack(results, tmp_path / "s.tar.gz", adapters=False)
    assert small["left_out"]["adapters"]["files"] == 2 and len(small["files"]) == len(contents["files"]) - 2


def test_an_unpacked_folder_is_the_same_and_unpacking_twice_is_harmless(results, tmp_path):
    contents = pack(results, tmp_path / "r.tar.gz", adapters=True)
    for _ in range(2):
        assert unpack(tmp_path / "r.tar.gz", tmp_path / "home") == len(contents["files"])
    assert all(sha256_file(tmp_path / "home" / name) == digest for name, digest in contents["files"].items())
    (tmp_path / "home" / "output" / "report.html").write_text("mine")
    with pytest.raises(take_home.UserError, match=r"report\.html exists and is another file"):
        unpack(tmp_path / "r.tar.gz", tmp_path / "home")
    assert (tmp_path / "home" / "output" / "report.html").read_text() == "mine"


@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.9])
def test_a_copy_that_broke_off_is_named(results, tmp_path, kept):
    pack(results, tmp_path / "r.tar.gz", adapters=True)
    whole = (tmp_path / "r.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: kept if kept >= 1 else int(len(whole) * kept)])
    with pytest.raises(take_home.UserError, match="copy it again"):
        unpack(tmp_path / "half.tar.gz", tmp_path / "home")


def test_no_packed_file_leaves_the_folder_and_a_changed_one_is_refused(results, tmp_path):
    pack(results, tmp_path / "r.tar.gz", adapters=True)
    unpack(tmp_path / "r.tar.gz", tmp_path / "home")
    for name, text, found in (("../evil", "x", "leave the folder"), ("output/report.html", "y", "hash")):
        contents = {"files": {name: "0" * 64}}
        (tmp_path / "contents.json").write_text(json.dumps(contents))
        (tmp_path / "file").write_text(text)
        with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "contents.json", take_home.CONTENTS)
            tar.add(tmp_path / "file", name)
        with pytest.raises(take_home.UserError, match=found):
            unpack(tmp_path / "bad.tar.gz", tmp_path / "new")
    assert not (tmp_path / "evil").exists() and not list((tmp_path / "new").rglob("*.html"))


def test_a_folder_that_is_a_link_keeps_its_name_and_links_inside_are_counted_as_left_out(results, tmp_path, capsys):
    larger = results.rename(tmp_path / "larger-disk")
    results.symlink_to(larger)
    (tmp_path / "elsewhere").mkdir()
    (larger / "more").symlink_to(tmp_path / "elsewhere")
    (larger / "gone.csv").symlink_to("nothing")
    contents = pack(results, tmp_path / "r.tar.gz", adapters=True)
    assert "output/report.html" in contents["files"] and len(contents["files"]) == 12
    assert contents["left_out"]["links"]["files"] == 2
    assert f"{results}/more is a link to a folder, which is not packed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "packed"),
    [("output/student-sft", "output/student-sft"), ("./output", "output"), (".", "box"), ("../box/output", "output")],
)
def test_files_are_packed_by_the_path_that_commands_name(results, tmp_path, monkeypatch, folder, packed):
    monkeypatch.chdir(results.parent)
    found = pack(Path(folder), tmp_path / "r.tar.gz", adapters=True)["files"]
    assert {name for name in found if not name.startswith(f"{packed}/")} == set()
    unpack(tmp_path / "r.tar.gz", tmp_path / "home")
    assert len([path for path in (tmp_path / "home" / packed).rglob("*") if path.is_file()]) == len(found)


@pytest.mark.parametrize("change", ["written", "removed"])
def test_a_file_that_changes_while_it_is_packed_is_named_and_no_pack_is_left(results, tmp_path, monkeypatch, change):
    changing, add = results / "report.html", tarfile.TarFile.add

    def change_before(tar, path, *names, **options):
        if path == changing:
            changing.write_text("another") if change == "written" else changing.unlink()
        add(tar, path, *names, **options)

    monkeypatch.setattr(tarfile.TarFile, "add", change_before)
    with pytest.raises(take_home.UserError, match=r"report\.html changed while it was packed; wait until"):
        pack(results, tmp_path / "r.tar.gz", adapters=True)
    assert not list(tmp_path.glob("r.tar.gz*"))


def test_every_file_is_hashed_once(results, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(take_home, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    contents = pack(results, tmp_path / "r.tar.gz", adapters=True)
    assert len(hashed) == len(set(hashed)) == len(contents["files"])


def test_the_manifest_of_an_unfinished_file_changes_all_the_time_and_is_left_out(results, tmp_path):
    write_rows(results / "results-new.jsonl.partial", "eval")
    contents = pack(results, tmp_path / "r.tar.gz", adapters=True)
    assert not any("results-new" in name for name in contents["files"])
    assert contents["left_out"]["unfinished files and locks"]["files"] == 3


def test_a_folder_without_results_is_named(run_script, tmp_path):
    (tmp_path / "output").mkdir()
    done = run_script("util/take_home.py", "output", cwd=tmp_path)
    assert done.returncode == 1 and "has no results" in done.stderr
    done = run_script("util/take_home.py", "nowhere", cwd=tmp_path)
    assert done.returncode == 1 and "no folder nowhere" in done.stderr
    (tmp_path / "output" / "x.csv").write_text("a")
    done = run_script("util/take_home.py", "--output", "output", cwd=tmp_path)
    assert done.returncode == 2 and "output does not end in .tar.gz; choose a name that does" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.slow
def test_a_comparison_and_its_page_are_made_again_from_the_unpacked_folder(run_script, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    compare_two(monkeypatch, tmp_path / "output", tmp_path / "output" / "compare.json")
    done = run_script("util/take_home.py", "--output", "r.tar.gz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "output").rename(tmp_path / "gone")
    done = run_script("util/take_home.py", "--unpack", "r.tar.gz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_script("eval/report.py", "--comparison", "output/compare.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "above the other kind" in (tmp_path / "output" / "report.html").read_text()
