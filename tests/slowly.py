"""`hone` with an echo engine that takes its time: `python -m tests.slowly SECONDS serve …`, so many for each word."""

import functools
import sys

from server.__main__ import main
from server.engine.echo import EchoEngine

if __name__ == "__main__":
    patient = functools.partialmethod(EchoEngine.__init__, delay=float(sys.argv.pop(1)))
    EchoEngine.__init__ = patient  # type: ignore[assignment]
    main()
