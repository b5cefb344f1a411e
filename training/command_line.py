"""Command lines, read and written: tyro's parser with its errors made into our one line, and what to type next."""

import contextlib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from envs.contract import InputError
from envs.registry import brings_code
from training.config import parse_count

_ROOT = Path(__file__).absolute().parent.parent
_TITLE = re.compile(r"\A(╭─[^\n]*|\s*[^\n]*\n\s*-{10,}\s*\n)")  # the second where the terminal has no box-drawing characters
_RULE = re.compile(r"│ ─+ │|\n\s*-{10,}\s*\n")

_NUMBERS = tyro.constructors.ConstructorRegistry()


@_NUMBERS.primitive_rule
def _whole_number(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """Every whole number may be written 10M, 200k, 1e6 or 1_000_000."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: int(texts[0]) if texts[0].lstrip("-").isdecimal() else parse_count(texts[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [f"{value:_}"],
    )


def parse(kind: Any, args: Sequence[str], *, prog: str, default: Any = None, description: str = "") -> Any:
    """An object of `kind` from command-line arguments.

    Raises:
        InputError: the arguments do not fit; one line that says why.
    """
    stderr = io.StringIO()
    default = tyro.MISSING_NONPROP if default is None else default
    try:
        with contextlib.redirect_stderr(stderr), _NUMBERS:
            return tyro.cli(kind, args=list(args), prog=prog, default=default, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise  # --help was asked for and has been printed
        raise InputError(_one_line(stderr.getvalue())) from None


def _one_line(box: str) -> str:
    """The sense of tyro's box of text: what was wrong, and the nearest flag."""
    blocks = _RULE.split(_TITLE.sub("", box))
    said = " ".join(re.sub("[│╰╯]|─{2,}", " ", blocks[0]).split())
    said = re.sub(r": no type matching .*[\]>]: (?=[^\]>]*$)", ": ", said)  # of an optional value, the last reason
    said = re.sub(r"'None', |, 'None'", "", said)  # what stands for no value, and nobody types
    said = re.sub(r"^Missing from .*?: (--\S+) \S+ (.*) \(required\)$", r"\1 is missing. \2", said)
    nearest = re.findall(r"--[a-z][a-z0-9-]*", blocks[1]) if len(blocks) > 2 and "meant" in blocks[1] else []
    if said.startswith("Unrecognized") and not nearest:
        return f"{said}; --help lists those that there are"
    return said + (f"; nearest: {', '.join(dict.fromkeys(nearest))}" if nearest else "")


def flag(args: Sequence[str], name: str) -> str | None:
    """The value that a flag has in the arguments, before they are parsed; None where it is absent.

    Raises:
        InputError: it is given twice.
    """
    values = [after for word, after in zip(args, [*args[1:], None], strict=False) if word == name and after is not None]
    values += [word.partition("=")[2] for word in args if word.startswith(f"{name}=")]
    if len(values) > 1:
        raise InputError(f"{name} is given {len(values)} times: {', '.join(values)}; expected one")
    return values[0] if values else None


def next_command(program: str, what: Path | str, env: str) -> str:
    """What to type to go on: for the Python that runs now, and with an id that names code, which only the user can trust."""
    python, found = _from_here(Path(sys.executable)), shutil.which("python")
    if Path(python).is_absolute() and found is not None and Path(found).parent == Path(python).parent:
        python = "python"
    name, *words = program.split()
    trusted = ["--env", env] if brings_code(env) else []
    return f"`{shlex.join([python, _from_here(_ROOT / name), *words, str(what), *trusted])}`"


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
