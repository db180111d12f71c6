"""The retry policy of the vLLM client: which requests are sent again, after how long, and when a run stops.

- The server is busy (429, 503): wait, without limit. The client's --timeout ends a wait in which nothing is answered.
- The request itself is wrong, or the key, or the model is not served: stop at once, or give up this one request.
- Anything else (500, a lost connection, a broken reply): send again, up to TRIES times, after 0.5, 1, 2 and 4 seconds.
- FAILURES_IN_A_ROW failures without one answer between them: stop the run, so that its prompts are not used up one by
  one. They must span STOP_SECONDS, because one short fault may break all connections at the same moment.

The openai client's own retries are off. They do not see a broken reply, do not wait for a busy server, and would
multiply with these.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from util.cli import UserError
from util.inference.backend_interface import NotFinite, ServerFailed
from util.inference.vllm_replies import DAMAGED, NAN_REFUSED, ForeignReply, NoAnswer, error_text
from util.terminal import say

TRIES = 5
FIRST_WAIT = 0.5  # seconds; doubled after each further failure
FAILURES_IN_A_ROW, STOP_SECONDS = 24, 1.5
BUSY = (429, 503)
BUSY_SECONDS, LONGEST_BUSY_SECONDS = 2.0, 60.0
CONTEXT_ERRORS = ("context length", "max_model_len", "max_tokens must be at least")
T = TypeVar("T")


class RefusedRequest(UserError):
    """The server says that the request itself is wrong."""


class Retries:
    """Sends the requests of one run, again where that may help, and counts the server's failures."""

    def __init__(self, base_url: str, model: str):
        self.base_url, self.model = base_url, model
        self.in_a_row = 0
        self.first_failure = 0.0
        self.said_busy = False

    async def ask(self, send: Callable[[], Awaitable[T]], what: str) -> T:
        """The result of `send()`, which raises openai's errors, or ValueError for a reply that cannot be used.

        Raises NoAnswer where only this request is at fault, ServerFailed where the server is, and UserError (such as
        RefusedRequest) where the user is. `what` names the request in messages ("row 7").
        """
        import openai

        tries = 0
        while True:
            try:
                found = await send()
            except (openai.OpenAIError, ValueError) as error:
                if getattr(error, "status_code", None) in BUSY:
                    await self._wait_while_busy(error)
                    continue
                self._raise_if_final(error)
                tries += 1
                self._count_failure(error, what, tries)
                await asyncio.sleep(FIRST_WAIT * 2 ** (tries - 1))
            else:
                self.in_a_row = 0
                return found

    async def _wait_while_busy(self, error: Exception) -> None:
        if not self.said_busy:
            say(f"{self.base_url} is busy ({error_text(error)}); waiting for it")
        self.said_busy = True
        await asyncio.sleep(busy_seconds(error))

    def _raise_if_final(self, error: Exception) -> None:
        """Raise what the user sees for an error that the same request would meet again."""
        import openai

        text = error_text(error)
        if isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError)):
            if NAN_REFUSED in text:
                raise NotFinite(DAMAGED) from None
            if any(sign in text for sign in CONTEXT_ERRORS):
                raise NoAnswer(f"too long for the model's context: {text}") from None
            raise RefusedRequest(f"the server refused a request: {text}") from None
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            raise wants_key(self.base_url, error) from None
        if isinstance(error, openai.NotFoundError):
            raise UserError(f"the server no longer has {self.model!r}: {text}") from None

    def _count_failure(self, error: Exception, what: str, tries: int) -> None:
        """Raise if this was the request's last try, or if the server seems to have failed for good."""
        unusable = isinstance(error, ValueError) and not isinstance(error, ForeignReply)
        if unusable and tries == TRIES:
            raise NoAnswer(f"no usable answer: {error}") from None
        now = time.monotonic()
        if self.in_a_row == 0:
            self.first_failure = now
        self.in_a_row += 1
        if self.in_a_row >= FAILURES_IN_A_ROW and now - self.first_failure >= STOP_SECONDS:
            raise ServerFailed(self._gives_up(error)) from None
        if tries == TRIES:
            raise ServerFailed(
                f"{self.base_url} failed {TRIES} times on {what}: {error_text(error)}. Everything answered is on disk;"
                f" look at the server's log and run the same command again"
            ) from None

    def _gives_up(self, error: Exception) -> str:
        """Why the run ends. A server that replies in another way is not helped by a restart."""
        if isinstance(error, ValueError):
            return (
                f"{self.base_url} answers, but its replies cannot be used ({error_text(error)}). Everything answered is"
                f" on disk; check that the address is a vLLM server and look at its log, then run the same command"
                " again"
            )
        return (
            f"{self.base_url} stopped answering ({error_text(error)}). Everything answered is on disk; restart the"
            f" server (vLLM exits with code 0 even when its engine dies) and run the same command again"
        )


def busy_seconds(error: Exception) -> float:
    """How long to wait for a busy server: what its Retry-After says, up to a minute, or two seconds."""
    response = getattr(error, "response", None)
    with suppress(ValueError):  # it may be a date
        asked = (
            float(response.headers["retry-after"])
            if response is not None and "retry-after" in response.headers
            else 0.0
        )
        return min(asked, LONGEST_BUSY_SECONDS) if asked > 0 else BUSY_SECONDS
    return BUSY_SECONDS


def wants_key(base_url: str, error: Exception) -> UserError:
    """The error for a server that does not accept the key it was shown, or that none was shown."""
    return UserError(f"{base_url} wants a key ({error_text(error)}); set VLLM_API_KEY")
