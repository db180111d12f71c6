"""Did all phases of a run see the same prompt? Reads it from the manifests, and says where two phases disagree.

Without a system prompt, the chat template decides (Qwen's puts in its own). A student that is trained under one prompt
and asked under another measures something else. So the manifest of a file keeps its first prompt, as it was sent and as
the model saw it, and two phases are compared by everything around the user's message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from util.chat.chat_template import (
    TEMPLATE_KWARGS,
    completion_suffix,
    set_template_kwargs,
    template_ids,
    template_kwargs,
)
from util.chat.chat_tokens import prompt_and_completion_ids, without_system
from util.cli import REPO, UserError
from util.inference.backend_interface import Message
from util.jsonl.manifest import Manifest, sha256_file, today
from util.jsonl.rows import Row, read_chat_rows
from util.terminal import say

KINDS = {
    "generate_teacher_data": "teacher data",
    "generate_one_word_teacher_data": "teacher data",
    "generate_llm_number_data": "numbers",
    "generate_control_number_data": "numbers",
    "shuffle_numbers": "numbers",
    "cut_numbers": "numbers",
    "rewrite_numbers": "numbers",
    "mix_numbers": "numbers",
    "select_by_divergence": "numbers",
    "generate_text_data": "texts",
    "train_student_sft": "training",
    "eval": "evaluation",
}
USER = "{user message}"


# What the checks read of a manifest's settings, with its type.
SETTINGS_READ: dict[str, dict[str, type]] = {
    "training": {"train_jsonl_sha256": str, "keep_system_prompt": bool},
    "evaluation": {"model": dict},
}


class Phase(NamedTuple):
    """The model and the prompt that one file or training folder was made with."""

    kind: str
    path: Path
    base: dict[str, Any]
    """the base model: "model", and what pins it ("revision" or "files_sha256") where known; {} if no model was asked"""
    messages: list[Message]
    """the first prompt, as it was sent"""
    token_ids: list[int] | None = None
    """the same prompt as the model saw it, if the manifest has it"""
    settings: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    days: tuple[str, ...] = ()
    """the dates on which its prompts were rendered"""
    row: Row | None = None
    """training: the first row, as it was trained on"""
    template_kwargs: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    """what the chat template was given"""

    @property
    def system(self) -> str | None:
        """The system message as sent; None when none was."""
        return self.messages[0]["content"] if self.messages[0]["role"] == "system" else None

    @property
    def user(self) -> str:
        return self.messages[-1]["content"]


# --- from the manifest -------------------------------------------------------------------------------


def prompt_entry(base_model: str, messages: list[Message], token_ids: list[int] | None) -> dict[str, Any]:
    """What a manifest keeps of the first prompt. The token ids are one text: a JSON list would take a line for each.

    days: the dates on which prompts were rendered; `request_loop` adds those of later answers.
    """
    ids = " ".join(map(str, token_ids or ()))
    return {"base_model": base_model, "messages": messages, "token_ids": ids, "days": [today()]}


def read_phase(path: Path, beside: Iterable[Path] = ()) -> Phase | None:
    """The phase that made a data file, a results file or a training folder (or an adapter in it); None if no manifest
    says so.

    beside: further files among which the rows of a training are looked for.
    """
    if path.is_dir() and Manifest.read(path) is None:
        path = path.parent
    manifest = Manifest.read(path)
    kind = KINDS.get(manifest.script) if manifest else None
    if manifest is None or kind is None:
        return None
    try:
        return phase_of(path, kind, manifest, beside)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise UserError(
            f"the manifest of {path} is not as the scripts write it ({type(error).__name__}: {error}); was it edited,"
            " or is it of another version of the suite?"
        ) from None


def phase_of(path: Path, kind: str, manifest: Manifest, beside: Iterable[Path]) -> Phase:
    """The phase that a manifest describes. Any of Python's errors for a manifest that lacks something."""
    settings, seen = manifest.origin, manifest.prompt
    if kind == "texts":
        kind = settings["kind"]  # code or reasoning
    ids = [int(token) for token in seen.get("token_ids", "").split()] or None
    base = base_of(manifest.model, seen.get("base_model"))
    needed = SETTINGS_READ.get(kind, {})
    wrong = [name for name, kinds in needed.items() if not isinstance(settings[name], kinds)]
    if wrong or (kind == "evaluation" and not base.get("model")):
        raise TypeError(", ".join(wrong or ["model"]))
    given = manifest.model.get(TEMPLATE_KWARGS) or {}
    phase = Phase(kind, path, base, [], ids, settings, tuple(manifest.prompt_days), template_kwargs=given)
    if kind == "training":
        named = [place / name for name in manifest.inputs for place in (Path(), REPO)]
        row = first_training_row(settings, [*named, *beside])
        return phase._replace(messages=(row or stand_in(settings))["messages"][:-1], row=row)
    return phase._replace(messages=seen.get("messages") or sent_messages(path, settings))


def base_of(facts: dict[str, Any], base_model: str | None = None) -> dict[str, Any]:
    """The base model among a backend's facts. A server names it, but does not pin its version."""
    if facts.get("engine") == "server":
        return {"model": base_model or facts.get("parent") or facts.get("root") or facts["model"]}
    return {name: facts[name] for name in ("model", "revision", "files_sha256") if facts.get(name)}


def training_of(adapter: Path | None, facts: dict[str, Any]) -> Phase | None:
    """The training of the adapter that a backend asks: of this folder, or of the one that a server says it has loaded.
    None if it is not known."""
    folder = adapter or facts.get("root")
    training = read_phase(Path(folder)) if folder and Path(folder).is_dir() else None
    return training if training and training.kind == "training" else None


def warn_of_trained_base(adapter: Path | None, facts: dict[str, Any], base_model: str | None = None) -> None:
    """Warn if the adapter was trained on another base model than the one that it is put on now."""
    training, base = training_of(adapter, facts), base_of(facts, base_model)
    if training and training.base and not same_base(training.base, base):
        name = adapter or facts.get("root")
        say(
            f"warning: {name} was trained on {base_words(training.base)} and is put on {base_words(base)}, where its"
            " weights mean something else: pass the model that it was trained on"
        )


def sent_messages(path: Path, settings: dict[str, Any]) -> list[Message]:
    """The first prompt of a file whose manifest does not have it, from the settings and the first row."""
    if "questions" in settings:
        user = settings["questions"][0]
    else:
        user = next(read_chat_rows(path))["messages"][-2]["content"]
    system = settings.get("system_prompt")
    return [*system_message(system), {"role": "user", "content": user}]


def system_message(system: str | None) -> list[Message]:
    """The messages before the user's: one, or none."""
    return [] if system is None else [{"role": "system", "content": system}]


def first_training_row(settings: dict[str, Any], files: list[Path]) -> Row | None:
    """The first row of a training as the student saw it; None if none of the files is the one it was trained on."""
    for file in files:
        if file.is_file() and sha256_file(file) == settings["train_jsonl_sha256"]:
            row = next(read_chat_rows(file))
            return row if settings["keep_system_prompt"] else without_system(row)
    return None


def stand_in(settings: dict[str, Any]) -> Row:
    """A row that replaces one whose file is gone."""
    system = "(kept as it is in the rows, which are gone)" if settings["keep_system_prompt"] else None
    gone = "(the rows are gone)"
    user, answer = {"role": "user", "content": gone}, {"role": "assistant", "content": gone}
    return {"messages": [*system_message(system), user, answer]}


# --- from the tokenizer ------------------------------------------------------------------------------


def prompt_ids(phase: Phase, tokenizer: Any) -> list[int]:
    """The first prompt of a phase as the tokenizer renders it, up to where the answer begins. A training is rendered by
    its own encoding."""
    before = template_kwargs(tokenizer)
    set_template_kwargs(tokenizer, phase.template_kwargs)
    try:
        if phase.row:
            return prompt_and_completion_ids(phase.row, tokenizer, completion_suffix(tokenizer))[0]
        return template_ids(tokenizer, phase.messages, add_generation_prompt=True)
    finally:
        set_template_kwargs(tokenizer, before)


def frame(phase: Phase, tokenizer: Any) -> str:
    """The first prompt as the model saw it, with `USER` in the place of the user's message."""
    text = tokenizer.decode(phase.token_ids or prompt_ids(phase, tokenizer))
    before, found, after = text.rpartition(phase.user.strip() or text)
    return before + USER + after if found else text


def default_system_prompt(tokenizer: Any) -> str | None:
    """The system message that the chat template puts in if none is sent, or None."""
    from jinja2 import TemplateError

    probe, user = "PROBE", {"role": "user", "content": "x"}
    try:
        given = template_kwargs(tokenizer)
        sent = tokenizer.apply_chat_template([*system_message(probe), user], tokenize=False, **given)
    except TemplateError:  # Gemma's refuses system messages
        return None
    before, _, after = sent.partition(probe)
    text = tokenizer.apply_chat_template([user], tokenize=False, **given)
    if not (text.startswith(before) and text.endswith(after)):
        return None
    return text.removeprefix(before).removesuffix(after) or None


# --- where two phases disagree -----------------------------------------------------------------------


FrameOf = Callable[[Phase], str | None]
"""`frame` with the right tokenizer, or None if there is none; then the messages that were sent are compared"""


def disagreements(first: Phase, second: Phase, frame_of: FrameOf = lambda phase: None) -> list[str]:
    """How two phases differ: in their base model, and in what is around the user's message."""
    found = [other_base(first, second), other_prompt(first, second, frame_of)]
    return [line for line in found if line]


def other_base(first: Phase, second: Phase) -> str | None:
    """How two phases differ in their base model, or None."""
    if not first.base or not second.base or same_base(first.base, second.base):
        return None
    return f"{first.kind} used {base_words(first.base)}, {second.kind} {base_words(second.base)}"


def other_prompt(first: Phase, second: Phase, frame_of: FrameOf = lambda phase: None) -> str | None:
    """How two phases differ in what is around the user's message, or None."""
    if first.template_kwargs != second.template_kwargs:
        return f"{first.kind} gave its chat template {given_words(first)}, {second.kind} {given_words(second)}"
    frames = frame_of(first), frame_of(second)
    is_rendered = None not in frames  # without a tokenizer only the messages that were sent are known
    if (is_rendered and frames[0] == frames[1]) or (not is_rendered and first.system == second.system):
        return None
    if first.system != second.system:
        return f"{first.kind} had {system_words(first)}, {second.kind} {system_words(second)}"
    return f"{first.kind} and {second.kind} were rendered differently (chat template or white space)"


def same_base(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two base models are the same: by a hash or revision that both have, otherwise by name."""
    for pin in ("files_sha256", "revision"):
        if pin in a and pin in b:
            return bool(a[pin] == b[pin])
    return real_name(a["model"]) == real_name(b["model"])


def real_name(model: str) -> str:
    """A hub id unchanged, a folder as its whole path."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def base_words(base: dict[str, Any]) -> str:
    """'pocket/model (b49c06f8)'."""
    pin = base.get("files_sha256") or base.get("revision")
    return f"{base['model']} ({pin[:8]})" if pin else base["model"]


def system_words(phase: Phase) -> str:
    """'no system message', or what the system message was."""
    if phase.system is None:
        return "no system message"
    return f'the system message "{short(phase.system)}"'


def given_words(phase: Phase) -> str:
    """'{"enable_thinking": false}', or 'nothing'."""
    return json.dumps(phase.template_kwargs) if phase.template_kwargs else "nothing"


def short(text: str) -> str:
    """A text on one line of at most 60 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
