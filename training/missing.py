"""What to say where a package that everything needs is not installed; imports nothing that could be missing itself."""


def advice(error: ModuleNotFoundError) -> str:
    """One line: most often it is there, and another Python runs."""
    return f"{error}; `make setup` installs what is needed into .venv, and .venv/bin/python is the Python that finds it"
