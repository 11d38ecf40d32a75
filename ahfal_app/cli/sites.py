"""Commands for machines of a deployment."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

commands = typer.Typer()
command = functools.partial(commands.command, rich_help_panel="Sites")


@command()
def certs(
    out: Annotated[Path, typer.Option(help="The folder to write; it gets one folder a machine.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="A DNS name or address by which sites reach the server; repeatable."),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="A site's name; repeatable.")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long they are valid.")] = 365,
) -> None:
    """Write certificates and keys for a deployment: TLS and SuperNode authentication."""
    from ahfal_app.deployment.certificates import write_certificates

    for path in write_certificates(out, host or [], site or [], days):
        print(path)


@command()
def doctor(
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="As for flower-supernode.")],
    node_config: Annotated[str, typer.Option(help="As for flower-supernode.")],
    root_certificates: Annotated[
        Path | None, typer.Option(help="As for flower-supernode: the file ca.crt.")
    ] = None,
    private_key: Annotated[
        Path | None,
        typer.Option(
            "--private-key", "--auth-supernode-private-key", help="As for flower-supernode."
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="As for flower-supernode.")] = False,
    classes: Annotated[
        str, typer.Option(help="The classes, as the run says them: `nevus,melanoma`.")
    ] = "",
    backbone: Annotated[str, typer.Option(help="The backbone, as the run says it.")] = "",
    backbone_size: Annotated[
        int, typer.Option(help="Its size, where the run says one; 0: its own.")
    ] = 0,
    backbone_crop: Annotated[
        bool, typer.Option("--backbone-crop", help="Where the run says backbone-crop=true.")
    ] = False,
    backbone_hash: Annotated[
        str, typer.Option(help="The hash of the server's backbone, or its beginning.")
    ] = "",
    feature_views: Annotated[
        int, typer.Option(help="Augmented views of an image, where the run says a number.")
    ] = 0,
) -> None:
    """Check a site before it joins: versions, device, data, labels, folders, key, link, clock."""
    from ahfal_app.deployment.doctor import Site, Verdict, examine

    run: dict[str, object] = {}
    if not backbone and (backbone_size or backbone_crop or backbone_hash or feature_views):
        raise typer.BadParameter(
            "--backbone-size, --backbone-crop, --backbone-hash, --feature-views: allowed with "
            "--backbone"
        )
    if backbone:
        run = {
            "backbone": backbone,
            "backbone-size": backbone_size,
            "backbone-crop": backbone_crop,
            "feature-views": feature_views,
        }
    site = Site(
        node_config,
        superlink,
        root_certificates,
        private_key,
        insecure,
        classes,
        run,
        backbone_hash,
    )
    failed = False
    for finding in examine(site):
        failed |= finding.verdict is Verdict.FAILURE
        line = f"{finding.verdict:8}{finding.check:12}{finding.text}"
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


# Of commands that are Flower's with other insides: their arguments are Flower's, too.
_ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


@command(context_settings=_ANY_ARGUMENTS, add_help_option=False)
def supernode(context: typer.Context) -> None:
    """Run a site: flower-supernode, with AHFAL's SuperExec beside it."""
    from ahfal_app.deployment.supernode import main

    main(context.args)


@command(context_settings=_ANY_ARGUMENTS, add_help_option=False)
def superexec(context: typer.Context) -> None:
    """Run what starts a site's ClientApps: of the installed code alone, one at a time."""
    from ahfal_app.deployment.superexec import main

    main(context.args)
