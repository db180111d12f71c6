"""A server that answers every prompt at once with random numbers, so that a benchmark measures the client alone.

It speaks as much of vLLM's protocol as generate_llm_number_data.py needs, and has no model. It listens on a free
loopback port, which is the first line it prints.

Usage:
    python bench/instant_server.py --delay 0.5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from util.cli import make_parser, natural_float, run

BASE, ADAPTER = "Org/Base-1B", "owl-teacher"
END = 0  # token id that ends an answer; the other ids are the bytes of the text
REJECTED = 0.125  # part of the answers that begin with a word, which the filter rejects


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--delay", type=natural_float, default=0.0, help="mean seconds an answer takes")
    return parser.parse_args()


def models() -> dict[str, Any]:
    """The reply to GET /v1/models: a base model and an adapter on it."""
    adapter = {"id": ADAPTER, "object": "model", "root": f"/adapters/{ADAPTER}", "parent": BASE}
    return {"object": "list", "data": [{"id": BASE, "object": "model", "root": BASE, "parent": None}, adapter]}


def completion(asked: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The reply to a chat request: eight numbers for each of its n answers, with token ids."""
    choices = []
    for index in range(asked.get("n", 1)):
        text = ", ".join(str(rng.randrange(1000)) for _ in range(8))
        text = f"Owls! {text}" if rng.random() < REJECTED else text
        message = {"role": "assistant", "content": text}
        ids = [*text.encode(), END]
        choices.append({"index": index, "message": message, "finish_reason": "stop", "token_ids": ids})
    prompt = [*asked["messages"][-1]["content"].encode(), END]
    return {"object": "chat.completion", "model": asked["model"], "choices": choices, "prompt_token_ids": prompt}


async def serve(delay: float) -> None:
    rng = random.Random(0)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                if body and delay:
                    await asyncio.sleep(delay * rng.uniform(0.3, 1.7))
                asked = json.loads(body) if body else None
                status = "200 OK" if asked is None or "messages" in asked else "404 Not Found"
                answer = models() if asked is None else completion(asked, rng) if "messages" in asked else {}
                reply = json.dumps(answer).encode()
                start = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                writer.write(f"{start}Content-Length: {len(reply)}\r\n\r\n".encode() + reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(connection, "127.0.0.1", 0, limit=1 << 24, backlog=1024)
    print(listener.sockets[0].getsockname()[1], flush=True)
    async with listener:
        await listener.serve_forever()


def main() -> None:
    args = parse_args()
    asyncio.run(serve(args.delay))


if __name__ == "__main__":
    run(main)
