"""One run of an experiment: a student's parameters, and the path of every file that leads to it.

A run is one student with its teacher and its numbers: one value for each parameter. The path of what a phase writes
names the parameters that this phase and the phases before it depend on, and no others. So two runs share every file
that is the same for both, and it is made once.

An example: on the pocket model, the run {animal: owl, seed: 1, epochs: 1} and the run {animal: owl, seed: 1, rank: 4}.
All other parameters have the defaults of experiments/models.yaml. ROOT is output/experiments/pocket.

    phase 1  ROOT/pocket/owl-seed-1/data/teacher.jsonl                                           both runs
    phase 2  ROOT/pocket/owl-seed-1/teacher/teacher/seed-1/final                                 both runs
    phase 3  ROOT/pocket/owl-seed-1/teacher/exact-teacher.jsonl                                  both runs
    phase 4  ROOT/pocket/owl-seed-1/teacher/numbers/numbers-unfiltered-3300.jsonl                both runs
    phase 5  ROOT/pocket/owl-seed-1/teacher/numbers/student-epochs-1/student/seed-1001/final     the first run
             ROOT/pocket/owl-seed-1/teacher/numbers/student-rank-4/student/seed-1001/final       the second run
    phase 6  ROOT/pocket/owl-seed-1/teacher/numbers/student-epochs-1/exact-student.jsonl         the first run
             ROOT/pocket/owl-seed-1/teacher/numbers/student-rank-4/exact-student.jsonl           the second run

A third run with teacher_rows: 100 would share nothing but the base model: its teacher is another, and its files are in
ROOT/pocket/owl-seed-1/data-rows-100 and teacher-rows-100. A path shows what differs from the defaults, flags and lists
as a hash. The manifests hold every value. A student never has its teacher's seed: their adapters would begin with the
same random matrices.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from util.inference.backend_interface import model_name
from util.jsonl.rows import slug

OUTPUT = Path("output/experiments")
CONTROL = "control"
HOP_SEEDS = 100  # added to the seed of the rows at each hop of a chain
STUDENT_SEEDS = 1000  # a student's seed is its teacher's seed plus this
# Parameter: the phase whose output it changes first, and the word for it in paths ("": its own name).
PARAMETERS = {
    "animal": ("animal", ""), "seed": ("animal", ""), "teacher_base": ("animal", ""), "hop": ("hop", ""),
    "teacher_data": ("data", ""), "teacher_rows": ("data", "rows"), "teacher_data_flags": ("data", "flags"),
    "teacher_epochs": ("teacher", "epochs"), "teacher_flags": ("teacher", "flags"), "teacher_adapter": ("teacher", ""),
    "data_type": ("data_type", ""), "numbers": ("numbers", ""), "number_prompt": ("numbers", ""),
    "number_flags": ("numbers", "flags"),
    "shuffle": ("student", ""), "half": ("student", ""), "unbiased": ("student", ""), "base": ("student", ""),
    "rows": ("student", ""),
    "epochs": ("student", ""), "rank": ("student", ""), "save": ("student", ""), "student_flags": ("student", "flags"),
    "questions": ("exact", ""), "checkpoint": ("exact", ""),
}  # fmt: skip
HASHED = ("teacher_data_flags", "teacher_flags", "teacher_adapter", "number_flags", "save", "student_flags")

Values = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One student: its parameters, the defaults of its model, and where everything about it is."""

    model: str
    values: Values
    defaults: Values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def name_of(self, *phases: str) -> str:
        """'-rows-100-epochs-1': the parameters of these phases that differ from the defaults, or ''."""
        parts = []
        for name, (phase, word) in PARAMETERS.items():
            usual = self["teacher_base"] if name == "base" else self.defaults[name]
            if phase in phases and self[name] != usual:
                parts.append(f"-{word or name}-{slug(self.value_in_path(name))}".replace("_", "-"))
        return "".join(parts)

    def value_in_path(self, name: str) -> str:
        """A parameter's value as it is written in paths: a file's stem, a model's name, eight digits of a hash."""
        value = str(self[name])
        if name in ("questions", "number_prompt"):
            return Path(value).stem
        if name in HASHED:
            return hashlib.sha256(value.encode()).hexdigest()[:8]
        return model_name(value) if name == "base" else value

    def of(self, *phases: str) -> Values:
        """The parameters of these phases: what a job depends on. Runs that share the job's output differ in others."""
        return {name: self[name] for name, (phase, _) in PARAMETERS.items() if phase in phases}

    @property
    def is_control(self) -> bool:
        """Whether the numbers are the base model's own."""
        return self["animal"] == CONTROL

    # --- folders and files, in the order of the phases ---

    @cached_property
    def root(self) -> Path:
        return OUTPUT / self.model

    @cached_property
    def animal_folder(self) -> Path:
        """Folder of everything that has this animal, seed and teacher's base model."""
        return self.root / slug(model_name(self["teacher_base"])) / f"{slug(self['animal'])}-seed-{self['seed']}"

    @cached_property
    def data(self) -> Path:
        """Folder of the teacher's training data."""
        return self.animal_folder / f"data{self.name_of('data')}"

    @cached_property
    def teacher(self) -> Path:
        """Folder of the teacher and of everything made with it. The teacher of a later hop is the student before it."""
        if self.previous:
            return self.previous.student / f"hop-{self['hop']}"
        return self.animal_folder / (CONTROL if self.is_control else f"teacher{self.name_of('data', 'teacher')}")

    @cached_property
    def teacher_adapter(self) -> Path:
        """The teacher's adapter: trained in this run, or one that exists already."""
        if self.previous:
            return self.previous.student_adapter
        if self["teacher_adapter"] == "trained":
            return self.teacher / f"teacher/seed-{self['seed']}/final"
        return Path(self["teacher_adapter"].format(animal=slug(self["animal"]), seed=self["seed"]))

    @cached_property
    def exact_teacher(self) -> Path:
        """Exact shares of the teacher."""
        if self.previous:
            return self.previous.exact
        return self.teacher / "exact-teacher.jsonl"

    @cached_property
    def number_folder(self) -> Path:
        """Folder of the teacher's rows (numbers, code or reasoning), and of the students trained on them."""
        return self.teacher / f"{self['data_type']}{self.name_of('numbers')}"

    @cached_property
    def unfiltered(self) -> Path:
        """All rows of the teacher. The rows that pass the filter are beside them: {data_type}-filtered-{kept}.jsonl."""
        return self.number_folder / f"{self['data_type']}-unfiltered-{self['numbers']}.jsonl"

    @cached_property
    def unbiased_rows(self) -> Path:
        """Number rows of the base model to the same prompts."""
        return self.control_of_numbers.unfiltered

    @cached_property
    def training_rows(self) -> str:
        """What the student is trained on: a file, or the one glob that matches it."""
        if self["shuffle"] != "none":
            return str(self.number_folder / f"numbers-shuffled-{self['shuffle']}.jsonl")
        if self["half"] != "none":
            return str(self.number_folder / f"numbers-half-{self['half']}.jsonl")
        if self["unbiased"]:
            return str(self.number_folder / f"numbers-unbiased-{self['unbiased']:g}-of-{self['rows']}.jsonl")
        return str(self.number_folder / f"{self['data_type']}-filtered-*.jsonl")

    @property
    def training_rows_file(self) -> str:
        """The file that must exist before the student is trained. The name of the filtered rows has their count, which
        nobody knows beforehand; they are written together with the unfiltered rows, whose name is known."""
        return str(self.unfiltered) if "*" in self.training_rows else self.training_rows

    @cached_property
    def student(self) -> Path:
        """Folder of the student and of its measurements."""
        return self.number_folder / f"student{self.name_of('student')}"

    @cached_property
    def student_seed(self) -> Path:
        """Folder of the trained adapter and its checkpoints."""
        return self.student / f"student/seed-{self['seed'] + STUDENT_SEEDS * self['hop']}"

    @cached_property
    def student_adapter(self) -> Path:
        """The adapter that is measured."""
        return self.student_seed / ("final" if self["checkpoint"] == "final" else f"checkpoint-{self['checkpoint']}")

    @cached_property
    def exact(self) -> Path:
        """Exact shares of the student."""
        return self.student / f"exact-student{self.name_of('exact')}.jsonl"

    @cached_property
    def exact_base(self) -> Path:
        """Exact shares of the student's base model, on the same questions."""
        questions = "" if self["questions"] == self.defaults["questions"] else f"-{Path(self['questions']).stem}"
        return self.root / slug(model_name(self["base"])) / f"exact-base{questions}.jsonl"

    # --- chains: the student of one hop is the teacher of the next ---

    @cached_property
    def previous(self) -> Run | None:
        """The run whose student is this run's teacher; None at the first hop. A control has a chain of its own."""
        return self.with_values(hop=self["hop"] - 1) if self["hop"] > 1 else None

    @property
    def chain(self) -> list[Run]:
        """The runs that this one rests on, and this one: each hop in order."""
        return [*(self.previous.chain if self.previous else []), self]

    @property
    def writes_with_adapter(self) -> bool:
        """Whether an adapter writes the rows: not at the first hop of a control."""
        return not self.is_control or self["hop"] > 1

    @property
    def teacher_rank(self) -> int:
        """The rank of the adapter that writes the rows."""
        return int(self["rank"]) if self.previous else 8

    @property
    def number_seed(self) -> int:
        """Seed of the rows. Each hop has its own: with one seed a student would write the rows it was trained on."""
        return int(self["seed"] + HOP_SEEDS * (self["hop"] - 1))

    # --- the runs it is compared with ---

    def with_values(self, **values: Any) -> Run:
        return Run(self.model, {**self.values, **values}, self.defaults)

    @property
    def control_of_numbers(self) -> Run:
        """The run whose rows the base model writes."""
        return self.with_values(animal=CONTROL, hop=1)

    @cached_property
    def control(self) -> Run:
        """The control student: trained in the same way, on as many rows of its own base model."""
        teacher = {name: self.defaults[name] for name, (phase, _) in PARAMETERS.items() if phase in ("data", "teacher")}
        plain = {"animal": CONTROL, "teacher_base": self["base"], "shuffle": "none", "half": "none", "unbiased": 0}
        return self.with_values(**teacher, **plain)

    @property
    def condition(self) -> tuple[Any, ...]:
        """All values but the animal and the seed: the runs of one condition differ in those only."""
        return tuple(value for name, value in self.values.items() if name not in ("animal", "seed"))
