"""`hone doctor`: prints what `server.doctor` finds; exit code 1 when something must be mended."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from server.cli.serve import EngineName
from server.cli.words import AsJson, DataDir, VllmUrl, joined, print_json, settings_from

COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}


def doctor(
    host: Annotated[
        str | None, typer.Option(envvar="HONE_HOST", show_default="127.0.0.1", help="As for serve.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, envvar="HONE_PORT", show_default="8000", help="As for serve."),
    ] = None,
    data_dir: DataDir = None,
    model: Annotated[
        str | None, typer.Option(envvar="HONE_MODEL", show_default="the demo model", help="As for serve.")
    ] = None,
    engine: Annotated[
        EngineName | None, typer.Option(envvar="HONE_ENGINE", show_default="local", help="As for serve.")
    ] = None,
    vllm_url: VllmUrl = None,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            envvar="HONE_LOAD",
            help="Load the base too, as serve would: which forward runs it, and the memory it takes.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at this installation and say in plain words what is wrong and what to do."""
    from server.doctor import Level, examine

    settings = settings_from(
        host=host,
        port=port,
        data_dir=data_dir,
        model=model,
        engine=engine and str(engine),
        vllm_url=joined(vllm_url),
    )
    findings = examine(settings, load=load)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            typer.secho(f"{finding.level:<5}", fg=COLOURS[finding.level], bold=True, nl=False)
            typer.echo(f"{finding.check}: {finding.says}")
            if finding.mend:
                typer.echo(f"     → {finding.mend}")
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(1)
