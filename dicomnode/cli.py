"""The command line. Each command reads the configuration, asks the composition root, and prints; nothing is decided here.

Heavy packages are imported inside the commands, so that `dicomnode --help` answers at once.
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dicomnode import __version__
from dicomnode.errors import ConfigurationError, DicomNodeError, NotFound
from dicomnode.logline import log_to_stderr

if TYPE_CHECKING:
    from dicomnode.config import Configuration
    from dicomnode.storage.rows import DeliveryState, InstanceState

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_EPILOG = (
    "Exit codes: 0 done (a radiograph that is 'not measurable' is done too: its report says why); "
    "1 something failed (a file without a report, a job that does not exist, a check that found a fault); "
    "2 wrong usage or configuration; 130 interrupted."
)

app = typer.Typer(
    name="dicomnode",
    help="Bone mineral density from a plain hip radiograph, as a DICOM node.",
    epilog=_EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    add_completion=False,
)
entities = typer.Typer(help="AE titles: who may send to us, and where results go.", no_args_is_help=True)
app.add_typer(entities, name="ae")

out = Console()
err = Console(stderr=True)


def _debug(value: bool) -> bool:
    if value:
        logging.getLogger().setLevel(logging.DEBUG)
    return value


def _quiet(debug: bool) -> None:
    """Let a command speak for itself: what libraries log of a failed call is in its answer."""
    if not debug:
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="node.toml, or the folder that holds it. Without it: the defaults.", metavar="PATH"
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override a setting; may be repeated.", metavar="SECTION.KEY=VALUE"),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Log more, and show tracebacks.", callback=_debug)]


def main() -> None:
    """Run the command line; every error ends in one sentence and an exit code."""
    for talkative in ("pynetdicom", "highdicom", "dbos", "matplotlib", "PIL", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    log_to_stderr()
    try:
        app(prog_name="dicomnode")
    except DicomNodeError as error:
        _leave(error, EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing more can be said to it.
        sys.stderr.close()
        sys.exit(EXIT_FAILED)
    except Exception as error:  # noqa: BLE001  the outermost frame: a person gets a sentence, --debug the traceback
        _leave(error, EXIT_FAILED, unexpected=True)


def _leave(error: Exception, code: int, *, unexpected: bool = False) -> None:
    if logging.getLogger().level <= logging.DEBUG:
        err.print_exception()
    advice = " This is a defect of dicomnode; --debug shows where." if unexpected else ""
    name = f"{type(error).__name__}: " if unexpected else ""
    err.print(f"[bold red]Error:[/] {_plain(f'{name}{error}')}{advice}", soft_wrap=True)
    sys.exit(code)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _configuration(config: Path | None, overrides: Sequence[str] | None) -> "Configuration":
    from dicomnode.config import load_configuration

    return load_configuration(config, overrides or ())


def _version(value: bool) -> None:
    if value:
        out.print(f"dicomnode {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Bone mineral density from a plain hip radiograph, as a DICOM node."""


# --- Radiographs from files ---------------------------------------------------------------------------------------------
@app.command(epilog=_EPILOG)
def measure(
    files: Annotated[
        list[Path], typer.Argument(help="DICOM files; a folder stands for all files in it.", metavar="FILE...")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the results; made if absent.", metavar="DIR")
    ],
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure radiographs from files. Needs no network, no database, no configuration.

    For NAME.dcm it writes NAME.sr.dcm (Structured Report), NAME.sc.dcm (overlay as secondary capture), NAME.png (the same
    picture) and NAME.result.json (status, reason, figures with units and 90 % intervals for each side and region).
    """
    from dicomnode import measuring, tables

    _quiet(debug)
    configuration = _configuration(config, overrides)
    outcomes = measuring.measure_files(files, output, configuration, err)
    out.print(tables.outcomes(outcomes))
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(EXIT_FAILED)


# --- The node -----------------------------------------------------------------------------------------------------------
@app.command(epilog=_EPILOG)
def init(config: ConfigOption = None, overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Write a commented configuration where there is none, make spool and database, import the first AE titles."""
    from dicomnode import bootstrap

    folder = config or Path("conf")
    for written in bootstrap.write_configuration(folder):
        out.print(f"written   {written}")
    configuration = _configuration(folder, overrides)
    imported = bootstrap.prepare(configuration, import_again=True)
    out.print(f"imported  {imported} AE title(s)")
    out.print(f"ready     {configuration.settings.node.data_folder}")
    out.print(f"Next: edit {folder}, then  dicomnode check --config {folder}  and  dicomnode serve --config {folder}")


@app.command(epilog=_EPILOG)
def serve(
    only: Annotated[
        str | None, typer.Option("--only", help="Run one program instead of all: receiver, worker or sender.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Run the node until it is stopped (Ctrl-C, SIGTERM)."""
    from dicomnode import bootstrap

    if only is not None and only not in bootstrap.PROGRAMS:
        raise typer.BadParameter(
            f"expected one of {', '.join(bootstrap.PROGRAMS)}, found {only!r}", param_hint="--only"
        )
    configuration = _configuration(config, overrides)
    if not supervised:
        bootstrap.prepare(configuration)
    if only is not None:
        bootstrap.run_program(only, configuration, supervised=supervised)
        return
    passed = [*(["--config", str(config)] if config else []), *(f"--set={text}" for text in overrides or ())]
    raise typer.Exit(bootstrap.run_all(configuration, [*passed, *(["--debug"] if debug else [])]))


@app.command(epilog=_EPILOG)
def check(config: ConfigOption = None, overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Look for faults: configuration, ports, database, spool, model, and whether destinations take our reports."""
    _quiet(debug)
    from dicomnode import doctor, tables

    configuration = _configuration(config, overrides)
    findings = []
    with err.status("Checking"):
        for finding in doctor.examine(configuration):
            findings.append(finding)
    out.print(tables.findings(findings))
    if any(finding.verdict is doctor.Verdict.FAULT for finding in findings):
        raise typer.Exit(EXIT_FAILED)


# --- Jobs ---------------------------------------------------------------------------------------------------------------
@app.command(epilog=_EPILOG)
def jobs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the latest first.")] = 50,
    state: Annotated[
        str | None, typer.Option("--state", help="Only those in this state, e.g. quarantined or held.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """List the received radiographs: how far each has come, how old it is, and what it waits for."""
    from dicomnode import bootstrap, tables

    ledger = bootstrap.open_ledger(_configuration(config, overrides))
    listed = ledger.jobs(limit=limit, state=_state(state))
    out.print(f"No radiographs in state {state}." if state and not listed else tables.jobs(listed))


def _state(text: str | None) -> "InstanceState | DeliveryState | None":
    """Read a word of the column "State"."""
    from dicomnode.storage.rows import DeliveryState, InstanceState

    if text is None:
        return None
    words: dict[str, InstanceState | DeliveryState] = {
        state.value: state for kind in (InstanceState, DeliveryState) for state in kind
    }
    if text not in words:
        raise typer.BadParameter(f"expected one of {', '.join(words)}, found {text!r}", param_hint="--state")
    return words[text]


@app.command(epilog=_EPILOG)
def show(
    job: Annotated[str, typer.Argument(help="Number from `dicomnode jobs`, or SOP Instance UID.", metavar="ID")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Show one radiograph: its way through the node, its figures, and every attempt to deliver them."""
    from dicomnode import bootstrap, tables

    ledger = bootstrap.open_ledger(_configuration(config, overrides))
    detail = ledger.job(ledger.find(job).id)
    if as_json:
        figures: list[Any] = [dict(result.figures) for result in detail.results]
        out.print_json(json.dumps(figures))
        return
    for part in tables.job(detail):
        out.print(part)


@app.command(epilog=_EPILOG)
def retry(
    job: Annotated[str, typer.Argument(help="Number from `dicomnode jobs`, or SOP Instance UID.", metavar="ID")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Try again what waits for a person: a quarantined radiograph, or deliveries that were given up."""
    from dicomnode import bootstrap

    configuration = _configuration(config, overrides)
    instance, retried = bootstrap.retry(configuration, job)
    if not (retried.resumed_from or retried.deliveries):
        through = "all deliveries are through" if instance.state.value == "dispatched" else "a worker is at it"
        out.print(f"Job {instance.id} waits for nothing: state {instance.state.value}, {through}.")
        return
    parts = ([f"set going again from {retried.resumed_from.value}"] if retried.resumed_from else []) + (
        [f"{retried.deliveries} deliveries tried again"] if retried.deliveries else []
    )
    out.print(f"Job {instance.id}: {' and '.join(parts)}.")


# --- AE titles ----------------------------------------------------------------------------------------------------------
@entities.command("list", epilog=_EPILOG)
def list_entities(config: ConfigOption = None, overrides: SetOption = None, debug: DebugOption = False) -> None:
    """List the AE titles that may send to us, and those that get results."""
    from dicomnode import bootstrap, tables

    out.print(tables.entities(bootstrap.open_peers(_configuration(config, overrides)).all()))


@entities.command("add", epilog=_EPILOG)
def add_entity(
    ae_title: Annotated[str, typer.Argument(help="AE title, as the other side has it.", metavar="AE_TITLE")],
    may_send: Annotated[bool, typer.Option("--may-send", help="It may send radiographs to us.")] = False,
    calls_from: Annotated[
        str, typer.Option("--calls-from", help="IP address it must call from.", metavar="ADDRESS")
    ] = "",
    receives_results: Annotated[
        bool, typer.Option("--receives-results", help="It gets every report and overlay.")
    ] = False,
    host: Annotated[str, typer.Option("--host", help="Where it listens.", metavar="HOST")] = "",
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port it listens on.")] = None,
    description: Annotated[str, typer.Option("--description", help="For people.")] = "",
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Add an AE title: a sender, a destination, or both."""
    from dicomnode import bootstrap, tables
    from dicomnode.config import ApplicationEntity, check_entity

    entity = ApplicationEntity(ae_title, may_send, calls_from, receives_results, host, port, description)
    check_entity(entity, "dicomnode ae add")
    out.print(tables.entities([bootstrap.open_peers(_configuration(config, overrides)).add(bootstrap.new_ae(entity))]))


@entities.command("change", epilog=_EPILOG)
def change_entity(
    ae_title: Annotated[str, typer.Argument(help="AE title to change.", metavar="AE_TITLE")],
    may_send: Annotated[
        bool | None, typer.Option("--may-send/--may-not-send", help="Whether it may send radiographs to us.")
    ] = None,
    calls_from: Annotated[
        str | None, typer.Option("--calls-from", help="IP address it must call from; '' for any.", metavar="ADDRESS")
    ] = None,
    receives_results: Annotated[
        bool | None, typer.Option("--receives-results/--no-results", help="Whether it gets every report and overlay.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Where it listens.", metavar="HOST")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port it listens on.")] = None,
    description: Annotated[str | None, typer.Option("--description", help="For people.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Change an AE title; what is not named stays. Pending deliveries go to the new address."""
    import dataclasses

    from dicomnode import bootstrap, tables
    from dicomnode.config import ApplicationEntity, check_entity

    peers = bootstrap.open_peers(_configuration(config, overrides))
    ae = peers.find(ae_title)
    if ae is None:
        raise NotFound(f"AE {ae_title} is not configured; see: dicomnode ae list")
    given = {
        "may_send": may_send,
        "calls_from": calls_from,
        "receives_results": receives_results,
        "host": host,
        "port": port,
        "description": description,
    }
    present = {field.name: getattr(ae, field.name) for field in dataclasses.fields(ApplicationEntity)}
    entity = ApplicationEntity(**present | {name: value for name, value in given.items() if value is not None})
    check_entity(entity, "dicomnode ae change")
    out.print(tables.entities([peers.change(bootstrap.new_ae(entity))]))


@entities.command("remove", epilog=_EPILOG)
def remove_entity(
    ae_title: Annotated[str, typer.Argument(help="AE title to remove.", metavar="AE_TITLE")],
    force: Annotated[
        bool, typer.Option("--force", help="Also with pending deliveries; they then wait for a person.")
    ] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Remove an AE title. One with pending deliveries stays, unless forced."""
    from dicomnode import bootstrap

    bootstrap.open_peers(_configuration(config, overrides)).remove(ae_title, even_if_pending=force)
    out.print(f"Removed {_plain(ae_title)}.")


@entities.command("test", epilog=_EPILOG)
def test_entity(
    ae_title: Annotated[str, typer.Argument(help="AE title of a destination.", metavar="AE_TITLE")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Call a destination as the sender does: C-ECHO, and the real presentation contexts of report and overlay."""
    _quiet(debug)
    from dicomnode import bootstrap, doctor, tables

    configuration = _configuration(config, overrides)
    ae = bootstrap.open_peers(configuration).find(ae_title)
    if ae is None:
        raise NotFound(f"AE {ae_title} is not configured; see: dicomnode ae list")
    finding = doctor.examine_destination(configuration, ae)
    out.print(tables.findings([finding]))
    if finding.verdict is doctor.Verdict.FAULT:
        raise typer.Exit(EXIT_FAILED)


# --- Demonstration ------------------------------------------------------------------------------------------------------
@app.command(epilog=_EPILOG)
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for node and archive.", metavar="DIR")] = Path(
        "demo"
    ),
    radiograph: Annotated[
        Path | None, typer.Option("--radiograph", help="Radiograph to send; default: the example in the package.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="Longest wait for the results, in seconds.")
    ] = 120.0,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Show the whole way: start a node and a small archive here, send a radiograph, print the report that arrives."""
    _quiet(debug)
    from dicomnode import demo as demonstration

    demonstration.run(output, radiograph, timeout_s, overrides or (), out, err)


if __name__ == "__main__":
    main()
