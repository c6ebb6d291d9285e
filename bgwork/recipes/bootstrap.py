"""objective = "bootstrap": flow matching on the weighted samples of another generator, learned from the energy alone, say."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch

from bgwork.objectives.bootstrap import Resampled, data_from
from bgwork.recipes.base import RecipeError, Request, spent_behind
from bgwork.recipes.flow_matching import FlowMatchingRecipe
from bgwork.records import Cost, Density
from bgwork.system import Count, Section
from bgwork.training import TrainingJob


class TeacherSection(Section):
    """[teacher]: whose weighted samples are the data.

    Attributes:
        generator: one of the system's generators by name, or a generator's file, or a training run's folder.
        samples: drawn, weighed and resampled; their energies are counted in the header.
        weights: "path" or "density", where the teacher has both.
        steps: of its sampler; its own if 0.
    """

    generator: str
    samples: Count = 20_000
    weights: Literal["path", "density"] = "density"
    steps: int = 0


class BootstrapRecipe(FlowMatchingRecipe):
    """Flow matching from a generator's own weighted samples."""

    needs_data: ClassVar[bool] = False

    objective: Literal["bootstrap"]
    teacher: TeacherSection

    def job(self, request: Request) -> TrainingJob:
        self.check_space(request.system)
        self.training.check_observables(request.system)
        data = self._data(request)
        job = super().job(replace(request, data=data.x))
        told = {"ess": data.ess.value, "distinct": data.distinct, **asdict(data.cost)}
        spent = spent_in_all(teacher_path(self.teacher.generator, request.system.path), data.cost)
        return replace(job, meta={**job.meta, "teacher": told, **({"spent": spent} if spent else {})})

    def _data(self, request: Request) -> Resampled:
        from bgwork.generators import load_trained  # here, since generators are read by recipes

        teacher, system = self.teacher, request.system
        made_by, trained = load_trained(teacher_path(teacher.generator, system.path), system=system)
        if teacher.weights not in made_by.weights:
            raise RecipeError(f"teacher.weights: {teacher.generator} has {', '.join(made_by.weights)}, not {teacher.weights!r}")
        choice = replace(made_by.default_choice(), weights=teacher.weights, **({"steps": teacher.steps} if teacher.steps else {}))
        # A fold in a teacher's map makes its weights wrong, not its data useless: what is trained here is weighed by its own density.
        sampler = made_by.sampler_of(replace(trained, round_trip=None, tuning=None), choice)
        return data_from(sampler, system.differentiable_target, teacher.samples, generator=torch.Generator().manual_seed(request.seed),
                         accept=(Density.UNCERTIFIED,))


def teacher_path(generator: str, folder: Path) -> Path:
    """File of a teacher, from its name, file or folder.

    Raises:
        RecipeError: if there is none.
    """
    given = Path(generator)
    for path in (folder / "generators" / f"{generator}.safetensors", given, given / "generator.safetensors"):
        if path.is_file():
            return path
    raise RecipeError(f"teacher.generator: no {generator!r} in {folder / 'generators'}, and no such file or folder; train it first")


def spent_in_all(teacher: Path, cost: Cost) -> dict[str, float]:
    """Evaluations by the teacher's own training and by the samples drawn from it; empty if the former is unknown, as with MD data.

    Args:
        teacher: its file.
        cost: of the samples drawn and weighed.
    """
    drawn = {"energy_evaluations": cost.energy, "gradient_evaluations": cost.gradient}
    return {name: count + drawn[name] for name, count in spent_behind(teacher).items()}
