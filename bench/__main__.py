"""All benches, one after the other. `python -m bench [--quick]`; exit status 1 if a goal was missed."""

from __future__ import annotations

import subprocess
import sys

from bench.harness import ROOT

BENCHES = (
    "placement",
    "verdict",
    "control",
    "recovery",
    "scale",
    "inplace",
    "staging",
    "front",
    "relay",
    "split",
    "shadow",
    "peers",
    "handover",
)  # the loudest one last


def main() -> int:
    missed = []
    for name in BENCHES:
        print(f"bench.{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *sys.argv[1:]], cwd=ROOT, check=False).returncode:
            missed.append(name)
    print("goals missed by: " + ", ".join(missed) if missed else "all goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
