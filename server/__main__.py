"""`hone`: the command line's table of contents. Each verb lives in its own file of `server.cli`."""

from __future__ import annotations

import typer

from server.cli import adapters, db, doctor, feedback, keys, learn, serve
from server.cli.words import Verbs

app = typer.Typer(
    name="hone",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="A chat backend that learns from its users. Every option can be given as a HONE_… variable too.",
)
app.command()(serve.serve)
app.command()(learn.learn)
app.add_typer(adapters.app, name="adapters")
app.add_typer(feedback.app, name="feedback")
app.add_typer(keys.app, name="keys")
app.add_typer(db.app, name="db")
app.command(context_settings=learn.PASS_ON)(learn.simulate)
app.command(context_settings=learn.PASS_ON)(learn.evaluate)
app.command()(doctor.doctor)


def main() -> None:
    app(prog_name="hone")


if __name__ == "__main__":
    main()
