"""Whether this machine can run a set of pinned packages, before they are fetched; util/make_env.sh runs it.

Usage:
    python util/checks/before_setup.py requirements.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # repo root: run from a bare clone

from util.checks.gpu_checks import find_gpus, gpu_checks
from util.cli import make_parser, run


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("requirements", type=Path, help="the set: requirements.txt or requirements-cu12.txt")
    args = parser.parse_args()
    found = [check for check in gpu_checks(find_gpus(), args.requirements) if check.advice]
    for check in found:
        print(check.line(), file=sys.stderr)
    return 1 if any(check.broken for check in found) else 0


if __name__ == "__main__":
    run(main)
