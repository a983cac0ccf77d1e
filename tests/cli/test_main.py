"""The command as a whole: help, exit codes, one-line errors."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hptransfer.cli import main as cli
from hptransfer.errors import ConfigError, DataError, FitError, HptransferError, StoreError

README = Path(__file__).parents[2] / "README.md"


def run_main(capsys, *argv):
    """Run a command; return its exit code, stdout and stderr."""
    try:
        code = cli.main([str(arg) for arg in argv])
    except SystemExit as exit_:
        code = exit_.code
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_and_is_in_the_readme(command, capsys):
    code, out, _ = run_main(capsys, command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 5
    assert f"hptransfer {command}" in README.read_text(encoding="utf-8")


def test_version(capsys):
    code, out, _ = run_main(capsys, "--version")
    assert code == 0
    assert out.startswith("hptransfer 0.")


@pytest.mark.parametrize(
    "argv",
    [
        ["rnu"],
        ["rules"],
        ["rules", "sp", "--width", "wide", "--base-width", "64"],
        ["rules", "spp", "--width", "128", "--base-width", "64"],
        ["rules", "sp", "--width", "100", "--base-width", "64", "--head-size", "64"],
        ["run", "missing.toml"],
        ["run", "missing.toml", "--workers", "0"],
        ["plan", "missing.toml"],
        ["status", "missing"],
        ["fit", "missing.csv"],
        ["report", "missing.csv", "-o", "nowhere/report.html"],
        ["recommend", "missing.csv", "--width", "-3"],
    ],
    ids=" ".join,
)
def test_wrong_input_is_one_line_and_exit_code_2(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(capsys, *argv)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("hptransfer")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ConfigError("x"), 2),
        (DataError("x"), 2),
        (StoreError("x"), 2),
        (FitError("x"), 2),
        (HptransferError("x"), 1),
        (OSError(28, "No space left on device", "groups/a.parquet"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(raised, code, capsys, monkeypatch):
    def fail(args):
        raise raised

    monkeypatch.setattr("hptransfer.cli.rules.run", fail)
    found, out, err = run_main(capsys, "rules", "sp", "--width", 64, "--base-width", 64)
    assert found == code
    assert out == ""
    assert len(err.splitlines()) == 1
    if isinstance(raised, OSError):
        assert "No space left on device: groups/a.parquet" in err


def test_sigterm_ends_with_143_and_says_how_to_resume(capsys, monkeypatch):
    monkeypatch.setattr(
        "hptransfer.cli.rules.run", lambda args: signal.raise_signal(signal.SIGTERM)
    )
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = run_main(capsys, "rules", "sp", "--width", 64, "--base-width", 64)
    assert code == 143
    assert "resumes" in err
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_143_whatever_a_library_makes_of_it(capsys, monkeypatch):
    def fail(args):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("the connection is gone") from None

    monkeypatch.setattr("hptransfer.cli.rules.run", fail)
    code, _, err = run_main(capsys, "rules", "sp", "--width", 64, "--base-width", 64)
    assert code == 143
    assert "resumes" in err


def test_reading_commands_do_not_load_torch(tmp_path):
    """`fit` and `--help` start without PyTorch."""
    table = tmp_path / "losses.csv"
    rows = [
        f"{width},{2.0**x},{3 + 8 / width + 0.05 * (x + 6) ** 2}"
        for width in (64, 128, 256)
        for x in range(-9, -3)
    ]
    table.write_text("width,lr,loss\n" + "\n".join(rows))
    code = (
        "import sys; from hptransfer.cli.main import main; "
        f"code = main(['fit', {str(table)!r}, '--json']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1


def test_only_the_command_that_is_asked_for_is_loaded():
    """A rule's numbers need neither the other commands nor what those need."""
    code = (
        "import sys; from hptransfer.cli.main import COMMANDS, main; "
        "main(['rules', 'sp', '--width', '64', '--base-width', '64', '--json']); "
        'others = {f\'hptransfer.cli.{name.replace("-", "_")}\' for name in COMMANDS}; '
        "heavy = {'torch', 'scipy', 'pyarrow', 'rich', 'ray', 'hptransfer.stats'}; "
        "print(sorted((others | heavy) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "['hptransfer.cli.rules']"


def test_a_closed_pipe_is_no_traceback(tmp_path):
    command = f"{sys.executable} -m hptransfer rules sp --width 64 --base-width 64 | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
