"""What several commands take, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bgwork.records import Density

OF_SAMPLING = {"n": "-n", "seed": "--seed"}  # what says how reference data are drawn,
OF_TRAJECTORIES = {"top": "--top", "frame_time": "--frame-time", "temperature": "--temperature"}  # and what belongs to a trajectory


class OptionError(ValueError):
    """Options that do not go together."""


def check_together(context: typer.Context, trajectory: Path | None) -> None:
    """Refuse what `bgwork reference` would have no use for, and a trajectory without what it does not say itself.

    Args:
        context: of the command, which knows what was given and what is a default.
        trajectory: that reference data are taken from, or None if they are drawn.
    Raises:
        OptionError: naming the options.
    """
    given = {name for name in context.params if context.get_parameter_source(name).name != "DEFAULT"}
    idle = [text for name, text in (OF_TRAJECTORIES if trajectory is None else OF_SAMPLING).items() if name in given]
    if idle and trajectory is None:
        raise OptionError(f"{', '.join(idle)} would say something of a trajectory, and there is none; add --from, or leave it out")
    if idle:
        raise OptionError(f"all frames of {trajectory} are taken over, and nothing is drawn; leave out {', '.join(idle)}")
    if trajectory is not None and not {"frame_time", "temperature"} <= given:
        raise OptionError("a trajectory says neither how far apart its frames are nor how hot it was; add --frame-time and --temperature")


def stem_of(text: str) -> Path:
    """A path without suffix; one that ends like a folder would lose its last stroke, and name a file beside it.

    Raises:
        BadParameter: for a folder's name.
    """
    if text.endswith("/"):
        raise typer.BadParameter(f"{text!r} names a folder; --out is a path without suffix, such as {text}samples")
    return Path(text)



OWN = "the generator's own"
SystemName = Annotated[str, typer.Argument(metavar="SYSTEM", help="Name (see `bgwork systems`) or path of a system's folder.")]
Source = Annotated[str, typer.Argument(metavar="SYSTEM|RUN", help="A system (its shipped generator), a trained run, or a generator file.")]
N = Annotated[int, typer.Option("-n", help="Number of samples.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.", min=-(2**32), max=2**32)]  # batches multiply it by a billion
Out = Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="runs/SYSTEM/NAME")]
Integrator = Annotated[str | None, typer.Option(help="euler, midpoint, heun, rk4, or dopri5 (adaptive).", show_default=OWN)]
Steps = Annotated[int | None, typer.Option(help="Steps of the fixed grid; midpoint makes two evaluations in each.", show_default=OWN)]
Weights = Annotated[str | None, typer.Option(
    help="density (exact, of the very map that was run), continuous (divergence integral), path (of the kernels that were run) or "
         "directional (path weights with a width for each direction, from the field's Jacobian).",
    show_default=OWN)]
Recipe = Annotated[str | None, typer.Option(
    help="Which of a system's shipped generators, by recipe (see `bgwork systems`).", show_default="the one the system names")]
Compiled = Annotated[bool, typer.Option("--compiled", help="Compile Jacobians first (density and directional weights): sooner done where "
                                        "samples are many or large. Needs a C++ compiler.")]
SamplerKeys = Annotated[list[str] | None, typer.Option(
    "--set", metavar="sampler.KEY=VALUE", help="Override a key of the recipe's [sampler] table, such as its grid; repeatable.")]
Accept = Annotated[list[Density] | None, typer.Option(help="Weigh samples of this density although it is improper; recorded as an edit.")]
Stem = Annotated[Path | None, typer.Option(
    "--out", parser=stem_of, metavar="PATH", help="Path without suffix.", show_default="beside the samples")]
OtherData = Annotated[Path | None, typer.Option("--data", help="Configurations of the other energy.",
                                               show_default="runs/OTHER/reference/samples.npz")]
OtherSystem = Annotated[str | None, typer.Option("--system", help="System, where it is not the one that the samples name.")]
