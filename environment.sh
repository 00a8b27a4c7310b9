# The shell scripts source this file. It sets $PYTHON to an interpreter with the dependencies of pyproject.toml, and, if $EXTRA is
# set, with those of that extra. This is $PYTHON, or else the active interpreter, if it has the dependencies. Otherwise it is the
# interpreter of .venv, into which the dependencies are installed once.
_root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

_has_dependencies() {
    "$1" - "$_root/pyproject.toml" ${EXTRA:+"$EXTRA"} <<'PY' 2>/dev/null
import sys
from importlib.metadata import version

try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = [line for extra in sys.argv[2:] for line in project["optional-dependencies"][extra]]
needed = [Requirement(line) for line in (*project["dependencies"], *extras)]
sys.exit(any(not need.specifier.contains(version(need.name), prereleases=True) for need in needed))
PY
}

PYTHON="${PYTHON:-$(command -v python3 || command -v python || true)}"
if [ -z "$PYTHON" ]; then
    echo "error: Python 3.10 or newer is needed, and there is no python3 on the PATH." >&2
    exit 2
fi
if ! _has_dependencies "$PYTHON"; then
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: Python 3.10 or newer is needed; $PYTHON is $("$PYTHON" -V 2>&1). Name another one: PYTHON=python3.12 bash ..." >&2
        exit 2
    fi
    if ! { [ -x "$_root/.venv/bin/python" ] && _has_dependencies "$_root/.venv/bin/python"; }; then
        echo "Installing the dependencies into $_root/.venv (once, a few minutes, about 6 GB) ..."
        "$PYTHON" -m venv "$_root/.venv" || {
            echo "error: $PYTHON cannot make a virtual environment: install its venv module (Debian: apt-get install python3-venv)." >&2
            exit 2
        }
        # One call of pip installs everything, because the versions of torch and torchvision depend on each other.
        "$_root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$_root${EXTRA:+[$EXTRA]}" || {
            echo "error: the installation failed; the message above says why. Run the same command again to continue." >&2
            exit 2
        }
    fi
    PYTHON="$_root/.venv/bin/python"
fi
export PYTHON
