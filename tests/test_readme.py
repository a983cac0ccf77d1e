"""The README's blocks do what they show; ``python tests/test_readme.py`` writes them again."""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
_BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)


@contextlib.contextmanager
def beside_the_repository() -> Iterator[None]:
    """Run in a fresh folder that sees the repository's studies and examples."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("studies", "examples"):
            (Path(folder) / name).symlink_to(ROOT / name)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def run_console(block: str) -> str:
    """Run the one command of a block and return the block with its output."""
    from hptransfer.cli.main import main

    line = block.splitlines()[0]
    command, _, head = line.removeprefix("$ ").partition(" | head -")
    program, *arguments = shlex.split(command)
    assert program == "hptransfer"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(arguments) == 0
    lines = out.getvalue().rstrip().splitlines()
    shown = lines[: int(head)] if head else lines
    return "\n".join([line, *(text.rstrip() for text in shown)]) + "\n"


def run_python(block: str) -> str:
    """Run a block of Python and return it with what it prints, as comments at its end."""
    code = block.partition("\n# prints\n")[0].rstrip() + "\n"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = "".join(f"# {line}\n" for line in out.getvalue().splitlines())
    return f"{code}\n# prints\n{printed}" if printed else code


def render(kind: str, block: str) -> str:
    with beside_the_repository():
        return run_console(block) if kind == "console" else run_python(block)


BLOCKS = _BLOCK.findall(README.read_text("utf-8"))


@pytest.mark.parametrize(("kind", "block"), BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_prints_what_it_shows(kind: str, block: str) -> None:
    assert render(kind, block) == block


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    text = README.read_text("utf-8")
    assert len(text.encode()) < 10_000
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= set(rules)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    written = _BLOCK.sub(
        lambda found: f"```{found[1]}\n{render(found[1], found[2])}```", README.read_text("utf-8")
    )
    README.write_text(written, encoding="utf-8")
