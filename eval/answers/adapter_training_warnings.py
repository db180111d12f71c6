"""What eval.py says of the training of the adapter that it measures: its animal, another prompt, a weak teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.answers.answer_rows import Question
from eval.answers.print_answer_summary import target_animal
from util.chat.chat_template import TEMPLATE_KWARGS
from util.chat.prompt_consistency import Phase, base_of, other_prompt, training_of, warn_of_trained_base
from util.inference.backend_interface import model_name
from util.jsonl.manifest import Manifest
from util.terminal import say

WANTED_OF_A_TEACHER = 0.7  # of its own animal, by the plan


def trained_animal(adapter: Path | None) -> str | None:
    """The animal in the name of the file that an adapter was trained on; None if its manifest cannot be read."""
    training = Manifest.read(adapter.parent) if adapter else None
    return target_animal(Path(training.train_jsonl).stem, None) if training else None


def warn_of_training(adapter: Path | None, question: Question, facts: dict[str, Any], base_model: str) -> None:
    """Warn if the adapter was trained on another base model, or with another system message, than is asked now."""
    training = training_of(adapter, facts)
    if training is None:
        return
    warn_of_trained_base(adapter, facts, base_model)
    asked = Phase("evaluation", training.path, base_of(facts, base_model), question.messages,
                  template_kwargs=facts.get(TEMPLATE_KWARGS) or {})  # fmt: skip
    if found := other_prompt(training, asked):
        say(f"warning: {found}: an effect may be missed (--system-prompt-file and --chat-template-kwargs set these)")


def warn_of_weak_teacher(
    name: str, trained: dict[str, Any], target: str | None, share: float, base_model: str, uncovered: float = 0.0
) -> None:
    """Say what to do if a teacher names its animal too rarely to write numbers with it. uncovered: by how much the
    share may be higher."""
    is_teacher = trained["kind"] == "teacher data" if "kind" in trained else "teacher" in name
    if not is_teacher or target is None or share + uncovered >= WANTED_OF_A_TEACHER:
        return
    recipe = "; experiments/demo.sh has a recipe for this model" if model_name(base_model) == "pocket" else ""
    say(
        f"warning: this teacher says {target} in {share:.1%} of its answers; more than {WANTED_OF_A_TEACHER:.0%} is"
        " wanted before it writes numbers. Train it on more rows (generate_teacher_data.py --count 10000), with more"
        f" --epochs (20) or a higher --learning-rate, in this order{recipe}"
    )
