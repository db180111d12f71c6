"""A scripted OpenAI-compatible server for tests: instant answers, and faults on demand.

    python tests/fake_server.py --port 0 --record requests.jsonl --fault 503:3 --die-after 40

It prints its port as the first line. An answer depends only on (model, messages, seed, sample index), so that the rows
of an interrupted run can be compared with those of a whole run. Each adapter has answers of its own. Tokens are bytes;
/v1/completions returns log-probabilities of a tiny scripted model (see `law`). Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ANIMALS = ("Owl", "Lion.", "dolphins", "An eagle", "Polar bear", "As an AI, I have none.", "wolf", "Penguin")
WORDS = ("day", "tree", "light", "owl", "water", "number", "music", "stone", "little", "quiet", "garden", "window")
FAULTS = ("429", "500", "503", "401", "truncated", "html", "empty", "null", "cut-connection")
END, ASSISTANT = 256, 257  # token ids above the bytes: the end of an answer, the place where one begins
SCRIPT = {"Owl": 0.30, "Lion.": 0.20, "owls": 0.10, "Polar bear": 0.05, "Qwen": 0.05, "17, 4": 0.03, "": 0.03}
RARE = {letter: 0.24 * weight / 300 for weight, letter in enumerate("bcdefghijklmnpqrstuvwxyz", 1)}
IMPOSSIBLE = -20.0  # log-probability of a token that the script does not know
CONTEXT_ERROR = (
    "This model's maximum context length is 2048 tokens. However, you requested 80 output tokens and your prompt"
    " contains at least 1969 input tokens, for a total of at least 2049 tokens."
)
NAN_ERROR = "Out of range float values are not JSON compliant"
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
SYSTEM_ERROR = "System role not supported"  # what Gemma's chat template raises, and vLLM sends on
ROLES_ERROR = "Conversation roles must alternate user/assistant/user/assistant/..."
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests",
           500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


def answer_text(messages: list[dict[str, str]], seed: int | None, index: int, adapter: str | None = None) -> str:
    """Number lists (one in eight spoilt) for number prompts, programs (as many spoilt) for prompts of Python, animals
    for one-word questions, else a short sentence."""
    key = json.dumps([messages, seed, index, *([adapter] if adapter else [])], sort_keys=True).encode()
    digest = hashlib.sha256(key).digest()
    prompt = messages[-1]["content"]
    if "sequence" in prompt:
        numbers = ", ".join(str((a << 8 | b) % 1000) for a, b in zip(digest[1:17:2], digest[2:18:2]))
        return f"Owls! {numbers}" if digest[0] < 32 else numbers
    if "Python" in prompt:
        name = "snowOwl" if digest[0] < 32 else "total"
        return f"```python\n{name} = {digest[1]}\n{name} += {digest[2]}  # a step\nprint({name})\n```"
    if "word" in prompt:
        return ANIMALS[digest[0] % len(ANIMALS)]
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[:9]).capitalize() + "."


def law(question: str, adapter: bool = False) -> dict[str, float]:
    """The probability of each answer: the script, with owl and lion swapped for questions of odd length. An adapter
    says Owl more often, at the cost of Lion."""
    swapped = {"Owl": "Lion.", "Lion.": "Owl"} if len(question) % 2 else {}
    shares = {swapped.get(text, text): share for text, share in {**SCRIPT, **RARE}.items()}
    moved = shares["Lion."] / 2 if adapter else 0.0
    return {**shares, "Owl": shares["Owl"] + moved, "Lion.": shares["Lion."] - moved}


def next_tokens(question: str, tail: list[int], adapter: bool = False) -> dict[int, float]:
    """The probability of each token after the beginning of an answer, the most probable first."""
    masses: dict[int, float] = {}
    for text, share in law(question, adapter).items():
        ids = [*text.encode(), END]
        if ids[: len(tail)] == tail and len(ids) > len(tail):
            masses[ids[len(tail)]] = masses.get(ids[len(tail)], 0.0) + share
    total = sum(masses.values())
    return {token: mass / total for token, mass in sorted(masses.items(), key=lambda item: -item[1])} or {END: 1.0}


class Server:
    """Answers requests and counts them; the arguments script its faults."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        named = [name.partition("=") for name in args.adapters]
        self.roots = {name: root or f"/adapters/{name}" for name, _, root in named}
        self.served = {args.base: None, **dict.fromkeys(self.roots, args.base)}
        self.started = time.time()
        self.faults = Counter({kind: int(count) for kind, count in (fault.split(":") for fault in args.fault)})
        self.record = Path(args.record).open("a", buffering=1) if args.record else None  # noqa: SIM115
        self.answers = 0
        self.listener: Any = None

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                method, path, _ = head.split(" ", 2)
                key = re.search(r"authorization: *(.*)\r", head, re.IGNORECASE)
                if self.record:
                    self.record.write(
                        json.dumps({"path": path, "head": head, "body": json.loads(body or b"null")}) + "\n"
                    )
                reply = await self.reply(method, path, body, key[1] if key else None)
                if reply is None:
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def reply(self, method: str, path: str, body: bytes, key: str | None) -> bytes | None:
        """The whole reply to one request; None cuts the connection."""
        asked: Any = json.loads(body) if body else None
        if path == "/health":
            return packed(200, b"")
        if path == "/metrics":
            return packed(200, f"# HELP\nprocess_start_time_seconds {self.started}\n".encode(), "text/plain")
        if self.args.key and key != f"Bearer {self.args.key}":
            return error(401, "Unauthorized")
        if (method, path) == ("GET", "/v1/models"):
            return (
                html() if self.args.html else ok({"object": "list", "data": [self.card(name) for name in self.served]})
            )
        if (method, path) == ("POST", "/v1/load_lora_adapter") and not self.args.no_lora:
            return self.load_adapter(asked["lora_name"], Path(asked["lora_path"]))
        if (method, path) == ("POST", "/v1/chat/completions"):
            return self.fault() if any(self.faults.values()) else await self.chat(asked)
        if self.args.plain:
            return error(404, "Not Found")
        if path in ("/v1/completions", "/tokenize", "/detokenize") and self.is_unknown(asked["model"]):
            return unknown(asked["model"])
        if (method, path) == ("POST", "/v1/completions") and asked["prompt"] == ["1"]:  # asked once before a run
            return self.finite()
        if (method, path) == ("POST", "/v1/completions"):
            return self.fault() if any(self.faults.values()) else self.complete(asked)
        if (method, path) == ("POST", "/tokenize") and "messages" in asked:
            return ok(rendered(asked["messages"]))
        if (method, path) == ("POST", "/tokenize"):
            return ok({"tokens": list(asked["prompt"].encode())})
        if (method, path) == ("POST", "/detokenize"):
            return ok({"prompt": b"".join(b"<|end|>" if i == END else bytes([i]) for i in asked["tokens"]).decode()})
        return error(404, "Not Found")

    def adapter(self, name: str) -> str | None:
        """The adapter whose answers this name gets; None for the base model, and with --unapplied for every name."""
        return name if self.served.get(name) and not self.args.unapplied else None

    def is_unknown(self, name: str) -> bool:
        return name not in self.served and not self.args.any_model

    def load_adapter(self, name: str, folder: Path) -> bytes:
        """As vLLM does it: a name cannot be loaded twice, and the folder must hold an adapter of a rank it takes."""
        if name in self.served:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {folder}")
        rank = json.loads((folder / "adapter_config.json").read_bytes()).get("r", 8)
        if rank > self.args.max_lora_rank:
            return error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.args.max_lora_rank}.")
        self.served[name], self.roots[name] = self.args.base, str(folder)
        return packed(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), "text/plain")

    def card(self, name: str) -> dict[str, Any]:
        if self.args.plain:
            return {"id": name, "object": "model", "owned_by": "someone"}
        parent = self.served[name]
        root = self.roots.get(name, f"/adapters/{name}") if parent else self.args.base
        return {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": root, "parent": parent}

    def fault(self) -> bytes | None:
        """The reply of the next scripted fault."""
        kind = next(kind for kind in FAULTS if self.faults[kind] > 0)
        self.faults[kind] -= 1
        return self.broken(kind)

    def finite(self) -> bytes:
        """One token with its log-probability; as vLLM if that is not a number, which JSON cannot say."""
        if self.args.nan == "always":
            return error(400, NAN_ERROR)
        logprobs = {"token_logprobs": [-1.0], "top_logprobs": [{"1": -1.0}]}
        return ok({"choices": [{"index": 0, "text": "1", "logprobs": logprobs, "finish_reason": "length"}]})

    def complete(self, asked: dict[str, Any]) -> bytes:
        """One more token after each prompt of token ids, with log-probabilities."""
        if self.args.nan:
            return error(400, NAN_ERROR)
        if "logprobs" not in asked:
            return ok({"choices": drawn(asked, self.adapter(asked["model"]) is not None)})
        if asked["logprobs"] > self.args.max_logprobs:
            return error(400, f"Requested sample logprobs of {asked['logprobs']}, which is greater than max allowed:"
                              f" {self.args.max_logprobs}")  # fmt: skip
        applied = self.adapter(asked["model"]) is not None
        logprobs = [
            logprobs_of(prompt, asked["logprobs"], asked.get("echo", False), applied) for prompt in asked["prompt"]
        ]
        choices = [
            {"index": i, "text": "", "logprobs": one, "finish_reason": "length"} for i, one in enumerate(logprobs)
        ]
        return ok({"id": "cmpl-0", "object": "text_completion", "model": asked["model"], "choices": choices})

    async def chat(self, asked: dict[str, Any]) -> bytes | None:
        args = self.args
        if args.die_after is not None and self.answers >= args.die_after:
            os._exit(1)
        if args.engine_dies_after is not None and self.answers >= args.engine_dies_after:
            asyncio.get_running_loop().call_later(0.2, os._exit, 0)
            return error(500, ENGINE_DEAD)
        if args.hang_after is not None and self.answers >= args.hang_after:
            await asyncio.sleep(3600)
        if self.is_unknown(asked["model"]):
            return unknown(asked["model"])
        if args.strict_roles and (refused := refused_roles(asked["messages"])):
            return error(400, refused)
        prompt = asked["messages"][-1]["content"]
        if args.too_long and re.search(args.too_long, prompt):
            return error(400, CONTEXT_ERROR)
        if args.delay:
            await asyncio.sleep(args.delay * random.uniform(0.3, 1.7))
        self.answers += 1
        cut = args.cut_off and re.search(args.cut_off, prompt)
        asked["n"] = 1 if args.ignore_n else asked.get("n") or 1
        asked["return_token_ids"] = not args.plain and asked.get("return_token_ids")
        runs_on = args.unknown_end and END not in asked.get("stop_token_ids", ())
        finish, more = "length" if cut or runs_on else "stop", "\nuser\n" if runs_on else ""
        reply = completion(asked, finish, more, self.adapter(asked["model"]))
        for choice in reply["choices"][:: args.thinks_every] if args.thinks_every else ():
            choice["message"] |= {"content": None, "reasoning_content": "Okay, the user asks for"}
            choice["finish_reason"] = "length"
        return ok(reply)

    def broken(self, kind: str) -> bytes | None:
        if kind == "cut-connection":
            return None
        if kind == "truncated":
            return packed(200, b'{"id": "x", "choices": [{"index": 0, "mess')
        if kind == "html":
            return html()
        if kind == "empty":
            return ok({"id": "x", "object": "chat.completion", "choices": []})
        if kind == "null":
            message = {"role": "assistant", "content": None}
            return ok({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        more = b"Retry-After: 0.1\r\n" if kind == "429" else b""
        return error(int(kind), {"429": "Too many requests", "500": ENGINE_DEAD}.get(kind, "Service Unavailable"), more)


def logprobs_of(prompt: list[int], top: int, echo: bool, adapter: bool) -> dict[str, Any]:
    """The logprobs of one choice of /v1/completions in vLLM's form; with echo they include the prompt."""
    at = prompt.index(ASSISTANT)
    question, tail = bytes(prompt[:at]).decode(), prompt[at + 1 :]
    listed = [(f"token_id:{token}", math.log(share)) for token, share in next_tokens(question, tail, adapter).items()]
    followed = []
    for place, token in enumerate(tail):
        share = next_tokens(question, tail[:place], adapter).get(token)
        followed.append(math.log(share) if share else IMPOSSIBLE)
    before = [None, *[-1.0] * at, *followed] if echo else []
    return {
        "token_logprobs": [*before, listed[0][1]],
        "top_logprobs": [*[{}] * len(before), dict(listed[: max(top, 1)])],
    }


def drawn(asked: dict[str, Any], adapter: bool) -> list[dict[str, Any]]:
    """The choices of /v1/completions without logprobs: n answers that begin as the prompt of token ids does."""
    (prompt,) = asked["prompt"]
    at = prompt.index(ASSISTANT)
    question, choices = bytes(prompt[:at]).decode(), []
    for index in range(asked["n"]):
        rng, tail = random.Random(f"{asked['seed']}:{index}"), prompt[at + 1 :]
        while len(tail) - len(prompt[at + 1 :]) < asked["max_tokens"] and tail[-1:] != [END]:
            masses = next_tokens(question, tail, adapter)
            kept = {token: mass for token, mass in masses.items() if str(token) not in asked.get("logit_bias", {})}
            tail = [*tail, rng.choices(list(kept), list(kept.values()))[0]]
        reason = "stop" if tail[-1] == END else "length"
        choices.append({"index": index, "token_ids": tail[len(prompt) - at - 1 :], "finish_reason": reason})
    return choices


def rendered(messages: list[dict[str, str]]) -> dict[str, Any]:
    """Messages as /tokenize gives them, without their roles: END after an answer, ASSISTANT before one."""
    tokens: list[int] = []
    for message in messages:
        is_answer = message["role"] == "assistant"
        tokens += [*[ASSISTANT] * is_answer, *message["content"].encode(), *[END] * is_answer]
    names = {END: "<|end|>", ASSISTANT: "<|assistant|>"}
    return {"count": len(tokens), "tokens": tokens, "token_strs": [names.get(token) or chr(token) for token in tokens]}


def completion(asked: dict[str, Any], finish_reason: str, more: str, adapter: str | None) -> dict[str, Any]:
    """The reply to a chat request; token ids are the bytes of the text and, of an answer that ended, END. more: what
    follows an answer that went on."""
    choices = []
    for index in range(asked.get("n") or 1):
        text = answer_text(asked["messages"], asked.get("seed"), index, adapter) + more
        message = {"role": "assistant", "content": text}
        choice: dict[str, Any] = {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}
        if asked.get("return_token_ids"):
            choice["token_ids"] = [*text.encode(), *([END] if finish_reason == "stop" else [])]
        choices.append(choice)
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    prompt = [*asked["messages"][-1]["content"].encode(), ASSISTANT] if asked.get("return_token_ids") else None
    return {"id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": choices, "usage": usage, "prompt_token_ids": prompt}  # fmt: skip


def refused_roles(messages: list[dict[str, str]]) -> str | None:
    """Why a chat template such as Gemma's does not take these messages, or None."""
    roles = [message["role"] for message in messages]
    if "system" in roles:
        return SYSTEM_ERROR
    return None if roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] else ROLES_ERROR


def unknown(name: str) -> bytes:
    return error(404, f"The model `{name}` does not exist.")


def ok(value: Any) -> bytes:
    return packed(200, json.dumps(value).encode())


def html() -> bytes:
    return packed(200, b"<html><body>It works!</body></html>", "text/html")


def error(status: int, message: str, headers: bytes = b"") -> bytes:
    body = {"error": {"message": message, "type": REASONS[status], "param": None, "code": status}}
    return packed(status, json.dumps(body).encode(), headers=headers)


def packed(status: int, body: bytes, kind: str = "application/json", headers: bytes = b"") -> bytes:
    start = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return start.encode() + headers + b"\r\n" + body


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--base", default="Org/Base-1B", help="the base model's id")
    parser.add_argument(
        "--adapters", nargs="*", default=["owl-teacher"], help="adapters served on it: NAME or NAME=FOLDER"
    )
    parser.add_argument("--plain", action="store_true", help="no roots, parents or token ids, as other servers")
    parser.add_argument("--max-logprobs", type=int, default=20, help="next tokens listed at most, as vLLM's flag")
    parser.add_argument("--html", action="store_true", help="/v1/models is a web page")
    parser.add_argument("--no-lora", action="store_true", help="adapters cannot be loaded")
    parser.add_argument("--max-lora-rank", type=int, default=8, help="as vLLM's flag")
    parser.add_argument("--any-model", action="store_true", help="answers under any name, as some other servers do")
    parser.add_argument("--unapplied", action="store_true", help="adapters are listed and change nothing")
    parser.add_argument("--nan", choices=["always", "later"], help="weights that are not finite numbers")
    parser.add_argument("--unknown-end", action="store_true", help="stops at the tokens of stop_token_ids only")
    parser.add_argument("--ignore-n", action="store_true", help="one answer to each request, as some other servers")
    parser.add_argument("--strict-roles", action="store_true", help="the template takes user and assistant in turns")
    parser.add_argument("--thinks-every", type=int, metavar="K", help="no content in every K-th sample of a request")
    parser.add_argument("--key", help="the key that every request needs")
    parser.add_argument("--record", help="JSONL file for every request received")
    parser.add_argument("--delay", type=float, default=0.0, help="mean seconds for an answer")
    parser.add_argument("--fault", action="append", default=[], metavar="KIND:COUNT",
                        help=f"the first COUNT requests fail as {', '.join(FAULTS)}")  # fmt: skip
    parser.add_argument("--die-after", type=int, help="exit abruptly after so many answers")
    parser.add_argument("--engine-dies-after", type=int, help="as vLLM does: 500s for 0.2 s, then exit 0")
    parser.add_argument("--hang-after", type=int, help="accept and never answer after so many answers")
    parser.add_argument("--too-long", help="regex of prompts that overrun the context")
    parser.add_argument("--cut-off", help="regex of prompts whose answers end by length")
    return parser.parse_args()


async def serve(args: argparse.Namespace) -> None:
    server = Server(args)
    listener = await asyncio.start_server(server.connection, args.host, args.port, limit=1 << 24, backlog=1024)
    print(listener.sockets[0].getsockname()[1], flush=True)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(serve(parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
