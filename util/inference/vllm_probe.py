"""Probe a running server from outside: its address, its models, whether it still answers, who else can reach it.

It needs the standard library only, so that util/serve.py and util/doctor.py can use it before anything is installed.
"""

from __future__ import annotations

import json
import os
import re
import socket
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import ProxyHandler, Request, build_opener

from util.cli import UserError
from util.hide_secrets import scrub
from util.terminal import say

REPLY_SECONDS = 3
PROBE_SECONDS = 20  # for one token from a server that has nothing else to do
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # people write the last one for this machine


def normal_url(url: str) -> str:
    """A base URL as the client wants it: http://localhost:8000 -> http://localhost:8000/v1."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        good = parts.scheme in ("http", "https") and parts.netloc and parts.port != 0
    except ValueError:  # a port that is not a number, or half an IPv6 address
        good = False
    if not good:
        raise UserError(
            f"{scrub(url)} is not a web address; give --base-url (or the environment's VLLM_BASE_URL) one such as"
            " http://localhost:8000/v1"
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))


def server_key() -> str | None:
    """The key to show to the server. It comes from the environment only: an argument would be visible in `ps`."""
    return os.environ.get("VLLM_API_KEY")  # not OPENAI_API_KEY: a rented box must not see that one


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own. A proxy from the environment must not be used for it."""
    return urlsplit(url).hostname in LOOPBACK


# --- asking it ---------------------------------------------------------------------------------------


def ask(url: str, key: str | None = None, body: Any = None, seconds: float = REPLY_SECONDS) -> bytes:
    """The reply to a GET, or to a POST of `body` as JSON. Raises OSError (HTTPError is one)."""
    parts = urlsplit(url)
    url = urlunsplit(
        parts._replace(netloc=parts.netloc.rpartition("@")[2])
    )  # urllib would look the password up as a host
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = Request(url, headers=headers, data=None if body is None else json.dumps(body).encode())
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=seconds) as reply:
            return bytes(reply.read())
    except HTTPException as error:  # a reply cut off half-way
        raise OSError(str(error)) from None


def models_served(url: str, key: str | None) -> list[str] | None:
    """The models that a server lists; [] if it wants another key; None if no such server answers."""
    try:
        return [str(card["id"]) for card in json.loads(ask(f"{url}/models", key))["data"]]
    except HTTPError as error:
        return [] if error.code in (401, 403) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def makes_tokens(url: str, key: str | None, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a prompt is still answered. /health and /models answer even when vLLM's engine hangs or has just died."""
    models = models_served(url, key)
    if not models:
        return models == []  # a server that wants another key is running
    body = {"model": models[0], "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
    try:
        ask(f"{url}/chat/completions", key, body, seconds)
    except HTTPError as error:
        return error.code < 500
    except OSError:
        return False
    return True


def started_at(url: str) -> float | None:
    """When the server process started, in seconds since 1970, from its /metrics (vLLM has them); None if unknown."""
    with suppress(OSError, ValueError):
        text = ask(f"{url.removesuffix('/v1')}/metrics").decode("utf-8", "replace")
        found = re.search(r"^process_start_time_seconds (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else None
    return None


# --- who else can ask it -----------------------------------------------------------------------------


def own_address() -> str | None:
    """This machine's address in its network, or None. Nothing is sent: a UDP socket only picks a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(route.getsockname()[0])


def is_open_to_the_world(url: str) -> bool:
    """Whether the server lists its models to anyone who asks over the network without a key."""
    parts = urlsplit(url)
    host = own_address() if is_loopback(url) else parts.hostname
    if host is None:
        return False
    port = f":{parts.port}" if parts.port else ""
    return bool(models_served(urlunsplit((parts.scheme, f"{host}{port}", parts.path, "", "")), None))


def warn_if_open(url: str) -> None:
    """Warn when a server is asked over the network without a key, or answers anyone in the network."""
    host, port = urlsplit(url).hostname, urlsplit(url).port or 8000
    if not is_loopback(url):
        if not server_key():
            instead = f"ssh -L {port}:localhost:{port} {host}"
            say(f"warning: {host} is asked over the network without a key; prefer {instead}")
    elif is_open_to_the_world(url):
        say(
            f"warning: the server on port {port} answers anyone in the network, without a key; serve with --host"
            f" 127.0.0.1, or set VLLM_API_KEY for server and scripts"
        )
