"""Force-field files: where OpenMM finds them, what they include, and which of them must not be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import openmm
from openmm import app

SOLVENTS: dict[str, tuple[str, ...]] = {"vacuum": (), "obc2": ("implicit/obc2.xml",)}
RECOMMENDED = ("amber14/protein.ff14SB.xml", "amber19/protein.ff19SB.xml", "amber99sbildn.xml")
SOLVENT_FORCES = (openmm.GBSAOBCForce, openmm.CustomGBForce, openmm.AmoebaGeneralizedKirkwoodForce)
SCRIPTS = ("Script", "InitializationScript")


class ForceFieldError(ValueError):
    """A PDB file or a force field that no System can be built from, with the remedy."""


def read_force_field(names: Sequence[str], solvent: str) -> app.ForceField:
    """Force-field files shipped with OpenMM, or paths, and the solvent's.

    Raises:
        ForceFieldError: for an unknown solvent, a file that is not found, one that OpenMM cannot read, one with a script in it, or one that
            brings an implicit solvent besides the one that is named.
    """
    if solvent not in SOLVENTS:
        raise ForceFieldError(f"unknown solvent {solvent!r}; known are {', '.join(SOLVENTS)}")
    for name in names:
        _check_file(name)
    try:
        return app.ForceField(*names, *SOLVENTS[solvent])
    except Exception as error:  # OpenMM raises plain ValueError, KeyError and xml.etree errors alike
        raise ForceFieldError(f"force field {', '.join(names)} cannot be loaded: {error}; give the path of an OpenMM force-field file or "
                              f"the name of a shipped one, such as {', '.join(RECOMMENDED)}") from error


def find_file(name: str, *, beside: Path | None = None) -> Path | None:
    """Where OpenMM finds a file: in the folder of the one that includes it, at its path, or among its own; None if it does not.

    Args:
        name: as given by the user or written in an <Include>.
        beside: the folder of the file that includes it.
    """
    places = [beside] if beside is not None else []
    return next((place / name for place in [*places, Path(), *_shipped_folders()] if (place / name).is_file()), None)


def is_shipped(path: Path) -> bool:
    """Whether a file comes with OpenMM, or with a package that adds force fields to it."""
    return any(folder.resolve() in path.resolve().parents for folder in _shipped_folders())


def included_files(path: Path) -> Iterator[tuple[str, Path]]:
    """(file as written, where it lies) of every <Include> of a force-field file, without those of the included ones.

    Raises:
        ForceFieldError: if the file is no XML, or an included file does not exist.
    """
    for element in _root(path).iter("Include"):
        name = element.get("file", "")
        found = find_file(name, beside=path.parent)
        if found is None:
            raise ForceFieldError(f"{path} includes {name!r}, which is neither beside it nor shipped with OpenMM; put it there")
        yield name, found


def portable_name(path: Path) -> str:
    """What a force-field file is called in a system's folder: a shipped file as OpenMM finds it, another one, copied there, by its name."""
    folders = [folder.resolve() for folder in _shipped_folders() if folder.resolve() in path.resolve().parents]
    return path.resolve().relative_to(folders[0]).as_posix() if folders else path.name


def files_to_copy(names: Sequence[str]) -> dict[str, Path]:
    """Files of the user's own, and what they include, that a system's folder needs in order to be read elsewhere.

    Args:
        names: files shipped with OpenMM, or paths.
    Returns:
        Where each lies, by its path relative to that folder.
    Raises:
        ForceFieldError: if two files would get one path, or an included one does not lie in the folder of the file that includes it.
    """
    places: dict[str, Path] = {}
    for path in filter(None, map(find_file, names)):
        _place(path, portable_name(path), places)
    return {place: path for place, path in places.items() if not is_shipped(path)}


def _place(path: Path, place: str, places: dict[str, Path]) -> None:
    """Add a file and those that it includes to the places that are taken."""
    if places.setdefault(place, path).resolve() != path.resolve():
        raise ForceFieldError(f"{places[place]} and {path} would both be called {place} in the system's folder; rename one of them")
    if is_shipped(path):
        return
    for written, included in included_files(path):
        beside = Path(os.path.normpath(Path(place).parent / written))
        if is_shipped(included) and written == portable_name(included):
            _place(included, written, places)
        elif (path.parent / written).is_file() and not beside.is_absolute() and beside.parts[0] != "..":
            _place(included, beside.as_posix(), places)
        else:
            raise ForceFieldError(f"{path} includes {written!r}, which could not be found from a copy of it; put {included} into "
                                  f"{path.resolve().parent}, and include it by its path from there")


def _shipped_folders() -> list[Path]:
    return [Path(folder) for folder in app.forcefield._getDataDirectories()]


def _root(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ForceFieldError(f"force field {path} cannot be loaded: {error}") from error


def _check_file(name: str) -> None:
    """Refuse a file with a script of the user's own, or with an implicit solvent; files that it includes are looked at too."""
    path = find_file(name)
    if path is not None:
        _refuse_script(path, trail=())
        _refuse_solvent(path, name=name)


def _refuse_script(path: Path, *, trail: tuple[Path, ...]) -> None:
    """Refuse a file that OpenMM would execute Python from, unless it is OpenMM's own.

    Args:
        path: of the file.
        trail: the files through which it is included, of which it must be none: OpenMM may not find an end.
    Raises:
        ForceFieldError: if there is a script, or a file includes itself.
    """
    if is_shipped(path):
        return
    if path.resolve() in trail:
        raise ForceFieldError(f"{path} includes itself, directly or by way of others; take out that <Include>")
    if any(next(_root(path).iter(kind), None) is not None for kind in SCRIPTS):
        raise ForceFieldError(f"{path} holds a <Script>, which OpenMM would execute; take it out if the force field works without, "
                              "or use a file shipped with OpenMM")
    for _, included in included_files(path):
        _refuse_script(included, trail=(*trail, path.resolve()))


def _refuse_solvent(path: Path, *, name: str) -> None:
    """Refuse an implicit solvent in the file or those it includes: it would count twice, or not be the one that is named.

    Args:
        path: of the file.
        name: that it goes by.
    Raises:
        ForceFieldError: naming the file and the force.
    """
    root = _root(path)
    found = [force.__name__ for force in SOLVENT_FORCES if next(root.iter(force.__name__), None) is not None]
    found += ["generalized Born" for kind in SCRIPTS for script in root.iter(kind) if "customgbforces" in (script.text or "")]
    if found:
        raise ForceFieldError(
            f"force field {name} brings an implicit solvent of its own ({', '.join(found)}); leave it out: --solvent (energy.solvent in "
            f"system.toml) names the solvent, and only {' and '.join(SOLVENTS)} are supported")
    for written, included in included_files(path):
        _refuse_solvent(included, name=f"{name} (through {written})")


def check_solvent(system: openmm.System, solvent: str) -> None:
    """Refuse a System that has another number of implicit-solvent forces than its solvent says.

    Raises:
        ForceFieldError: naming them.
    """
    found = [type(force).__name__ for force in system.getForces() if isinstance(force, SOLVENT_FORCES)]
    wanted = {"vacuum": [], "obc2": ["GBSAOBCForce"]}[solvent]
    if found != wanted:
        raise ForceFieldError(f"the force field makes {', '.join(found) or 'no force of an implicit solvent'}, but solvent {solvent!r} "
                              f"stands for {', '.join(wanted) or 'none'}; leave out the file that brings it, and name the solvent")
