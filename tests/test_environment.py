"""One list of dependencies, and environment.sh: takes an interpreter that has them, else installs once into .venv."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import DATASETS, ROOT
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

SH = shutil.which("sh") or "/bin/sh"
BASH = shutil.which("bash") or "/bin/bash"
SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for name in (".", *DATASETS)
    for path in (ROOT / name).glob("*.sh" if name == "." else "*/*.sh")
]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


# The files


def test_conda_users_get_the_dependencies_of_pyproject() -> None:
    """environment.yaml names Python and pip; everything else comes from the one list, through `-e .`."""
    stated: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "environment.yaml"))
    conda = [entry for entry in stated["dependencies"] if isinstance(entry, str)]
    assert sorted(re.split(r"[ =<>]", entry)[0] for entry in conda) == ["pip", "python"]
    assert [entry for entry in stated["dependencies"] if not isinstance(entry, str)] == [{"pip": ["-e .[test]"]}]
    (python,) = (entry for entry in conda if entry.startswith("python"))
    version = re.fullmatch(r"python *(?:=|==|>=) *(\d+\.\d+)", python)
    assert version, python
    assert project()["requires-python"] == ">=3.10"
    assert SpecifierSet(project()["requires-python"]).contains(version[1])


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    whole = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    parts = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in (*whole, *parts)}


def test_what_is_imported_is_in_the_list() -> None:
    extras = project()["optional-dependencies"]
    assert {*extras["slurm"]} <= {*extras["test"]}
    names, tests = (
        {Requirement(line).name for line in lines} for lines in (project()["dependencies"] + extras["slurm"], extras["test"])
    )
    own = {"common", "benchmarks", *(path.stem for folder in ("benchmarks", "tests") for path in (ROOT / folder).glob("*.py"))}
    brought_along = {"packaging", "tomli"}  # by torch and pytest; for tests alone
    renamed = {"PIL": "pillow", "sklearn": "scikit-learn", "art": "adversarial-robustness-toolbox"}
    for folder, listed in (("common", names), ("benchmarks", names), ("tests", names | tests)):
        outside = set().union(*map(imports, (ROOT / folder).rglob("*.py"))) - sys.stdlib_module_names - own
        assert "torch" in outside
        assert {renamed.get(name, name) for name in outside - brought_along} <= listed, folder
    assert "tabulate" in names and {"pytest", "pytest-xdist", "ruff", "mypy", "import-linter"} <= tests  # used by name alone


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run([BASH, "-n", ROOT / script], check=True)


# environment.sh, in a copy, with interpreters that are not real

# Answers what is installed as the real interpreter does, and makes an environment with a copy of itself.
STUB = f"""#!{SH}
echo "$@" >> "DIR/calls"
case "$1 $2" in
    "- "*) exec REAL "$@" ;;
    "-c "*) exit OLD ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") exit 0 ;;
    "-V ") echo "Python 3.8.1" ;;
esac
"""


def stub(folder: Path, real: str = sys.executable, old: int = 0) -> Path:
    """A `python3` that answers as `real` what it has installed, and notes down what it is asked."""
    path = folder / "bin" / "python3"
    path.parent.mkdir(exist_ok=True)
    path.write_text(STUB.replace("DIR", str(folder)).replace("REAL", real).replace("OLD", str(old)))
    path.chmod(0o755)
    return path


def source(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Source environment.sh in `folder` as run_tests.sh does, and print the interpreter that it picks."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for tool in ("dirname", "mkdir", "cp", "cat"):
        if not (tools / tool).exists():
            (tools / tool).symlink_to(str(shutil.which(tool)))
    command = f'set -euo pipefail; source "{folder}/environment.sh"; echo "picked $PYTHON"'
    environment = {"PATH": f"{folder}/bin:{tools}", **environment}
    return subprocess.run([BASH, "-c", command], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for path in (ROOT / "pyproject.toml", *ROOT.glob("*.sh")):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def need(folder: Path, requirement: str) -> None:
    """Add a dependency that nobody has, or has in another version."""
    path = folder / "pyproject.toml"
    path.write_text(path.read_text().replace("\ndependencies = [", f'\ndependencies = [\n    "{requirement}",'))


def run_stubbed(folder: Path, script: str, *arguments: str) -> tuple[int, list[str]]:
    """Run a script of the copy with the stub as its Python. Returns its exit code and what the stub was asked to run."""
    tools = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run([BASH, folder / script, *arguments], capture_output=True, text=True, env=tools, check=False)
    asked = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return done.returncode, [call for call in asked if not call.startswith("- ")]


# What the scripts run


CHECKS = ["-m ruff check .", "-m ruff format --check .", "-m mypy", "-c ", "-m pytest "]


def test_continuous_integration_runs_every_check(copy: Path) -> None:
    stub(copy)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    code, ran = run_stubbed(copy, ".ci/run")
    assert code == 0
    assert [call.startswith(check) for call, check in zip(ran, CHECKS, strict=True)] == [True] * len(CHECKS), ran


def test_arguments_of_run_tests_go_to_pytest(copy: Path) -> None:
    stub(copy)
    code, ran = run_stubbed(copy, "run_tests.sh", "-k", "select")
    assert code == 0
    assert ran[-1].startswith("-m pytest ") and ran[-1].endswith(" -k select")


@pytest.mark.parametrize("failing", CHECKS)
def test_a_check_that_fails_stops_continuous_integration(copy: Path, failing: str) -> None:
    python = stub(copy)
    python.write_text(
        python.read_text().replace('case "$1 $2" in', f'case "$*" in "{failing}"*) exit 1 ;; esac\ncase "$1 $2" in')
    )
    code, ran = run_stubbed(copy, ".ci/run")
    assert code != 0
    assert ran[-1].startswith(failing)


def test_the_quickstart_stops_at_the_first_step_that_fails(copy: Path) -> None:
    python = stub(copy)
    code, ran = run_stubbed(copy, "quickstart.sh")
    assert [call.split()[0].split("/")[-1] for call in ran[:3]] == ["data_partition.py", "train_defense.py", "train_ddpm.py"]
    (copy / "calls").unlink()
    python.write_text(
        python.read_text().replace('case "$1 $2" in', 'case "$1" in *train_defense.py) exit 3 ;; esac\ncase "$1 $2" in')
    )
    code, ran = run_stubbed(copy, "quickstart.sh")
    assert code == 3 and len(ran) == 2


# Which interpreter they take


def test_an_interpreter_with_the_dependencies_is_taken_as_it_is(copy: Path) -> None:
    python = stub(copy)
    answer = source(copy)
    assert (answer.returncode, answer.stdout) == (0, f"picked {python}\n"), answer.stderr
    assert [call.split()[0] for call in calls(copy)] == ["-"]
    assert not (copy / ".venv").exists()


def test_a_named_interpreter_is_preferred(copy: Path) -> None:
    stub(copy)
    answer = source(copy, PYTHON=sys.executable)
    assert (answer.returncode, answer.stdout) == (0, f"picked {sys.executable}\n"), answer.stderr
    assert not (copy / "calls").exists()


def test_an_environment_without_pip_counts_too(copy: Path) -> None:
    """As uv makes them."""
    python = stub(copy)
    (copy / "path" / "pip").mkdir(parents=True)
    (copy / "path" / "pip" / "__init__.py").touch()  # hides the real one
    answer = source(copy, PYTHONPATH=str(copy / "path"))
    assert answer.stdout == f"picked {python}\n"


@pytest.mark.parametrize("extra", ["", "test"])
@pytest.mark.parametrize("requirement", ["no-such-package-at-all", "numpy>=99", "torch<1"])
def test_what_is_missing_or_too_old_is_installed_once(copy: Path, requirement: str, extra: str) -> None:
    python = stub(copy)
    need(copy, requirement)
    answer = source(copy, EXTRA=extra)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == f"picked {copy}/.venv/bin/python"
    assert f"-m venv {copy}/.venv" in calls(copy)
    (installed,) = (call for call in calls(copy) if call.startswith("-m pip install"))
    assert installed.endswith(f"-e {copy}[test]" if extra else f"-e {copy}")

    # The second time, with what was asked for in .venv: nothing is made and nothing installed, not even announced.
    (copy / "calls").unlink()
    shutil.copy(ROOT / "pyproject.toml", copy)
    python.write_text(python.read_text().replace(f'exec {sys.executable} "$@"', "exit 1"))
    again = source(copy, EXTRA=extra)
    assert (again.returncode, again.stdout) == (0, f"picked {copy}/.venv/bin/python\n"), again.stderr
    assert not [call for call in calls(copy) if call.startswith("-m")]


def test_what_only_tests_need_is_asked_for_by_the_tests_alone(copy: Path) -> None:
    python, path = stub(copy), copy / "pyproject.toml"
    path.write_text(path.read_text().replace("\ntest = [", '\ntest = [\n    "no-such-package-at-all",'))
    assert source(copy).stdout == f"picked {python}\n"
    assert source(copy, EXTRA="test").stdout.splitlines()[-1] == f"picked {copy}/.venv/bin/python"
    shutil.rmtree(copy / ".venv")
    _, ran = run_stubbed(copy, "run_tests.sh")
    assert any(call.startswith("-m pip install") and call.endswith(f"-e {copy}[test]") for call in ran)


def test_a_failed_installation_is_tried_again(copy: Path) -> None:
    python = stub(copy)
    need(copy, "no-such-package-at-all")
    python.write_text(python.read_text().replace('"-m pip") exit 0', '"-m pip") exit 1'))
    for _ in range(2):
        (copy / "calls").unlink(missing_ok=True)
        answer = source(copy)
        assert answer.returncode == 2
        assert "picked" not in answer.stdout
        assert "the installation failed" in answer.stderr
        assert [call for call in calls(copy) if call.startswith("-m pip install")]


def test_an_old_interpreter_is_refused(copy: Path) -> None:
    python = stub(copy, real="false", old=1)
    answer = source(copy)
    assert answer.returncode == 2
    assert f"error: Python 3.10 or newer is needed; {python} is Python 3.8.1." in answer.stderr
    assert not (copy / ".venv").exists()


def test_no_interpreter_at_all(copy: Path) -> None:
    (copy / "bin").mkdir()
    answer = source(copy)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "error: Python 3.10 or newer is needed, and there is no python3 on the PATH.\n"
