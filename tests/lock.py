"""Prints `requirements.lock`: the versions that pip would choose today for every extra that `make` uses.

Local versions (`+cpu`) and addresses are left out, so that the lock installs anywhere.
"""

import json
import subprocess
import sys

EXTRAS = ".[learner,postgres,dev]"


def main() -> None:
    report = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--report",
            "-",
            EXTRAS,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = {
        (item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"].split("+")[0])
        for item in json.loads(report)["install"]
    }
    print("# Made by `make lock` from pyproject.toml. Edit that, not this.")
    for name, version in sorted(rows):
        if name != "hone-chat":
            print(f"{name}=={version}")


if __name__ == "__main__":
    main()
