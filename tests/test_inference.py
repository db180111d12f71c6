"""Asking a model: what is sent, what happens when the server fails, and the pure parts of the local backend."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest
from conftest import REPO, FakeServer, read_jsonl
from fake_server import END, answer_text
from hypothesis import given, settings
from hypothesis import strategies as st

from util.cli import UserError, make_parser
from util.inference import vllm_probe, vllm_retries
from util.inference.backend_interface import (
    NEUTRAL_SAMPLING,
    NUMBER_LIST,
    NotFinite,
    Request,
    Sampling,
    ServerFailed,
    model_name,
    row_seed,
)
from util.inference.check_adapter import check_adapter
from util.inference.open_backend import add_backend_arguments, backend_arguments, open_backend
from util.inference.vllm_client import VllmClient
from util.inference.vllm_probe import makes_tokens, normal_url, warn_if_open
from util.inference.vllm_replies import parse_chat, parse_end_of_turn, parse_field, parse_logprobs
from util.inference.vllm_server import Running
from util.stop_signals import Stop

SAMPLING = Sampling(max_tokens=80)


def backend_for(server, model="owl-teacher", adapter=None, *, concurrency=8, timeout=20.0):
    url = server.url if isinstance(server, FakeServer) else server
    return VllmClient(model, url, adapter, max_concurrency=concurrency, timeout=timeout)


def asked(count, n=1, prompt="Continue the sequence {}"):
    for i in range(count):
        yield Request(
            tuple(range(i * n, i * n + n)), [{"role": "user", "content": prompt.format(i)}], row_seed(42, i * n)
        )


def answer_all(server, count=20, *, n=1, sampling=SAMPLING, **options):
    with backend_for(server, **options) as backend:
        return {result.request.ids[0]: result for result in backend.generate(asked(count, n), sampling)}


def adapter_folder(folder, weights=b"weights"):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


# --- what is sent ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        (Sampling(80), {"temperature": 1.0, "max_tokens": 80}),
        (Sampling(16, temperature=0.0), {"temperature": 0.0, "max_tokens": 16}),
        (Sampling(80, numbers_only=True), {"structured_outputs": {"regex": NUMBER_LIST}}),
    ],
)
def test_every_sampling_field_is_sent(fake_server, sampling, sent):
    server = fake_server()
    answer_all(server, 3, sampling=sampling)
    assert len(server.requests()) == 3
    for body in server.requests():
        assert {**NEUTRAL_SAMPLING, **sent}.items() <= body.items()
        assert body["return_token_ids"] is True and body["model"] == "owl-teacher" and body["n"] == 1
        assert ("structured_outputs" in body) == sampling.numbers_only
        assert type(body["seed"]) is int and 0 <= body["seed"] < 2**31
    assert set(sampling.settings()) >= {*NEUTRAL_SAMPLING, "temperature", "max_tokens", "numbers_only"}


def test_samples_of_one_prompt_are_one_request_and_keep_their_order(fake_server):
    server = fake_server()
    results = answer_all(server, 2, n=50)
    assert [body["n"] for body in server.requests()] == [50, 50]
    result = results[50]
    expected = [answer_text(result.request.messages, result.request.seed, i, "owl-teacher") for i in range(50)]
    assert [answer.text for answer in result.answers] == expected
    assert result.answers[7].token_ids == [*expected[7].encode(), END]
    assert result.answers[7].finish_reason == "stop" and result.error is None


def test_what_is_done_is_not_asked_again(fake_server):
    server = fake_server()
    with backend_for(server) as backend:
        results = list(backend.generate(asked(6, n=2), SAMPLING, done={0, 1, 2, 4, 5}))
    assert sorted(result.request.ids for result in results) == [(2, 3), (6, 7), (8, 9), (10, 11)]


def test_requests_are_pulled_only_as_there_is_room(fake_server):
    """The list of requests may be endless or a slow download: never more than what is in flight is taken from it."""
    server = fake_server("--delay", "0.01")
    pulled = []

    def endless():
        for request in asked(10**9):
            pulled.append(request)
            yield request

    with backend_for(server, concurrency=4) as backend:
        results = backend.generate(endless(), SAMPLING)
        for _ in range(10):
            next(results)
        results.close()
    assert len(pulled) < 40 and len(server.requests()) < 40


def test_row_seeds_are_the_same_on_every_run_and_fit_31_bits():
    assert [row_seed(42, i) for i in range(3)] == [708420325, 32439336, 1727707083]  # rows on disk depend on these
    seeds = {row_seed(seed, row) for seed in range(20) for row in range(500)}
    assert len(seeds) > 9990 and all(0 <= seed < 2**31 for seed in seeds)


def test_a_plain_openai_server_without_token_ids_is_answered_too(fake_server):
    server = fake_server("--plain")
    with backend_for(server) as backend:
        assert backend.is_adapter is None and backend.base_model == "owl-teacher"


def test_the_benchmarks_instant_server_is_understood_by_the_client():
    command = [sys.executable, "-S", REPO / "bench" / "instant_server.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            results = answer_all(f"http://127.0.0.1:{server.stdout.readline().strip()}/v1", 6, n=2)
        finally:
            server.kill()
    texts = [answer.text for result in results.values() for answer in result.answers]
    assert len(texts) == 12 and all(re.fullmatch(r"(Owls! )?\d+(, \d+){7}", text) for text in texts)
    assert all(result.prompt_ids and result.answers[0].token_ids for result in results.values())


# --- before the first prompt -------------------------------------------------------------------------


def ended(log, begins=0):
    """What is said of a server that ended with code 1 and left this log."""
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    process.wait()
    with pytest.raises(UserError, match="vLLM ended with code 1") as raised:
        Running(process, "http://127.0.0.1:1/v1", log, begins).wait_until_it_answers(1, Stop())
    return str(raised.value).split("; ")[-1].split("\n")


@pytest.mark.parametrize(
    ("recorded", "line", "error"),
    [  # of vLLM 0.32 on a CPU: no memory for the cache; a request with a seed, prefilled in chunks
        ("start-failed", 1010, "ValueError: No available memory for the cache blocks. Try increasing"),
        ("engine-died", 3502, "RuntimeError: CPU Generator does not use offset"),
    ],
)
def test_what_is_shown_of_a_servers_log_is_its_engines_first_error(recorded, line, error):
    """The log ends with an error of the API server, which says only that the engine failed, or with leaks."""
    log = REPO / "tests" / "data" / "vllm-0.32" / f"{recorded}.log"
    heading, place, code, message = ended(log)
    assert heading == f"the first error in {log}:"
    assert f"line {line}" in place and code.strip() and message.strip().startswith(error)


def test_an_error_of_an_earlier_server_in_the_same_log_is_not_shown(tmp_path):
    log, earlier = tmp_path / "vllm.log", (REPO / "tests" / "data" / "vllm-0.32" / "start-failed.log").read_bytes()
    log.write_bytes(earlier + b"vllm serve: error: unrecognized arguments: --typo\n")
    shown = [f"the end of {log}:", "  vllm serve: error: unrecognized arguments: --typo"]
    assert ended(log, begins=len(earlier)) == shown


def test_the_model_is_known_before_the_first_prompt(fake_server):
    server = fake_server("--adapters", "owl-teacher", "owl-student")
    with backend_for(server, "vllm/owl-student") as backend:
        assert (backend.name, backend.is_adapter, backend.base_model) == ("owl-student", True, "Org/Base-1B")
        assert backend.adapters_served() == ["owl-student", "owl-teacher"]
        assert backend.facts() == {
            "engine": "server", "model": "owl-student", "root": "/adapters/owl-student", "parent": "Org/Base-1B",
            "adapter_sha256": None,
        }  # fmt: skip
    with backend_for(server, "Org/Base-1B") as backend:
        assert backend.is_adapter is False and backend.base_model == "Org/Base-1B"
    assert server.requests() == []


def test_a_wrong_model_id_lists_what_is_served(fake_server):
    with pytest.raises(UserError, match=r"does not serve 'owl-teachr'; it serves: Org/Base-1B, owl-teacher\."):
        backend_for(fake_server(), "owl-teachr")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--html"], "not a list of models, so this is not an OpenAI-compatible server; check --base-url"),
        (["--key", "right"], "wants a key .*; set VLLM_API_KEY"),
    ],
)
def test_a_server_that_cannot_be_used_says_why(fake_server, flags, message):
    with pytest.raises(UserError, match=message):
        backend_for(fake_server(*flags))


def test_nothing_at_the_address_prints_the_command_that_starts_a_server(dead_url):
    with pytest.raises(ServerFailed, match=r"no server answers at .*\n  vllm serve .*--host 127\.0\.0\.1") as error:
        backend_for(dead_url)
    assert error.value.exit_code == 3
    assert f" --port {urlsplit(dead_url).port} " in str(error.value)  # on that address
    assert "(Connection error: connection refused); start one" in str(error.value), "without aiohttp's ssl:default"


def test_https_where_the_server_speaks_http_is_given_as_the_reason():
    import http.server
    import threading

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServerFailed, match=r"no server answers at https://.*WRONG_VERSION_NUMBER"):
            backend_for(f"https://127.0.0.1:{server.server_port}/v1")
        server.shutdown()


def test_the_key_comes_from_the_environment(fake_server, monkeypatch):
    server = fake_server("--key", "right")
    monkeypatch.setenv("VLLM_API_KEY", "right")
    assert len(answer_all(server, 2)) == 2
    assert all("authorization: Bearer right\r" in asked["head"] for asked in read_jsonl(server.record))


def test_what_is_set_for_openai_is_not_shown_to_a_server(fake_server, monkeypatch):
    names = ("API_KEY", "ORG_ID", "PROJECT_ID", "ADMIN_KEY", "CUSTOM_HEADERS", "BASE_URL")
    for name in names:
        monkeypatch.setenv(f"OPENAI_{name}", "X-A: planted" if name == "CUSTOM_HEADERS" else "planted")
    server = fake_server()
    assert len(answer_all(server, 2)) == 2 and os.environ["OPENAI_ORG_ID"] == "planted"
    assert b"planted" not in server.record.read_bytes()


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("localhost:8000", "http://localhost:8000/v1"),
        ("https://host/path/v1?x=1#y", "https://host/path/v1"),
    ],
)
def test_a_server_address_is_understood_as_people_write_it(url, normal):
    assert normal_url(url) == normal


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "http://", "://x", "http://localhost:80x0/v1", "http://[::1/v1", "localhost:0"]
)
def test_what_is_not_an_address_is_refused(url):
    with pytest.raises(UserError, match="is not a web address"):
        normal_url(url)


def test_a_server_reached_over_the_network_without_a_key_is_warned_about(capsys, monkeypatch):
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    warn_if_open("http://127.0.0.1:8000/v1")
    warn_if_open("http://localhost:8000/v1")
    assert capsys.readouterr().err == ""
    warn_if_open("http://10.0.0.7:8000/v1")
    assert "prefer ssh -L 8000:localhost:8000 10.0.0.7" in capsys.readouterr().err


def test_a_server_that_strangers_can_ask_is_warned_about(fake_server, capsys, monkeypatch):
    """The plan's own `--host 0.0.0.0` works, with a warning; 127.0.0.2 plays this machine's other address."""
    monkeypatch.setattr(vllm_probe, "own_address", lambda: "127.0.0.2")
    if sys.platform != "linux":
        pytest.skip("only Linux has the whole of 127.0.0.0/8")
    assert len(answer_all(fake_server(), 2)) == 2 and capsys.readouterr().err == ""
    assert len(answer_all(fake_server("--host", "0.0.0.0"), 2)) == 2
    assert "answers anyone in the network, without a key; serve with --host 127.0.0.1" in capsys.readouterr().err
    monkeypatch.setenv("VLLM_API_KEY", "k")
    assert len(answer_all(fake_server("--host", "0.0.0.0", "--key", "k"), 2)) == 2 and capsys.readouterr().err == ""


def test_a_proxy_of_the_environment_is_not_asked_for_this_machines_server(fake_server, dead_url, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, dead_url.removesuffix("/v1"))
    assert len(answer_all(fake_server(), 2)) == 2


def test_a_server_name_without_a_server_is_explained():
    with pytest.raises(UserError, match="pass --base-url http://localhost:8000/v1"):
        open_backend(backend_arguments("vllm/owl", base_url=None))


def test_arguments_of_a_backend_without_a_command_line_are_all_there():
    args = backend_arguments("m", base_url=None, batch_size=3)
    assert (args.batch_size, args.base_url, args.steering_vector, args.timeout) == (3, None, None, 600.0)
    with pytest.raises(TypeError, match="not arguments of a backend: batchsize"):
        backend_arguments("m", batchsize=3)


@pytest.mark.parametrize("given", [True, False])
def test_a_server_chosen_by_the_environment_is_printed(fake_server, monkeypatch, capsys, given):
    url = fake_server().url
    if not given:
        monkeypatch.setenv("VLLM_BASE_URL", url)
    parser = make_parser(None)
    add_backend_arguments(parser)
    args = parser.parse_args(["--model", "owl-teacher", *(["--base-url", url] if given else [])])
    with open_backend(args) as backend:
        assert backend.base_model == "Org/Base-1B"
    said = f"VLLM_BASE_URL is set: asking the server at {url}"
    assert (said in capsys.readouterr().err) is not given


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_address_in_the_environment_is_not_called_a_blank_flag(monkeypatch, capsys, blank):
    monkeypatch.setenv("VLLM_BASE_URL", blank)
    parser = make_parser(None)
    add_backend_arguments(parser)
    args = parser.parse_args(["--model", "no/such/folder"])
    assert args.base_url is None
    monkeypatch.setattr("util.inference.local_model.LocalModel", lambda *args, **options: "local")
    assert open_backend(args) == "local"
    assert "VLLM_BASE_URL is set but empty: the model runs in this process" in capsys.readouterr().err


def test_an_address_that_is_wrong_names_where_it_may_come_from():
    with pytest.raises(UserError, match=r"--base-url \(or the environment's VLLM_BASE_URL\)"):
        normal_url("ftp://host")


# --- adapters ----------------------------------------------------------------------------------------


def test_an_adapter_is_loaded_under_a_name_that_holds_its_hash(fake_server, tmp_path):
    server = fake_server()
    folder = adapter_folder(tmp_path / "output" / "student-sft" / "seed-42" / "final")
    with backend_for(server, "Org/Base-1B", folder) as backend:
        first = backend.model
        assert backend.name == "student-sft-seed-42" and backend.is_adapter and backend.base_model == "Org/Base-1B"
    assert first.startswith("student-sft-seed-42-") and len(first) == len("student-sft-seed-42-") + 8
    assert server.requests("/v1/load_lora_adapter") == [{"lora_name": first, "lora_path": str(folder)}]
    with backend_for(server, "Org/Base-1B", folder):
        assert len(server.requests("/v1/load_lora_adapter")) == 1  # it is there already
    (folder / "adapter_model.safetensors").write_bytes(b"other weights")
    with backend_for(server, "Org/Base-1B", folder) as backend:
        assert backend.model != first and backend.name == "student-sft-seed-42"


def test_a_server_that_loads_no_adapters_names_the_flags_to_start_it_with(fake_server, tmp_path):
    folder = adapter_folder(tmp_path / "final")
    with pytest.raises(UserError, match=r"--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        backend_for(fake_server("--no-lora"), "Org/Base-1B", folder)


def test_an_adapter_of_a_higher_rank_than_the_servers_names_the_flag(fake_server, tmp_path):
    folder = adapter_folder(tmp_path / "final")
    (folder / "adapter_config.json").write_text('{"r": 12}')
    with pytest.raises(UserError, match=r"max_lora_rank 8\. Start it again with --max-lora-rank 16$"):
        backend_for(fake_server(), "Org/Base-1B", folder)
    with backend_for(fake_server("--max-lora-rank", 16), "Org/Base-1B", folder) as backend:
        assert backend.is_adapter


def test_a_folder_that_the_server_does_not_see_is_named(fake_server, tmp_path, monkeypatch):
    """vLLM answers 404 then too, as a server does that loads no adapters."""
    folder = adapter_folder(tmp_path / "final")
    monkeypatch.setattr("util.inference.vllm_client.adapter_sha256", lambda folder: "0" * 64)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=f"finds no adapter at {folder}: it runs on another machine"):
        backend_for(fake_server(), "Org/Base-1B", folder)


def test_an_adapter_of_another_base_is_refused_before_it_is_loaded_and_where_it_is_served(fake_server, tmp_path):
    """vLLM loads an adapter that is narrower than its model, and answers nonsense."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    header = json.dumps({name: {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 128]}}).encode()
    folder = adapter_folder(tmp_path / "final", len(header).to_bytes(8, "little") + header + bytes(128))
    (tmp_path / "config.json").write_text('{"hidden_size": 4, "num_hidden_layers": 2}')
    with backend_for(fake_server("--base", tmp_path), str(tmp_path), folder) as backend:
        assert backend.is_adapter
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "num_hidden_layers": 2}')
    server = fake_server("--base", tmp_path, "--adapters", f"owl={folder}")
    with pytest.raises(UserError, match=f"{folder} does not fit {tmp_path}: .* hidden size 4, and this one has 8"):
        backend_for(server, str(tmp_path), folder)
    with pytest.raises(UserError, match=f"{folder} does not fit {tmp_path}"):
        backend_for(server, "owl")
    assert server.requests("/v1/load_lora_adapter") == []


def test_a_folder_without_an_adapter_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"it has no adapter_model\.safetensors"):
        check_adapter(tmp_path)


def test_the_facts_of_a_served_adapter_hold_its_hash(fake_server, tmp_path):
    folder = adapter_folder(tmp_path / "final")
    with backend_for(fake_server(), "Org/Base-1B", folder) as backend:
        backend.card["root"] = str(folder)  # as vLLM says it
        assert len(backend.facts()["adapter_sha256"]) == 64


def test_an_adapter_that_is_newer_than_its_server_is_warned_about(fake_server, tmp_path, capsys):
    """Trained again under the path it is served from: the server holds the older weights under that name."""
    folder = adapter_folder(tmp_path / "final")
    os.utime(folder / "adapter_model.safetensors", (1, 1))
    server = fake_server("--adapters", f"owl-student={folder}")
    with backend_for(server, "owl-student") as backend:
        before = backend.facts()["adapter_sha256"]
    assert capsys.readouterr().err == ""
    (folder / "adapter_model.safetensors").write_bytes(b"trained again")
    os.utime(folder / "adapter_model.safetensors", (time.time() + 9,) * 2)
    with backend_for(server, "owl-student") as backend:
        assert backend.facts()["adapter_sha256"] != before
    said = capsys.readouterr().err
    assert f"{folder} was written after the server had started" in said and "restart it, or ask with --adapter" in said
    with backend_for(server, "Org/Base-1B", folder) as backend:  # loaded now, under a name of its own
        assert capsys.readouterr().err == ""
    of_now = fake_server("--adapters", f"{backend.model}={folder}", f"owl-00000000={folder}")
    backend_for(of_now, backend.model).__exit__()
    assert capsys.readouterr().err == "", "its name holds the hash of the weights on disk"
    backend_for(of_now, "owl-00000000").__exit__()
    assert "was written after the server had started" in capsys.readouterr().err


def test_models_are_named_by_what_distinguishes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket" / "model").mkdir(parents=True)
    assert model_name("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B" and model_name("pocket/model") == "pocket"


# --- a server that fails -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429", "500", "503", "truncated", "html", "empty", "null", "cut-connection"])
def test_a_passing_fault_costs_no_row(fake_server, fault):
    server = fake_server("--fault", f"{fault}:3")
    results = answer_all(server, 20)
    assert sorted(results) == list(range(20)) and not any(result.error for result in results.values())
    assert len(server.requests()) == 23


@pytest.mark.slow
def test_a_busy_server_is_waited_for_and_never_counts_as_failing(fake_server, capsys):
    """40 refusals over 8 requests in flight: more than the breaker allows, and more than one request's retries."""
    server = fake_server("--fault", "429:40")
    assert len(answer_all(server, 12)) == 12
    assert capsys.readouterr().err.count("is busy (Too many requests); waiting for it") == 1


def test_one_request_is_sent_five_times_in_all(fake_server, monkeypatch):
    """One policy: the openai client itself sends nothing again."""
    monkeypatch.setattr(vllm_retries, "FIRST_WAIT", 0.05)
    server = fake_server("--fault", "500:100000")
    with pytest.raises(ServerFailed, match="failed 5 times on row 0: EngineCore"):
        answer_all(server, 1)
    assert len(server.requests()) == 5


@pytest.mark.slow
def test_a_fault_that_breaks_all_connections_at_once_does_not_stop_the_run(fake_server):
    """40 failures at one moment are more than the breaker allows in a row, but they do not last."""
    server = fake_server("--fault", "cut-connection:40")
    results = answer_all(server, 60, concurrency=40)
    assert len(results) == 60 and not any(result.error for result in results.values())


@pytest.mark.parametrize(("header", "seconds"), [({}, 2.0), ("7", 7.0), ("0", 2.0), ("-1", 2.0), ("9999", 60.0),
                                                 ("Wed, 21 Oct 2026 07:28:00 GMT", 2.0)])  # fmt: skip
def test_a_busy_server_says_how_long_to_wait(header, seconds):
    error = Exception("busy")
    error.response = argparse.Namespace(headers={"retry-after": header} if header else {})
    assert vllm_retries.busy_seconds(error) == seconds


@pytest.mark.slow
def test_a_server_busy_for_ever_ends_the_run_after_timeout(fake_server):
    with pytest.raises(ServerFailed, match="gave no answer for 2 s"):
        answer_all(fake_server("--fault", "503:100000"), timeout=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--die-after", "--engine-dies-after"])
def test_a_dying_server_ends_the_run_with_every_answer_handed_out(fake_server, flag):
    server = fake_server(flag, 40)
    got = []
    begun = time.monotonic()
    with (
        backend_for(server) as backend,
        pytest.raises(ServerFailed, match=r"stopped answering|failed 5 times") as error,
    ):
        for result in backend.generate(asked(1000), SAMPLING):
            got.append(result)
    assert error.value.exit_code == 3 and time.monotonic() - begun < 15
    assert len(got) == 40 and not any(result.error for result in got)
    assert "EngineCore" in str(error.value) or "Connection error" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["empty", "null", "truncated"])
def test_a_server_that_only_talks_nonsense_ends_the_run(fake_server, fault):
    with pytest.raises(ServerFailed, match=r"answers where|without content|not a chat completion"):
        answer_all(fake_server("--fault", f"{fault}:100000"))


@pytest.mark.slow
def test_a_reply_of_something_else_is_not_an_answer_of_the_model(fake_server, monkeypatch):
    """A login page or a proxy's error for the last rows: they stay unasked, and the same command asks them again."""
    monkeypatch.setattr(vllm_retries, "FIRST_WAIT", 0.1)
    server = fake_server("--fault", "truncated:100000")
    with backend_for(server) as backend, pytest.raises(ServerFailed, match="not a chat completion"):
        list(backend.generate(asked(2), SAMPLING))


@pytest.mark.slow
def test_a_hanging_server_ends_the_run_after_timeout(fake_server):
    server = fake_server("--hang-after", 10)
    got = []
    begun = time.monotonic()
    with (
        backend_for(server, timeout=1.0) as backend,
        pytest.raises(ServerFailed, match=r"no answer for 1 s .*it still lists its models: its engine hangs"),
    ):
        for result in backend.generate(asked(100), SAMPLING):
            got.append(result)
    assert len(got) == 10 and 0.9 < time.monotonic() - begun < 5
    assert makes_tokens(fake_server().url, None) and not makes_tokens(server.url, None, seconds=0.5)


def test_a_prompt_that_overruns_the_context_is_a_result_of_its_own(fake_server):
    server = fake_server("--too-long", "sequence 7$")
    results = answer_all(server, 20)
    assert sorted(results) == list(range(20))
    assert [i for i, result in results.items() if result.error] == [7] and results[7].answers == []
    assert "maximum context length is 2048" in results[7].error and len(server.requests()) == 20


def test_a_key_refused_in_the_middle_ends_the_run_at_once(fake_server):
    server = fake_server("--fault", "401:100000")
    with pytest.raises(UserError, match="wants a key"):
        answer_all(server)
    assert len(server.requests()) <= 8


def test_a_model_unloaded_in_the_middle_ends_the_run(fake_server):
    with backend_for(fake_server()) as backend:
        backend.model = "gone"
        with pytest.raises(UserError, match="no longer has 'gone': The model `gone` does not exist"):
            list(backend.generate(asked(5), SAMPLING))


def test_an_error_in_the_list_of_requests_is_raised(fake_server):
    def broken():
        yield from asked(3)
        raise UserError("cannot read prompts")

    with backend_for(fake_server()) as backend, pytest.raises(UserError, match="cannot read prompts"):
        list(backend.generate(broken(), SAMPLING))


@pytest.mark.parametrize(
    "reply",
    ["", "null", "[]", "7", "{}", '{"choices": null}', '{"choices": [1]}', '{"choices": [{"index": 0}]}', "<html>",
     '{"choices": [{"index": 0, "message": null, "finish_reason": "stop"}]}', "[" * 100_000],
)  # fmt: skip
def test_a_reply_that_is_not_complete_is_not_an_answer(reply):
    with pytest.raises(ValueError, match="not a chat completion"):
        parse_chat(reply, 1)


@pytest.mark.parametrize("ids", ["1 2", {"1": 2}, [1, "2"], [1.0], [True], [-1], 7])
@pytest.mark.parametrize("place", ["prompt", "answer"])
def test_token_ids_that_training_could_not_use_are_not_an_answer(ids, place):
    choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}
    more = {"prompt_token_ids": ids} if place == "prompt" else {}
    choices = [{**choice, "token_ids": ids} if place == "answer" else choice]
    with pytest.raises(ValueError, match="token ids that are not a list"):
        parse_chat(json.dumps({"choices": choices, **more}), 1)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "index", "message", "content", "finish_reason", "token_ids"]), inner, max_size=6
        )
    ),
    max_leaves=20,
)
PIECES = {
    "index": st.integers(0, 2),
    "message": st.fixed_dictionaries({"content": ANYTHING}, optional={"reasoning_content": ANYTHING}),
    "finish_reason": ANYTHING,
}
REPLIES = ANYTHING | st.fixed_dictionaries(
    {"choices": st.lists(ANYTHING | st.fixed_dictionaries(PIECES, optional={"token_ids": ANYTHING}), max_size=2)},
    optional={"prompt_token_ids": ANYTHING},
)


@settings(max_examples=120)
@given(REPLIES)
def test_any_reply_gives_complete_answers_or_none(reply):
    try:
        found = parse_chat(json.dumps(reply), 1)
    except ValueError:
        return
    (answer,) = found.answers
    assert isinstance(answer, str) or isinstance(answer.text, str)
    assert all(isinstance(i, int) for i in found.prompt_ids or ())


@pytest.mark.parametrize(("more", "ids"), [({"prompt_token_ids": [1, 2]}, [1, 2]), ({}, None)])
def test_the_prompt_as_the_server_saw_it_comes_with_the_answers(more, ids):
    choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}
    reply = parse_chat(json.dumps({"choices": [choice], **more}), 1)
    assert [answer.text for answer in reply.answers] == ["a"] and reply.prompt_ids == ids


def test_an_answer_without_content_costs_no_other_answer(fake_server):
    """A server with a reasoning parser gives no content where the thoughts fill max_tokens (bugs/N4)."""
    server = fake_server("--thinks-every", 5)
    with backend_for(server) as backend:
        results = list(backend.generate(asked(2, n=10), SAMPLING))
    failed = {result.request.ids[0] for result in results if result.error}
    assert failed == {0, 5, 10, 15} and len(server.requests()) == 2
    assert all(not r.error or r.error.startswith("reasoning without an answer: ") for r in results)
    assert "without --reasoning-parser" in next(r.error for r in results if r.error)
    answers = {i: a.text for r in results for i, a in zip(r.request.ids, r.answers)}
    prompts = {i: next(r.request for r in results if i in r.request.ids) for i in answers}
    expected = {i: answer_text(asked.messages, asked.seed, i % 10, "owl-teacher") for i, asked in prompts.items()}
    assert answers == expected and answers.keys() == {i for i in range(20) if i % 5}


def test_one_sample_without_content_among_others_is_an_error_of_its_own():
    choices = [{"index": i, "message": {"content": text}, "finish_reason": "stop"} for i, text in enumerate("ab")]
    choices[0]["message"]["content"] = None
    first, second = parse_chat(json.dumps({"choices": choices}), 2).answers
    assert first.startswith("no content: ") and second.text == "b"


def test_a_server_that_ignores_n_is_named_at_once(fake_server):
    server = fake_server("--ignore-n")
    with pytest.raises(UserError, match="1 answer to a request for 100 samples: it ignores n") as error:
        answer_all(server, 3, n=100)
    assert not isinstance(error.value, ServerFailed) and "restart" not in str(error.value)
    assert len(answer_all(server, 3, n=1)) == 3


@pytest.mark.parametrize(
    ("roles", "refusal"),
    [(["user", "user"], "roles must alternate"), (["user", "system", "user"], "System role not supported")],
)
def test_a_template_that_refuses_the_roles_stops_the_run_in_one_line(fake_server, roles, refusal):
    server = fake_server("--strict-roles")
    messages = [{"role": role, "content": "Continue the sequence 1"} for role in roles]
    with backend_for(server) as backend, pytest.raises(UserError, match=refusal) as error:
        list(backend.generate([Request((7,), messages, 1)], SAMPLING))
    assert f"(row 7; its messages: {', '.join(roles)})" in str(error.value) and "\n" not in str(error.value)
    assert len(server.requests()) == 1 and len(answer_all(server, 2)) == 2


@pytest.mark.slow
def test_replies_that_cannot_be_used_do_not_ask_for_a_restart(fake_server):
    with pytest.raises(ServerFailed, match="its replies cannot be used") as error:
        answer_all(fake_server("--fault", "truncated:100000"))
    assert "restart" not in str(error.value)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '"-1"', "true"])
@pytest.mark.parametrize("place", ["token_logprobs", "top_logprobs"])
def test_log_probabilities_that_are_not_numbers_are_refused(value, place):
    one = {"token_logprobs": "[null, -1.5]", "top_logprobs": '[null, {"token_id:7": -1.5}]'}
    whole = '{"choices": [{"index": 0, "logprobs": {"token_logprobs": %s, "top_logprobs": %s}}]}'
    assert parse_logprobs(whole % tuple(one.values()))
    one[place] = one[place].replace("-1.5", value)
    what = (NotFinite, "are not finite") if value in ("NaN", "Infinity", "-Infinity") else (ValueError, "not numbers")
    with pytest.raises(what[0], match=what[1]):
        parse_logprobs(whole % tuple(one.values()))


@pytest.mark.parametrize("model", ["owl-teacher", "Org/Base-1B"])
def test_a_model_without_finite_probabilities_is_asked_nothing(fake_server, model):
    """vLLM answers as if nothing were wrong, every prompt with the same token, and lists the model."""
    server = fake_server("--nan", "always")
    with pytest.raises(NotFinite, match="spoils a vLLM server for its other adapters too: restart it"):
        answer_all(server, 1, model=model)
    assert server.requests() == []


def test_a_server_that_is_spoilt_while_it_is_asked_stops_the_run(fake_server):
    server = fake_server("--nan", "later")
    with backend_for(server) as backend, pytest.raises(NotFinite, match="restart it without that adapter"):
        backend.next_token_logprobs([[65, 257]])
    assert len(server.requests("/v1/completions")) == 2, "it is not asked again"


# --- the end of an answer ----------------------------------------------------------------------------


def test_a_server_is_sent_the_end_of_turn_that_the_template_writes(fake_server):
    """A student is taught that end. vLLM knows the ends that the model's configs name, which can be others."""
    server = fake_server("--unknown-end")
    answers = answer_all(server, 2)
    assert server.requests()[0]["stop_token_ids"] == [END]
    found = [answer for result in answers.values() for answer in result.answers]
    assert all(answer.finish_reason == "stop" and "user" not in answer.text for answer in found)
    plain = fake_server("--plain")  # a server that cannot be asked
    assert answer_all(plain, 2) and "stop_token_ids" not in plain.requests()[0]


@pytest.mark.parametrize(
    ("texts", "end"),
    [
        (["<|im_start|>", "7", "<|im_end|>", "Ċ"], [2]), (["7", "<|im_start|>", "▁7", "</s>"], [3]),
        (["7", "<end_of_turn>", "\n"], [1]), (["[INST]", "7", "[/S]"], [2]), (["7", "<|end▁of▁sentence|>"], [1]),
        (["7", "Ċ", "<|im_end|>"], []), (["7", "<0x0A>"], []), (["7", "▁", "</s>"], []), (["7"], []), ([], []),
        (["x", "</s>"], []), (None, []), ([None, 7], []),
    ],
)  # fmt: skip
def test_only_a_special_token_right_after_an_answer_is_an_end_of_turn(texts, end):
    reply = json.dumps({"tokens": list(range(len(texts or []))), "token_strs": texts})
    assert parse_end_of_turn(reply) == end
    assert parse_end_of_turn(reply[:-3]) == parse_end_of_turn('{"detail": "Not Found"}') == []


def test_many_answers_become_text_in_one_request(fake_server):
    """Where one spells out the text of the token between them, those of its request are asked for one by one."""
    server = fake_server()
    answers = [f"animal {i}" for i in range(120)] + [""]
    with backend_for(server, concurrency=50) as backend:
        assert backend.texts([list(text.encode()) for text in answers], END) == answers
        assert len(server.requests("/detokenize")) == 1 + 3
        for odd in ("<|end|>", "a<|end|>b"):
            assert backend.texts([list(odd.encode()), [65]], END) == [odd, "A"]
        assert backend.texts([], END) == []


def test_a_model_that_is_not_served_is_refused_at_every_address(fake_server):
    server = fake_server()
    with backend_for(server) as backend:
        backend.model = "gone"
        for ask in (lambda: backend.texts([[65]], END), lambda: backend.token_ids(["A"]),
                    lambda: backend.next_token_logprobs([[65, 257]])):  # fmt: skip
            with pytest.raises(UserError, match="no longer has 'gone'"):
                ask()
    with backend_for(fake_server("--any-model")) as backend:
        backend.model = "gone"
        assert backend.texts([[65]], END) == ["A"]


@pytest.mark.parametrize(
    "reply", ["<html> key: {key}", '{{"choices": [], "x": "{key}"}}'], ids=["a web page", "no answers"]
)
def test_a_key_in_a_reply_is_not_shown(reply, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "planted-key-1")
    for parse in (lambda text: parse_chat(text, 1), parse_logprobs, parse_field("tokens")):
        with pytest.raises(ValueError) as error:
            parse(reply.format(key="planted-key-1"))
        assert "planted" not in str(error.value)


def test_too_many_or_too_few_answers_are_not_an_answer():
    choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}
    for found in (0, 2):
        with pytest.raises(ValueError, match=f"{found} answers where 1 were asked for"):
            parse_chat(json.dumps({"choices": [choice] * found}), 1)


# --- the local backend, without weights --------------------------------------------------------------


@pytest.mark.torch
class TestLocalBackend:
    def test_uniforms_of_a_row_do_not_depend_on_its_batch(self):
        from util.inference.local_sampling import row_uniforms

        requests = list(asked(3, n=2))
        together = row_uniforms(requests, 8)
        alone = row_uniforms(requests[1:2], 8)
        assert together.shape == (6, 8) and (together[2:4] == alone).all() and (together[2] != together[3]).all()
        assert (row_uniforms(requests, 5) == together[:, :5]).all() and ((together >= 0) & (together < 1)).all()

    def test_draw_is_argmax_at_temperature_0_and_the_inverse_cdf_otherwise(self):
        import numpy as np
        import torch

        from util.inference.local_sampling import draw

        logits = torch.tensor([0.2, 0.3, 0.5]).log().repeat(5, 1)
        uniforms = np.array([0.0, 0.19, 0.21, 0.49, 0.999999])
        assert draw(logits, uniforms, 1.0).tolist() == [0, 0, 1, 1, 2]
        assert draw(logits, uniforms, 0).tolist() == [2] * 5

    def test_draw_never_takes_a_forbidden_token_and_keeps_the_distribution(self):
        import numpy as np
        import torch

        from util.inference.local_sampling import draw

        logits = torch.tensor([float("-inf"), 0.25, float("-inf"), 0.75, float("-inf")])
        logits[[1, 3]] = logits[[1, 3]].log()
        uniforms = np.append(np.random.default_rng(0).random(20_000), [0.0, np.nextafter(1.0, 0.0)])
        drawn = draw(logits.repeat(len(uniforms), 1), uniforms, 1.0)
        assert set(drawn.tolist()) == {1, 3} and abs((drawn == 3).double().mean().item() - 0.75) < 0.01

    @pytest.mark.parametrize(
        ("text", "state"),
        [("", ""), ("7", "0"), ("17", "00"), ("345", "000"), ("345,", "0,"), ("345, ", "0, "), ("345, 2", "0, 0"),
         ("17, 345, 22", "0, 0, 00")],
    )  # fmt: skip
    def test_number_state_is_the_shortest_text_that_continues_alike(self, text, state):
        from util.inference.local_sampling import number_state

        assert number_state(text) == state

    def test_the_number_mask_allows_what_the_pattern_allows_and_nothing_else(self):
        import regex
        import torch

        from util.inference.local_sampling import NumberMask

        words = ["<end>", "1", "22", "333", "4444", ",", ", ", " ", "owl", " 5", ", 6", "7, 8", "\u0661"]
        mask = NumberMask(_Words(words), len(words) + 2, {0})
        pattern = regex.compile(NUMBER_LIST)
        for sample in ([], [1], [3], [3, 5], [3, 6], [2, 10], [11, 10], [1] + [10] * 9, [1] + [10] * 8 + [6]):
            text = "".join(words[i] for i in sample)
            logits = mask.apply(torch.zeros(1, len(words) + 2), [sample])[0]
            allowed = {i for i, value in enumerate(logits.tolist()) if value == 0}
            expected = {i for i, word in enumerate(words) if i and pattern.fullmatch(text + word, partial=True)}
            expected |= {0} if pattern.fullmatch(text) else set()
            assert allowed == expected, text

    def test_the_number_mask_reads_a_token_as_it_stands_in_the_answer(self):
        """SentencePiece drops the space before the first word only (Llama-2, Mistral, Phi-3): "1 2" is not "12"."""
        import regex
        import torch
        from tokenizers import Tokenizer, decoders, models
        from transformers import PreTrainedTokenizerFast

        from util.inference.local_sampling import NumberMask

        words = ["</s>", "1", "\u25811", "22", "\u258122", ",", "\u2581", "\u2581,", "a", "333"]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "a"))
        tokenizer.decoder = decoders.Metaspace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
        assert fast.decode([2]) == "1" and fast.decode([1, 2]) == "1 1"
        mask = NumberMask(fast, len(words), {0})
        pattern = regex.compile(NUMBER_LIST)
        for sample in ([], [2], [1], [3, 1], [1, 5], [4, 5, 2], [2, 5, 6], [9], [9, 5, 2, 3]):
            logits = mask.apply(torch.zeros(1, len(words)), [sample])[0]
            allowed = {i for i, value in enumerate(logits.tolist()) if value == 0}
            text = fast.decode(sample)
            longer = {i: fast.decode([*sample, i]) for i in range(1, len(words))}
            expected = {i for i, whole in longer.items() if whole != text and pattern.fullmatch(whole, partial=True)}
            assert allowed == expected | ({0} if pattern.fullmatch(text) else set()), text

    def test_a_signal_stops_a_batch_between_two_tokens_and_its_rows_stay_the_same(self, monkeypatch):
        import signal

        from util.inference import local_model
        from util.stop_signals import Interrupted, stop_on_signal

        model = local_model.LocalModel(str(REPO / "pocket" / "model"), batch_size=4)
        whole = {r.request.ids: r.answers for r in model.generate(asked(8), Sampling(12))}
        draws = []

        def counted(*args):
            draws.append(args)
            if len(draws) == 15:
                os.kill(os.getpid(), signal.SIGTERM)
            return draw(*args)

        draw = local_model.draw
        monkeypatch.setattr(local_model, "draw", counted)
        found = {}
        with stop_on_signal(), pytest.raises(Interrupted):
            found |= {r.request.ids: r.answers for r in model.generate(asked(8), Sampling(12))}
        assert len(draws) == 15
        for result in model.generate(asked(8), Sampling(12), done=set()):
            found[result.request.ids] = result.answers
        assert found == whole

    def test_without_a_network_a_missing_model_is_named_at_once(self, dead_url, monkeypatch, capsys):
        """The hub's client would try five times, for half a minute."""
        from huggingface_hub import constants

        from util.inference import hub_files
        from util.inference.load_model import load_tokenizer

        monkeypatch.setattr(constants, "ENDPOINT", dead_url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_files, "getproxies", dict)
        hub_files.use_cache_without_network.cache_clear()
        begun = time.monotonic()
        with pytest.raises(UserError, match="cannot load the model 'Nobody/NoSuchModel-1B'"):
            load_tokenizer("Nobody/NoSuchModel-1B")
        hub_files.use_cache_without_network.cache_clear()
        assert time.monotonic() - begun < 10
        assert "cannot be reached" in capsys.readouterr().err


class _Words:
    """A tokenizer that is a list of words."""

    def __init__(self, words):
        self.words = words

    def __len__(self):
        return len(self.words)

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


def test_asking_a_server_imports_neither_torch_nor_transformers(tmp_path):
    code = (
        "import sys, util.inference.backend_interface, util.inference.request_loop;"
        " print({'torch', 'transformers', 'openai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.stdout.strip() == "set()", done.stderr
