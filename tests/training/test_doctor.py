import os
import re
from pathlib import Path

import pytest

import train
from training import doctor


def test_each_line_is_ok_or_says_what_mends_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALSOFT_DRIVERS", raising=False)
    sound = Path(f"/dev/shm/jack_db-{os.getuid()}")  # which looking for a sound server leaves
    before = sound.exists()
    assert train.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"(ok  |MEND) \w+ +\S.*", line) for line in lines)
    said = {line.split()[1]: line for line in lines}
    assert list(said) == ["python", "torch", "cuda", "memory", "atari", "doom", "miniworld", "dmlab", "video"]
    assert sound.exists() == before
    assert "1040 ids by ale-py" in said["atari"]  # 104 games, five forms, screen and RAM
    assert said["video"].startswith("ok   video      H.264")
    assert all(line.startswith("ok") or re.search(r"pip install|dmlab-gym build|--capacity", line) for line in lines)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'; pip install it"),
        ("import os; os._exit(3)", "ended with exit status 3; pip install it"),
        ("import time; time.sleep(60)", "did not answer for 0.5 seconds; pip install it"),
    ],
)
def test_what_is_missing_or_crashes_or_hangs_costs_one_line(code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.5 if "sleep" in code else 60)
    assert doctor._probe("it", "it", code, "pip install it") == doctor.Finding("it", False, said)


@pytest.mark.parametrize("installed", [False, True])
def test_a_module_that_few_have_is_missing_in_nobodys_way(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there and does not work is."""
    monkeypatch.setattr(doctor, "find_spec", lambda name: name if installed else None)
    monkeypatch.setattr(doctor, "_LAB", "raise OSError('no engine')")
    finding = doctor._lab()
    assert finding.ok is not installed
    said = "OSError: no engine; build" if installed else "not installed, and optional; to have it, build"
    assert finding.text.startswith(said)


@pytest.mark.parametrize(("free", "ok", "said"), [(20e9, True, "20.0 GB free"), (4e9, False, "take --capacity 500000")])
def test_memory_is_held_against_the_default_replay(free: float, ok: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: int(free))
    finding = doctor._memory()
    assert finding.ok is ok and said in finding.text and "needs up to 7.1 GB" in finding.text


def test_a_probe_leaves_nothing_where_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor._probe("it", "it", 'open("left", "w"); print("here")', "").ok
    assert not list(tmp_path.iterdir())
