"""The resumable request loop of every script that asks a model: ask what is missing, write rows as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any

from util.chat.prompt_consistency import prompt_entry
from util.inference.backend_interface import InferenceBackend, Request, Result, Sampling
from util.jsonl.manifest import today
from util.jsonl.resumable import RowFile
from util.jsonl.rows import Row
from util.stop_signals import stop_on_signal
from util.terminal import Progress, duration, say


def run_requests(
    out: RowFile,
    backend: InferenceBackend,
    requests: Iterable[Request],
    sampling: Sampling,
    rows_of: Callable[[Result], list[Row]],
    total: int,
    limit: int | None = None,
    note: Callable[[], str] = lambda: "",
    counts: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Ask every request whose rows are not in `out` yet, then finish the file. A finished file is left as it is. A
    signal stops the run after the requests in flight, whose rows are written.

    rows_of: the rows of one result, with its ids; a row with a "rejected" key is not data.
    total: rows expected, for the progress display. limit: keep at most so many rows, those with the lowest ids.
    note: what the progress display shows beside the rate. counts: further facts for the manifest.
    The manifest's answer_tokens and seconds are sums over all sessions; counted_rows says over how many rows, which
    are fewer only after a SIGKILL.
    Returns the closing facts of this session: path, rows, rejects by reason, time and tokens.
    """
    if out.complete:
        say(f"{out.path} is already finished; --overwrite starts again from the beginning")
        if out.settings["model"].get("adapter_sha256", "") is None:
            say("(the server's adapter cannot be read from here; one retrained under the same name is not noticed)")
        return out.facts()
    tokens, seconds = 0, 0.0
    base_model = backend.base_model  # asks the server: while answers are in flight, it would wait for all of them
    with stop_on_signal() as stop, Progress(total, out.kept) as progress:
        backend.on_part = progress.batch_done
        # Closed at once when a row cannot be written. The garbage collector would cancel the requests in flight only
        # after the backend is closed.
        with closing(backend.generate(stop.until(requests), sampling, out.done)) as results:
            for result in results:
                kept, done = out.kept, len(out.done)
                if result.answers:
                    note_prompt(out.counts, base_model, result)
                    note_folded(out.counts, backend, result)
                out.append(rows_of(result))
                new_tokens = sum(len(answer.token_ids or ()) for answer in result.answers)
                tokens, passed, seconds = tokens + new_tokens, progress.seconds - seconds, progress.seconds
                out.add_counts(answer_tokens=new_tokens, seconds=passed, counted_rows=len(out.done) - done)
                progress.add(out.kept - kept, note())
        stop.raise_if_requested()
    out.add_counts(answer_tokens=0, seconds=progress.seconds - seconds, counted_rows=0)
    out.counts["seconds"] = round(out.counts["seconds"], 1)
    out.finish(limit=limit, counts=counts)
    rate = f"{progress.new / max(progress.seconds, 1e-9):.1f} rows/s, {tokens:,} answer tokens"
    return {**out.facts(), "time": f"{duration(progress.seconds)} ({rate})"}


def note_folded(counts: dict[str, Any], backend: InferenceBackend, result: Result) -> None:
    """Keep that a system message was put before the first user's text, for a template without a system role."""
    if backend.folds_system and result.request.messages[0]["role"] == "system":
        counts["system_message"] = "put before the first user message: the chat template has no system role"


def note_prompt(counts: dict[str, Any], base_model: str, result: Result) -> None:
    """Keep the first prompt of an output, and every day on which prompts were rendered."""
    prompt = counts.setdefault("prompt", prompt_entry(base_model, result.request.messages, result.prompt_ids))
    if today() not in prompt.get("days", [today()]):
        prompt["days"].append(today())
