"""What the command line shows: rich tables of jobs, figures, AE titles and findings. No decisions."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dicomnode.doctor import Finding, Verdict
from dicomnode.domain.document import document
from dicomnode.measuring import Outcome
from dicomnode.storage.rows import Ae, DeliveryDetail, Job, JobDetail, Result

_COLOURS = {
    "measured": "green",
    "delivered": "green",
    "not_measurable": "yellow",
    "pending": "cyan",
    "received": "cyan",
    "encoded": "cyan",
    "held": "red",
    "quarantined": "red",
    "failed": "red",
    Verdict.GOOD.value: "green",
    Verdict.WARNING.value: "yellow",
    Verdict.FAULT.value: "red",
}


def outcomes(measured: Iterable[Outcome]) -> RenderableType:
    """For each file a line with its status, its figures, and the reasons why something has none."""
    parts: list[RenderableType] = []
    for outcome in measured:
        if outcome.measurement is None:
            parts.append(Text.assemble((outcome.file.name, "bold"), "  ", _coloured("failed"), f": {outcome.error}"))
            continue
        parts.append(figures(outcome.file.name, document(outcome.measurement)))
    return Group(*parts)


def figures(title: str, measured: dict[str, Any]) -> RenderableType:
    """The figures of one measurement (`domain.document`), and the reasons why something has none."""
    parts: list[RenderableType] = [Text.assemble((title, "bold"), "  ", _coloured(measured["status"]))]
    regions = [(hip["side"], region) for hip in measured["hips"] for region in hip["regions"]]
    if any(region["status"] == "measured" for _, region in regions):
        parts.append(_figures_table([(side, region) for side, region in regions if region["status"] == "measured"]))
    parts += _reasons(measured)
    return Group(*parts, "")


def jobs(listed: Sequence[Job], now: datetime | None = None) -> RenderableType:
    """One line per received radiograph, the latest first."""
    if not listed:
        return "No radiographs yet."
    table = _table("Job", "State", "Age", "From", "Outcome", "Deliveries", "Waits for / reason", "SOP Instance UID")
    for job in listed:
        instance = job.instance
        deliveries = ", ".join(f"{number} {state}" for state, number in sorted(job.deliveries.items()))
        reason = instance.note or (f"{job.conflicts} other object(s) under the same UID" if job.conflicts else "")
        table.add_row(
            str(instance.id),
            _coloured(job.summary),
            age(instance.received_at, now),
            escape(instance.calling_ae_title),
            _coloured(job.outcome),
            deliveries,
            escape(reason),
            instance.sop_instance_uid,
        )
    return table


def job(detail: JobDetail) -> list[RenderableType]:
    """Everything about one radiograph: facts, figures, deliveries with each attempt."""
    instance = detail.instance
    facts = _table("Job", str(instance.id))
    for name, value in (
        ("State", _coloured(instance.state.value)),
        ("Waits for", escape(instance.note) or "nothing"),
        ("SOP Instance UID", instance.sop_instance_uid),
        ("Study Instance UID", instance.study_instance_uid),
        (
            "Received",
            f"{_moment(instance.received_at)} from {escape(instance.calling_ae_title)} ({instance.peer_address})",
        ),
        ("Last change", _moment(instance.changed_at)),
        ("Size", f"{instance.size_bytes / 1e6:.1f} MB, run {instance.run}, attempts at this step {instance.attempts}"),
    ):
        facts.add_row(name, value)
    parts: list[RenderableType] = [facts]
    parts += [_result(result) for result in detail.results]
    if detail.deliveries:
        parts.append(_timeline(detail.deliveries))
    if detail.conflicts:
        number = len(detail.conflicts)
        parts.append(f"[yellow]{number} object(s) of the same SOP Instance UID but other bytes: kept, not measured.[/]")
    return parts


def entities(listed: Sequence[Ae]) -> RenderableType:
    """AE titles with what they may do."""
    if not listed:
        return "No AE titles yet. Add one:  dicomnode ae add AE_TITLE --may-send   or   --receives-results --host H --port P"
    table = _table("AE title", "May send", "Calls from", "Results", "Address", "Description")
    for ae in listed:
        table.add_row(
            escape(ae.ae_title),
            "yes" if ae.may_send else "",
            ae.calls_from or ("any" if ae.may_send else ""),
            "yes" if ae.receives_results else "",
            f"{escape(ae.host)}:{ae.port}" if ae.host else "",
            escape(ae.description),
        )
    return table


def findings(found: Iterable[Finding]) -> Table:
    """What `check` saw, and what to do about it."""
    table = _table("", "Checked", "Seen")
    for finding in found:
        seen = Text(finding.seen)
        if finding.advice:
            seen.append(f"\n{finding.advice}", style="bold")
        table.add_row(_coloured(finding.verdict.value), escape(finding.subject), seen)
    return table


def age(since: datetime, now: datetime | None = None) -> str:
    """Write a span of time as a person reads it: 12 s, 5 min, 3 h, 4 d."""
    span = (now or datetime.now(UTC)) - _aware(since)
    for unit, length in (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("min", timedelta(minutes=1))):
        if span >= length:
            return f"{span // length} {unit}"
    return f"{max(0, int(span.total_seconds()))} s"


def _table(*headings: str) -> Table:
    """A table that folds what is too long: a UID or an address cut short would be of no use."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


FIGURE_HEADINGS = ("aBMD\ng/cm2", "90 %\ninterval", "T", "Z", "%YAM", "BMC\ng", "Area\ncm2", "vBMD\nmg/cm3", "Class")


def _figures_table(regions: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Narrow enough for a terminal of 80 columns; what no region has is left out."""
    rows = [_cells(region) for _, region in regions]
    shown = [number for number in range(len(FIGURE_HEADINGS)) if any(row[number] for row in rows)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Region", no_wrap=True)
    for number in shown:
        text = FIGURE_HEADINGS[number] == "Class"
        table.add_column(FIGURE_HEADINGS[number], justify="left" if text else "right", no_wrap=not text)
    for (side, region), row in zip(regions, rows, strict=True):
        name = region["region"].replace("_", " ")
        table.add_row(f"{side} {name}", *(row[number] for number in shown))
    return table


def _cells(region: dict[str, Any]) -> list[str]:
    figure = region["figures"]
    scores = region["assessment"] or {}
    interval = figure["areal_bmd"]["interval"]
    return [
        f"{figure['areal_bmd']['value']:.3f}",
        f"{interval['low']:.2f}-{interval['high']:.2f}" if interval else "",
        _number(scores.get("t_score"), "+.1f"),
        _number(scores.get("z_score"), "+.1f"),
        _number(scores.get("percent_yam"), ".0f"),
        f"{figure['bmc']['value']:.1f}",
        f"{figure['area']['value']:.1f}",
        f"{figure['volumetric_bmd']['value']:.0f}",
        (scores.get("classification") or "").replace("_", " "),
    ]


def _reasons(measured: dict[str, Any]) -> list[RenderableType]:
    """One line for the image, each hip and each region without figures, the outermost that says why."""
    if not measured["hips"]:
        return [_reason("", measured)]
    lines: list[RenderableType] = []
    for hip in measured["hips"]:
        side = {"R": "Right hip", "L": "Left hip"}[hip["side"]]
        if hip["status"] != "measured":
            lines.append(_reason(side, hip))
            continue
        for region in hip["regions"]:
            if region["status"] != "measured":
                lines.append(_reason(f"{side}, {region['region'].replace('_', ' ')}", region))
    return lines


def _reason(subject: str, part: dict[str, Any]) -> Text:
    why = f"{(part['reason'] or '').replace('_', ' ')}: {part['detail']}"
    return Text(f"  {subject}: {why}" if subject else f"  {why}", style="yellow")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _result(result: Result) -> RenderableType:
    title = f"Figures (model {result.model_digest[:12]}, configuration {result.configuration_digest[:12]})"
    return figures(title, dict(result.figures))


def _timeline(deliveries: Sequence[DeliveryDetail]) -> RenderableType:
    table = _table("Delivery", "To", "State", "Tries", "When", "Answer")
    for entry in deliveries:
        delivery = entry.delivery
        when = _moment(delivery.delivered_at) if delivery.delivered_at else f"next {_moment(delivery.next_attempt_at)}"
        table.add_row(
            entry.object.kind.replace("_", " "),
            escape(delivery.destination),
            _coloured(delivery.state.value),
            str(delivery.attempts),
            when,
            escape(_answer(delivery.status, delivery.detail)),
        )
        for attempt in entry.history:
            answer = escape(_answer(attempt.status, attempt.detail))
            table.add_row(
                "", "", Text(attempt.outcome.value, "dim"), "", Text(_moment(attempt.ended_at), "dim"), answer
            )
    return table


def _answer(status: int | None, detail: str) -> str:
    return " ".join(part for part in (f"0x{status:04X}" if status is not None else "", detail) if part)


def _coloured(state: str) -> Text:
    return Text(state.replace("_", " "), style=_COLOURS.get(state, ""))


def _moment(moment: datetime) -> str:
    return _aware(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
