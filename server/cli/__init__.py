"""The command line, one verb's file each: thin words over rooms that know nothing of terminals.

Every file imports what is slow (web framework, database, engine) inside its commands, so that `hone --help`
answers at once. Deliberate errors travel as HoneError and become one line and exit code 1 in `words.py`.
"""
