"""Make the virtual environment of this clone: `.venv`, with the package (editable) and what its tests need.

Nothing is done when it is there already, for the same Python, `pyproject.toml` and `constraints.txt`. Two at once wait
for each other. Needs nothing but Python 3.11 or newer and an index that pip can reach.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed"
INPUTS = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]


def main() -> int:
    # The lock is on a file that is always there: whatever is made for locking alone would stay behind.
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = fingerprint()
        if STAMP.exists() and STAMP.read_text() == wanted and works():
            return 0
        return install(wanted)


def fingerprint() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in INPUTS:
        digest.update(file.read_bytes())
    return f"{digest.hexdigest()} {ROOT}\n"


def works() -> bool:
    """Whether the environment's Python still runs; an update of the system's one may have taken it away."""
    return (VENV / "bin" / "python").exists()


def install(wanted: str) -> int:
    print(f"installing into {VENV} (once)", file=sys.stderr, flush=True)
    STAMP.unlink(missing_ok=True)
    # Cleared only when it is for another Python: a run that uses it must not lose it.
    made_for = VENV / "pyvenv.cfg"
    same = made_for.exists() and f"version = {sys.version.split()[0]}" in made_for.read_text() and works()
    if not same and subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=False).returncode:
        return failed("python -m venv failed (on Debian and Ubuntu: apt install python3-venv)")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "-c", "constraints.txt", "-e", ".[test]"], cwd=ROOT, check=False).returncode:
        return failed("pip failed, see above; run it again when the index can be reached")
    STAMP.write_text(wanted)
    return 0


def failed(why: str) -> int:
    print(f"make venv: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
