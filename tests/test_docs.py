"""The documentation, followed literally: its commands run, its pages are current, its links lead somewhere.

`docs/add-a-method.md` is followed in a copy of the tree: the method it prints is saved where it says, the
line of `tests/small.py` is added, and its commands run in a shell.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pronghorn.compose import names, parse
from pronghorn.ops import cpu

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPE = ROOT / "docs" / "add-a-method.md"

# An editable install finds the package of the checkout first; this one finds the copy's.
LAUNCHER = """\
import runpy, sys
sys.meta_path[:] = [f for f in sys.meta_path if f.__module__.startswith("_frozen")
                    or not f.find_spec("pronghorn", None)]
assert sys.argv[1] == "-m"
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def blocks(page: Path, language: str = "") -> list[str]:
    """Fenced blocks of a page in one language."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [body for name, body in found if name.strip() == language]


def commands(page: Path) -> list[str]:
    """Shell commands of a page: every line of its blocks in no language or in the shell's."""
    text = "".join(body for name in ("", "sh", "bash", "console") for body in blocks(page, name))
    lines = text.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.strip()]


# ------------------------------------------------------------------------------- a method in one file


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which the page's files are in place; `.venv/bin` runs this Python."""
    copy = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__", "*.so", "build")
    for folder in ("pronghorn", "tests", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for native in [so for home in cpu.__path__ for so in Path(home).glob("_native*.so")]:
        shutil.copy(native, copy / "pronghorn" / "ops" / "cpu")
    binaries = copy / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (copy / "launch.py").write_text(LAUNCHER)
    start = f'#!/bin/sh\nexec "{sys.executable}" "{copy / "launch.py"}"'
    for name, more in (("python", ""), ("pronghorn", " -m pronghorn.cli.main")):
        (binaries / name).write_text(f'{start}{more} "$@"\n')
        (binaries / name).chmod(0o755)
    method, option = blocks(RECIPE, "python")
    where = re.search(r"`(pronghorn/methods/\S+\.py)`:\n\n```python", RECIPE.read_text(encoding="utf-8"))
    assert where
    assert not (copy / where[1]).exists()
    (copy / where[1]).write_text(method)
    small = copy / "tests" / "small.py"
    head, mark, rest = small.read_text().partition("OPTIONS = {\n")
    small.write_text(head + mark + option + rest)
    return copy


def shell(tree: Path, command: str) -> subprocess.CompletedProcess[str]:
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PRONGHORN_WRITE"))}
    settings |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tree,
        env=settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def step(word: str) -> list[str]:
    """The commands of the recipe that hold a word."""
    found = [c for c in commands(RECIPE) if word in c]
    assert found
    return found


def test_the_method_is_found_in_the_copy(tree: Path):
    (command,) = step("methods keydiff")
    assert "KeyDiff (Park" in shell(tree, command).stdout
    where = shell(tree, ".venv/bin/python -m pronghorn.cli.main methods keydiff --json").stdout
    assert '"keydiff"' in where
    assert "keydiff" not in names()["kv"]  # the checkout itself is as it was


def test_the_method_runs_and_holds_less(tree: Path):
    short, long = step("run ")
    assert "4821" in shell(tree, short).stdout  # its budget is larger than the text
    told = shell(tree, long).stderr
    held = re.search(r"KV .*\((\d+)% of full\)", told)
    assert held, told
    assert int(held[1]) < 60


@pytest.mark.slow
def test_the_suites_test_the_method(tree: Path):
    """About forty seconds: the suites run the method with everything."""
    (command,) = step("-k keydiff")
    out = shell(tree, command).stdout
    passed = re.search(r"(\d+) passed", out)
    assert passed, out
    assert int(passed[1]) > 50  # conformance, pairs, and every combination of the barrier test
    assert "failed" not in out
    for suite in ("test_kvpolicy.py", "test_pairs.py", "test_barrier.py"):
        assert suite in out


def test_a_method_that_draws_lots_fails(tree: Path):
    """The suites can fail: a choice that no seed fixes depends on how the text was cut."""
    file = tree / "pronghorn" / "methods" / "kv" / "keydiff.py"
    good = file.read_text()
    bad = good.replace("(way * mean).sum(axis=-1)", "np.random.default_rng().random(view.pos.shape)")
    assert bad != good
    file.write_text(bad)
    try:
        with pytest.raises(AssertionError, match="[1-9] failed"):
            shell(
                tree, ".venv/bin/python -m pytest tests/conformance/test_kvpolicy.py -k 'keydiff and chunks'"
            )
    finally:
        file.write_text(good)


def test_the_page_of_methods_is_made_from_them(tree: Path):
    (command,) = step("--markdown")
    shell(tree, command)
    made = (tree / "docs" / "methods.md").read_text(encoding="utf-8")
    assert "### `keydiff` (approximate)" in made
    for name in ("pytest tests/test_pairs.py", "docs/methods.md"):
        assert name in RECIPE.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------- all pages


def test_methods_page_is_up_to_date(capsys: pytest.CaptureFixture[str]):
    """Write it anew with `pronghorn methods --markdown > docs/methods.md`."""
    from pronghorn.cli.main import main

    with pytest.raises(SystemExit) as end:
        main(["methods", "--markdown"])
    assert not end.value.code
    assert capsys.readouterr().out == (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def calls() -> list[tuple[str, list[str]]]:
    """(page, arguments) of every call of `pronghorn` in a block of shell."""
    out = []
    for page in PAGES:
        for line in commands(page):
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words):
                if word in ("pronghorn", ".venv/bin/pronghorn") and (i == 0 or words[i - 1] == "|"):
                    rest = words[i + 1 :]
                    ends = [j for j, w in enumerate(rest) if w in ("|", ">", ">>", "<", "&&", ";")]
                    out.append((page.name, rest[: ends[0]] if ends else rest))
    return out


def test_there_are_calls_to_check():
    assert len(calls()) >= 4


@pytest.mark.parametrize(
    ("page", "args"), calls(), ids=lambda x: x if isinstance(x, str) else " ".join(x)[:40]
)
def test_calls_are_understood(page: str, args: list[str]):
    """Commands, options and methods exist, and values are of their kind. Nothing runs."""
    import typer

    from pronghorn.cli.main import build

    group = typer.main.get_command(build())
    first, *rest = args
    if first.startswith("-"):
        group.make_context("pronghorn", list(args))
        return
    top = group.make_context("pronghorn", [first])
    command = group.get_command(top, first)  # type: ignore[attr-defined]
    assert command is not None, f"{page}: no command {first!r}"
    given = command.make_context(first, rest, parent=top)
    made_here = RECIPE.read_text(encoding="utf-8") if page == RECIPE.name else ""
    for spec in given.params.get("use") or ():
        name = spec.partition(":")[0]
        if f"/{name}.py`" not in made_here:
            parse(spec)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_named_are_there(page: Path):
    """Paths in backticks and in commands that begin with a folder of the checkout."""
    text = page.read_text(encoding="utf-8")
    made_here = "pronghorn/methods/kv/keydiff.py"
    for path in re.findall(r"(?<![\w/.])((?:docs|tests|bench|scripts|pronghorn)/[\w/.-]+\.\w+)", text):
        assert path == made_here or (ROOT / path).exists(), f"{page.name} names {path}"
