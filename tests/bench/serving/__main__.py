"""`python -m tests.bench.serving VERB`: measure, prepare the peers, or write the page anew."""

import argparse
import sys
from pathlib import Path

from tests.bench.serving import overhead, page, record, soak, swap, throughput, venvs

BENCHES = {one.NAME: one for one in (throughput, swap, overhead, soak)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, bench in BENCHES.items():
        verb = verbs.add_parser(
            name, description=bench.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        verb.add_argument("--out", type=Path, default=record.FOLDER, help="where lines are kept")
        bench.add_arguments(verb)
    verbs.add_parser("page", description="write docs/benchmarks.md from the lines")
    peers = verbs.add_parser("prepare", description=venvs.__doc__)
    peers.add_argument("names", nargs="+", choices=[*venvs.PREPARE])
    peers.add_argument(
        "--where-possible", action="store_true", help="without a package index: skip, and say so"
    )
    options = parser.parse_args()
    if options.verb == "page":
        page.write()
    elif options.verb == "prepare":
        return venvs.main(options.names, where_possible=options.where_possible)
    else:
        return BENCHES[options.verb].main(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
