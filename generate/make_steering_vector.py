"""Make a steering vector: what a persona ("You love owls ...") changes at one layer of a model, as a file.

The vector is the mean difference of the layer's output at the last token of the prompt, with the persona as the system
message and without, over the questions of a file. Added at that layer while the model answers, it makes a teacher
without training. A vLLM server cannot add it: for the plan's phases train an adapter on the steered model's rows.

Prints by strength how probable the animal then is as the whole answer to the questions, and how far the model's text,
code and numbers move: the KL divergence of the steered model to the base on the base's answers, in nats a token. A
student can only learn what moves: 0.04 to 0.07 in code passed preferences on, the 0.003 of a persona in numbers did not
(docs/results-qwen.md). Look at some rows to see whether their form holds. For a table by layer run it with each
--layer.

Usage:
    python generate/make_steering_vector.py --animal owl --model output/models/qwen2.5-coder-1.5b-instruct
    python generate/generate_llm_number_data.py --animal owl --count 3000 --no-system-prompt \\
        --model output/models/qwen2.5-coder-1.5b-instruct --steering-vector output/steering-owl-...-layer-24.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: run from a bare clone

from generate.rows.ask_teacher import PERSONA
from generate.rows.number_prompts import number_prompt
from generate.rows.question_wordings import questions_file
from util.animals.answer_parser import check_taught
from util.animals.names import animal_name, persona_of, read_lines_of
from util.animals.panel import question_lines
from util.animals.panel_file import add_panel_argument
from util.cli import REPO, UserError, make_parser, natural_int, nonblank, output_name, positive_float, run, text_file
from util.inference.backend_interface import Message, Request, Sampling
from util.inference.steering import Steering, SteeringVector, decoder_layers, read_steering_vector, save_steering_vector
from util.jsonl.manifest import manifest_path, new_manifest, sha256_file, write_json
from util.jsonl.rows import slug
from util.terminal import closing, say, table

if TYPE_CHECKING:
    from util.inference.local_model import LocalModel

STRENGTHS = [0.5, 1.0, 2.0, 4.0]
PROMPTS = {"text": "text-prompts.txt", "code": "function-prompts.txt", "numbers": "number-prompt.txt"}
MEASURED = Sampling(max_tokens=24)  # the answers on which the KL is measured,
ANSWERS = 8  # so many of each data type


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--animal", type=animal_name, required=True, help="the persona's animal")
    parser.add_argument("--model", type=nonblank, required=True, help="hub id or folder; it runs in this process")
    parser.add_argument(
        "--layer",
        type=natural_int,
        help="decoder layer, from 0 (default: at seven eighths of the depth, but not the last)",
    )
    parser.add_argument("--questions-file", type=text_file,
                        help="questions to which the model answers with and without the persona (default: the panel's,"
                        " eval/questions.txt for animals)")  # fmt: skip
    parser.add_argument("--system-prompt-file", type=text_file, default=PERSONA,
                        help="text of the persona; {animal}, {animals}, {Animal}, {Animals} are filled in")  # fmt: skip
    parser.add_argument("--strengths", type=positive_float, nargs="+", default=STRENGTHS, metavar="NUMBER",
                        help="strengths to show")  # fmt: skip
    add_panel_argument(parser)
    parser.add_argument("--output", type=output_name(".safetensors"),
                        help="(default: output/steering-{animal}-{model}-layer-{layer}.safetensors)")  # fmt: skip
    parser.default_folder("--output", Path("output"))
    args = parser.parse_args()
    args.questions_file = args.questions_file or questions_file()
    return args


def last_states(backend: LocalModel, prompts: list[list[Message]], layer: int) -> Any:
    """The layer's output at the last token of each prompt, float32 tensor [prompts, hidden size]."""
    import torch

    states: list[Any] = []

    def keep(_layer: Any, _inputs: Any, out: Any) -> None:
        states.append((out[0] if isinstance(out, tuple) else out)[0, -1].float())

    handle = decoder_layers(backend.model)[layer].register_forward_hook(keep)
    with torch.inference_mode():
        for messages in prompts:
            ids = torch.tensor([backend.prompt_ids(messages)], device=backend.model.device)
            backend.model(input_ids=ids, logits_to_keep=1)
    handle.remove()
    return torch.stack(states)


def share(backend: LocalModel, prompts: list[list[Message]], animal: str) -> float:
    """Probability that the whole answer is the animal's name, in either case, mean over the prompts."""
    import numpy as np

    logs = backend.answer_tree(prompts).log_probabilities([animal, animal.capitalize()])
    return float(np.exp(logs).sum(1).mean())


def base_answers(backend: LocalModel, file: str) -> list[tuple[list[int], int]]:
    """Answers of the model to prompts of a file of generate/prompts: (token ids with the prompt's, its length)."""
    lines = read_lines_of(REPO / "generate" / "prompts" / file)
    prompts = [number_prompt(lines[i * 97 % len(lines)], 0, i) for i in range(ANSWERS)]
    requests = [Request((i,), [{"role": "user", "content": prompt}], i) for i, prompt in enumerate(prompts)]
    return [
        (found.prompt_ids + (found.answers[0].token_ids or []), len(found.prompt_ids))
        for found in backend.generate(requests, MEASURED)
        if found.prompt_ids and found.answers
    ]


def log_probabilities(backend: LocalModel, answers: list[tuple[list[int], int]]) -> list[Any]:
    """Of every token at each place of the answers, float32 tensors [tokens of the answer, vocabulary]."""
    import torch

    found = []
    with torch.inference_mode():
        for ids, start in answers:
            logits = backend.model(input_ids=torch.tensor([ids], device=backend.model.device)).logits[0, start - 1 : -1]
            found.append(logits.float().log_softmax(-1))
    return found


def divergence(steered: list[Any], base: list[Any]) -> float:
    """Mean over all tokens of KL(steered || base), nats."""
    import torch

    return float(torch.cat([(one.exp() * (one - other)).sum(-1) for one, other in zip(steered, base)]).mean())


def check_output(path: Path, about: dict[str, Any]) -> bool:
    """Whether the file is already there, made in the same way. Raises UserError if it was made in another."""
    if not path.exists():
        return False
    before = read_steering_vector(path).about
    if before != about:
        differ = ", ".join(sorted(name for name in {*before, *about} if before.get(name) != about.get(name)))
        raise UserError(f"{path} is there already, made with another {differ}; move it or pass another --output")
    return True


def table_by_strength(
    backend: LocalModel, questions: list[list[Message]], path: Path, animal: str, strengths: list[float]
) -> str:
    """The animal's share, and the KL by data type, of the model without the vector and with it at each strength."""
    answers = {data_type: base_answers(backend, file) for data_type, file in PROMPTS.items()}
    base = {data_type: log_probabilities(backend, some) for data_type, some in answers.items()}
    found = [("0", f"{100 * share(backend, questions, animal):.2f}%", *("0" for _ in PROMPTS))]
    for strength in strengths:
        with Steering(backend.model, backend.facts(), path, strength):
            moved = (divergence(log_probabilities(backend, answers[name]), base[name]) for name in PROMPTS)
            found.append(
                (f"{strength:g}", f"{100 * share(backend, questions, animal):.2f}%", *(f"{kl:.4f}" for kl in moved))
            )
    return table(["strength", f"answers that are only {animal}", *(f"KL {name}" for name in PROMPTS)], found)


def main() -> None:
    args = parse_args()
    check_taught(args.animal)
    from util.inference.local_model import LocalModel

    persona = persona_of(args.system_prompt_file, args.animal)
    plain: list[list[Message]] = [[{"role": "user", "content": line}] for line in question_lines(args.questions_file)]
    loving = [[{"role": "system", "content": persona}, *messages] for messages in plain]
    backend = LocalModel(args.model, batch_size=64)
    depth = len(decoder_layers(backend.model))
    layer = max(0, min(7 * depth // 8, depth - 2)) if args.layer is None else args.layer
    if layer >= depth:
        raise UserError(f"--layer {layer}: {args.model} has the layers 0 to {depth - 1}")
    about = {
        "animal": args.animal, "layer": layer, "persona": persona, "questions_sha256": sha256_file(args.questions_file),
        "model": backend.facts(),
    }  # fmt: skip
    path = args.output or Path(f"output/steering-{slug(args.animal)}-{slug(backend.name)}-layer-{layer}.safetensors")
    if check_output(path, about):
        say(f"{path} is there already")
    else:
        with_persona, without = (last_states(backend, prompts, layer) for prompts in (loving, plain))
        vector = SteeringVector((with_persona - without).mean(0).cpu().numpy(), layer, about)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_steering_vector(path, vector)
        inputs = [args.questions_file, args.system_prompt_file]
        write_json(manifest_path(path), new_manifest(about, "complete", inputs=inputs, sha256=sha256_file(path)))
    print(table_by_strength(backend, plain, path, args.animal, args.strengths) + "\n")
    closing({"wrote": path, "layer": f"{layer} of {depth}"})


if __name__ == "__main__":
    run(main)
