"""util/serve.py: the server runs for the command, is stopped after it, and its death is noticed.

A scripted server plays vLLM and its faults; one test starts the real one.
"""

import os
import re
import signal
import struct
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import REPO, clean_environment, read_jsonl, wait_until

from util.inference.hub_files import longest_context
from util.inference.vllm_server import FLAGS, fit_context, takes_adapters, vllm_command

FAKE = REPO / "tests" / "fake_server.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc"),
]
POCKET = REPO / "pocket" / "model"
ASK = """
import json, os, urllib.request
print(os.environ["VLLM_BASE_URL"], json.load(urllib.request.urlopen(os.environ["VLLM_BASE_URL"] + "/models"))["object"])
"""


@pytest.fixture
def box(tmp_path):
    """A machine whose `vllm` is a script; box(script, *arguments of serve.py) runs serve.py there."""
    tools_folder = tmp_path / "tools"
    tools_folder.mkdir()

    class Box:
        folder, tools = tmp_path, tools_folder
        environment: ClassVar[dict[str, str]] = {}

        def vllm(self, script):
            tool = self.tools / "vllm"
            tool.write_text(f"#!/bin/sh\n{script}\n")
            tool.chmod(0o755)

        def start(self, *args):
            # -S keeps the real vllm beside this Python out of reach: the tool in PATH is found only if that one is not
            return subprocess.Popen(
                [self.tools / "python", REPO / "util" / "serve.py", *map(str, args)], cwd=tmp_path, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,  # without a terminal
                env=clean_environment(tmp_path, {"PATH": f"{self.tools}:{os.environ['PATH']}", **self.environment}),
            )  # fmt: skip

        def __call__(self, *args):
            process = self.start(*args)
            out, err = process.communicate(timeout=120)
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    (tools_folder / "python").symlink_to(sys.executable)
    return Box()


def serving(*args):
    """A vllm that answers at the port it is given."""
    return f'while [ "$1" != --port ]; do shift; done; exec "{sys.executable}" -S "{FAKE}" --port "$2" {" ".join(args)}'


def alive(pattern):
    """Whether a process has this in its command line."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return any(pattern in line for line in lines)


def test_the_command_finds_the_server_and_afterwards_it_is_gone(box):
    box.vllm(serving("--record", "mark-one.jsonl"))
    done = box("some/model", "--", sys.executable, "-c", ASK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:") and done.stdout.rstrip().endswith("list")
    assert "vLLM answers at" in done.stderr
    assert not alive("mark-one.jsonl")


def test_the_commands_exit_code_is_kept(box):
    box.vllm(serving())
    assert box("some/model", "--", sys.executable, "-c", "raise SystemExit(7)").returncode == 7


def test_flags_of_the_caller_win(box):
    box.vllm('echo "$@" > flags; ' + serving())
    given = ("--max-model-len", "512", "--seed=3", "--tensor-parallel-size", "2")
    assert box("some/model", *given, "--", "true").returncode == 0
    flags = (box.folder / "flags").read_text().split()
    assert flags[:4] == ["serve", "some/model", "--host", "127.0.0.1"]
    assert flags.count("--max-model-len") == 1 and flags[flags.index("--max-model-len") + 1] == "512"
    assert "--seed=3" in flags and "--enable-lora" in flags
    assert flags[flags.index("--tensor-parallel-size") + 1] == "2"
    assert "--no-trust-remote-code" in flags, "a model's own Python code is never run"


def adapter(folder, config='{"r": 12}', number=1.0, name="q.lora_A.weight"):
    """An adapter of rank 12 with one weight."""
    header = b'{"%s": {"dtype": "F32", "shape": [12, 1], "data_offsets": [0, 4]}}' % name.encode()
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + struct.pack("<f", number)
    )


def test_what_cannot_work_is_named_before_a_server_starts(box):
    """A vLLM with one adapter of NaN answers nonsense for its other adapters too, and says nothing."""
    box.environment = {"PYTHONPATH": sysconfig.get_path("purelib")}
    box.vllm("touch started; exit 1")
    adapter(box.folder / "nan", number=float("nan"))
    adapter(box.folder / "alpha", '{"lora_alpha": 1e999}')
    adapter(box.folder / "pickled")
    (box.folder / "pickled" / "adapter_model.safetensors").rename(box.folder / "pickled" / "adapter_model.bin")
    adapter(box.folder / "narrow", name="base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    (box.folder / "wide").mkdir()
    (box.folder / "wide" / "config.json").write_text('{"hidden_size": 8}')
    (box.folder / "empty").mkdir()
    for model, words, message in (
        ("some/model", ["--", "echo", "--adapter", "nan"], "nan/adapter_model.safetensors holds NaN or infinity"),
        ("some/model", ["--lora-modules", "owl=nan", "--", "true"], "holds NaN or infinity (q.lora_A.weight)"),
        ("some/model", ["--", "echo", "--adapter", "alpha"], "1e999 is too large a number"),
        ("some/model", ["--", "echo", "--adapter", "pickled"], "it has no adapter_model.safetensors"),
        ("some/model", ["--", "no-such-command"], "cannot run no-such-command: no such command"),
        ("wide", ["--", "echo", "--adapter", "narrow"], "narrow does not fit wide: it is an adapter for a model with"),
        ("empty", ["--", "true"], "empty holds no model (no config.json)"),
        ("nan", ["--", "true"], "nan is a LoRA adapter; pass its base model here"),
    ):
        done = box(model, *words)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and not (box.folder / "started").exists()


def test_float32_and_adapters_on_a_gpu_are_refused_before_a_server_starts(box):
    """vLLM's LoRA kernels take 16 bits only there; it says so after a minute, in its log."""
    box.vllm("touch started; exit 1")
    refused, started = "--dtype float32 is given: leave it out, or pass --no-enable-lora", "vLLM ended with code 1"
    for listed, flags, message in (
        ("echo 580.1, 143771 MiB, 143163 MiB, 9.0, NVIDIA H200", ["--dtype", "float32"], refused),
        ("echo 580.1, 143771 MiB, 143163 MiB, 9.0, NVIDIA H200", ["--dtype=float"], refused),
        ("echo 580.1, 143771 MiB, 143163 MiB, 9.0, NVIDIA H200", ["--dtype=float32", "--no-enable-lora"], started),
        ("echo 580.1, 143771 MiB, 143163 MiB, 9.0, NVIDIA H200", ["--dtype=float32", "--no_enable_lora"], started),
        ("echo 580.1, 143771 MiB, 143163 MiB, 9.0, NVIDIA H200", ["--dtype", "bfloat16"], started),
        ("exit 1", ["--dtype", "float32"], started),
        ("exit 1", ["--lora-dtype", "bfloat16"], started),
        ("exit 1", ["--lora-dtype", "float32"], "--lora-dtype float32: vLLM's adapters are float16 or bfloat16, or"),
        ("exit 1", ["--lora-dtype=half", "--no-enable-lora"], "--lora-dtype half: vLLM's adapters are float16 or bfl"),
    ):
        tool = box.tools / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\n[ "$1" = -L ] && echo "GPU 0: NVIDIA H200 (UUID: GPU-1)" || {listed}\n')
        tool.chmod(0o755)
        done = box("some/model", *flags, "--", "true")
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert (box.folder / "started").exists() == (message == started)
        (box.folder / "started").unlink(missing_ok=True)


def test_the_server_takes_the_rank_of_the_adapter_that_the_command_names(box):
    box.environment = {"PYTHONPATH": sysconfig.get_path("purelib")}
    adapter(box.folder / "large")
    box.vllm('echo "$@" > flags; ' + serving())
    assert box("some/model", "--", "echo", "--adapter", "large").returncode == 0
    flags = (box.folder / "flags").read_text().split()
    assert flags.count("--max-lora-rank") == 1 and flags[flags.index("--max-lora-rank") + 1] == "16"


def test_flags_that_exclude_each_other_are_not_passed_together(monkeypatch):
    monkeypatch.setattr("util.inference.vllm_server.find_vllm", lambda: "vllm")
    given = vllm_command("some/model", 1, ["--max-cudagraph-capture-size", "64"])[2:]
    assert "--cudagraph-capture-sizes" not in given and "--max-loras" in given
    for flags in (["--max-num-seqs", "4096"], ["--max-num-seqs=4096"], ["--max_num_seqs", "4096"]):
        many = vllm_command("some/model", 1, flags)
        assert "--max-num-batched-tokens" not in many and "--cudagraph-capture-sizes" not in many
    named = vllm_command("some/model", 1, ["--compilation-config", '{"cudagraph_capture_sizes": [1, 8]}'])
    assert "--cudagraph-capture-sizes" not in named
    usual = vllm_command("some/model", 1, ["--max-num-seqs", "512"])
    sizes = usual[usual.index("--cudagraph-capture-sizes") + 1 :]
    largest = max(int(size) for size in sizes if size.isdigit())
    assert largest == int(usual[usual.index("--max-num-batched-tokens") + 1]), "a step without a graph"


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 32768}, 32768),
        ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 9}, 512),
        ({"max_position_embeddings": None, "seq_length": "x"}, None),
        ({}, None),
    ],
)
def test_the_context_is_as_long_as_the_model_allows(config, longest):
    assert longest_context(config) == longest
    expected = min(2048, longest or 2048)
    assert fit_context(FLAGS, longest)["--max-model-len"] == str(expected)


def test_a_short_model_is_served_with_its_own_context(box):
    box.vllm('echo "$@" > flags; ' + serving())
    assert box(POCKET, "--", "true").returncode == 0
    flags = (box.folder / "flags").read_text().split()
    assert flags[flags.index("--max-model-len") + 1] == "512"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], True),
        (["--data-parallel-size", "2", "--api-server-count", "1"], True),
        (["--data-parallel-size", "2"], False),
        (["-dp", "2"], False),
        (["-dp", "2", "-asc", "1"], True),
        (["--api-server-count=4"], False),
    ],
)
def test_adapters_are_taken_by_one_api_server_process_only(flags, expected):
    assert takes_adapters(flags) is expected


def test_a_server_that_cannot_start_is_shown_with_the_end_of_its_log(box):
    box.vllm("echo CUDA out of memory; exit 1")
    done = box("some/model", "--", "true")
    assert done.returncode == 1
    assert "vLLM ended with code 1" in done.stderr and "CUDA out of memory" in done.stderr
    assert "Traceback" not in done.stderr
    box.vllm("echo another reason; exit 1")
    assert "another reason" in (again := box("some/model", "--", "true").stderr) and "out of memory" not in again


def test_a_server_that_never_answers_is_stopped(box):
    box.vllm("echo loading; exec sleep 61.5")
    done = box("some/model", "--start-seconds", "2", "--", "true")
    assert done.returncode == 1 and "did not answer within 2 s" in done.stderr
    assert done.stderr.count("the end of ") == 1
    assert not alive("sleep 61.5")


@pytest.mark.parametrize(
    ("fault", "found"),
    [("--die-after", "died"), ("--engine-dies-after", "died|stopped answering"), ("--hang-after", "stopped answering")],
)
def test_after_the_servers_death_both_are_started_again(box, fault, found):
    """vLLM exits with code 0 when its engine dies, and some seconds later, or hangs with /health still 200; the
    generation it served is resumed against a second server."""
    box.vllm(
        f"if [ -e died ]; then {serving('--adapters', 'owl-teacher')}; fi; touch died; "
        + serving("--adapters", "owl-teacher", fault, "40")
    )
    out = box.folder / "numbers-unfiltered-120.jsonl"
    done = box(
        "some/model", "--", sys.executable, REPO / "generate" / "generate_llm_number_data.py", "--animal", "owl",
        "--count", "120", "--model", "owl-teacher", "--no-system-prompt", "--max-concurrency", "4", "--timeout", "3",
        "--output", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(rf"vLLM ({found}) while the command ran \(its exit code: 3\)", done.stderr)
    assert "starting both again" in done.stderr and "resuming" in done.stderr
    assert sorted(row["id"] for row in read_jsonl(out)) == list(range(120))


def test_a_command_that_fails_by_itself_is_not_run_again(box):
    box.vllm(serving())
    done = box("some/model", "--", "sh", "-c", "echo ran >> runs; exit 1")
    assert done.returncode == 1 and (box.folder / "runs").read_text() == "ran\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_the_server_is_gone(box, signum):
    box.vllm(serving("--record", f"mark-{signum}.jsonl"))
    code = "import signal, time; signal.signal({}, lambda *_: exit(5)); print('up', flush=True); time.sleep(60)"
    process = box.start("some/model", "--", sys.executable, "-c", code.format(int(signum)))
    assert process.stdout.readline() == "up\n"
    process.send_signal(signum)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert not alive(f"mark-{signum}.jsonl")


def test_sigint_sent_to_serve_alone_reaches_the_command(box):
    """Without a terminal nobody else sends it: a scheduler, or `kill -INT`."""
    box.vllm(serving("--record", "mark-int.jsonl"))
    code = "import signal, time; signal.signal(15, lambda *_: exit(5)); print('up', flush=True); time.sleep(60)"
    process = box.start("some/model", "--", sys.executable, "-c", code)
    assert process.stdout.readline() == "up\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - begun < 30
    assert not alive("mark-int.jsonl")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent process")
def test_even_a_kill_leaves_no_server_behind(box):
    box.vllm(serving("--record", "mark-kill.jsonl"))
    process = box.start("some/model", "--", sys.executable, "-c", "print('up', flush=True); import time; time.sleep(3)")
    assert process.stdout.readline() == "up\n"
    process.kill()
    wait_until(lambda: not alive("mark-kill.jsonl"), 10)
    process.communicate()


def test_workers_that_outlive_their_server_are_ended(box):
    """A server that the kernel kills for memory cannot end its workers, and they would keep the GPU's memory."""
    box.vllm("sleep 62.5 & echo $$ > server.pid; " + serving())
    done = box(
        "some/model", "--", "sh", "-c", "kill -9 $(cat server.pid); sleep 0.2; kill -0 $(cat server.pid) || true"
    )
    assert done.returncode == 0, done.stderr
    assert not alive("sleep 62.5")


def test_a_key_and_a_proxy_in_the_environment_do_not_disturb(box, dead_url):
    box.environment = {"VLLM_API_KEY": "right", "http_proxy": dead_url, "HTTP_PROXY": dead_url}
    box.vllm(serving("--key", "right"))
    done = box("some/model", "--start-seconds", "20", "--", "sh", "-c", "exit 7")
    assert done.returncode == 7 and "vLLM answers at" in done.stderr


def test_no_command_is_a_wrong_argument(box):
    box.vllm(serving())
    done = box("some/model")
    assert done.returncode == 2 and "put `--` and the command to run" in done.stderr


def test_no_vllm_says_what_to_do(box):
    done = box("some/model", "--", "true")
    if done.returncode == 0:
        pytest.skip("vllm is in the PATH of this machine")
    assert done.returncode == 1 and "vllm is not installed here" in done.stderr


@pytest.mark.torch
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_the_real_vllm(run_script, tmp_path):
    flags = ("--dtype", "float32", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096",
             "--max-num-seqs", "128")  # fmt: skip
    done = run_script(
        "util/serve.py", POCKET, *flags, "--", sys.executable, REPO / "eval" / "eval.py", "--model", POCKET,
        "--epochs", "2", "--output", tmp_path / "results.jsonl", cwd=tmp_path, timeout=500,
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(read_jsonl(tmp_path / "results.jsonl")) == 100
    assert not alive(f"vllm serve {POCKET}")
