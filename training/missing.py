"""What to say where a package that everything needs is not installed; imports nothing that could be missing itself."""

_OURS = ("agents", "envs", "evaluation", "training")


def advice(error: ModuleNotFoundError) -> str:
    """One line: most often the package is there, and another Python runs.

    Raises:
        ModuleNotFoundError: it is a module of ours, which is a mistake of ours.
    """
    if error.name and error.name.partition(".")[0] in _OURS:
        raise error
    return f"{error}; `make setup` installs what is needed into .venv, and .venv/bin/python is the Python that finds it"
