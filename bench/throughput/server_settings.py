"""The ways in which bench/vllm_throughput.py starts vLLM: flags and environment of each, by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from util.inference.vllm_server import FLAGS, GRAPHS, RANK, STEP, Flags, values_of

CPU = ("--dtype", "float32", "--no-enable-chunked-prefill", "--max-model-len", "512", "--max-num-batched-tokens",
       "4096", "--max-num-seqs", "256")  # fmt: skip


def without(*flags: str) -> Flags:
    """The flags of util/serve.py but these."""
    return {flag: value for flag, value in FLAGS.items() if flag not in flags}


def without_adapters(defaults: Flags) -> Flags:
    """These flags for a server of the model alone."""
    return {flag: value for flag, value in defaults.items() if flag not in ("--enable-lora", RANK, "--max-loras")}


@dataclass(frozen=True)
class ServerSettings:
    """One way to start the server: default flags (those of util/serve.py or others), more flags, and environment."""

    defaults: Flags = field(default_factory=lambda: FLAGS)
    more: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


SERVERS = {
    "chosen": ServerSettings(),
    "vLLM's graphs": ServerSettings(without(GRAPHS)),
    "4 adapters": ServerSettings({**FLAGS, "--max-loras": "4"}),
    # A thousand answers begin in one step, which has no graph: Python and the GPU take turns.
    "8,192 a step": ServerSettings(
        {**FLAGS, STEP: "8192", GRAPHS: [size for size in values_of(FLAGS[GRAPHS]) if int(size) <= 1024]}
    ),
    # Starts sooner: nothing is compiled, and one set of graphs serves steps of answers and those with prompts in them.
    "no compile": ServerSettings(more=("--compilation-config", '{"mode": 0, "cudagraph_mode": "FULL"}')),
    "no graphs": ServerSettings(without(GRAPHS), ("--enforce-eager",)),
    "4 API servers": ServerSettings(more=("--api-server-count", "4")),
    # Scheduling and the model's steps in two processes, hence on two cores. For one card vLLM's choice is one process.
    "own worker": ServerSettings(more=("--distributed-executor-backend", "mp")),
    "no statistics": ServerSettings(more=("--disable-log-stats",)),
    "LoRA stream": ServerSettings(environment={"VLLM_LORA_ENABLE_DUAL_STREAM": "1"}),
    "old runner": ServerSettings(environment={"VLLM_USE_V2_MODEL_RUNNER": "0"}),
    "throughput mode": ServerSettings(without("--max-num-seqs", STEP), ("--performance-mode", "throughput")),
    "cpu": ServerSettings(without(GRAPHS, STEP), CPU, {"VLLM_CPU_KVCACHE_SPACE": "1"}),
}
