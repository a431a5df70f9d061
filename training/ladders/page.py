"""The evidence as a page in Markdown, written from `ladders.json` so that no figure in it can differ."""

from collections.abc import Iterable, Sequence
from typing import Any

from training.ladders.reading import is_areal_bmd, label
from training.markdown import table


def evidence_page(document: dict[str, Any]) -> str:
    """Render areal BMD of every ladder, slopes, repeatability, refusals and classes.

    Args:
        document: as `report.write_evidence` stores it.
    """
    parts = [
        "# What the model does as one condition changes",
        f"**{document['data'].capitalize()}. No figure below says anything about patients.**",
        f"{document['model']}; {document['subjects']}. Change: per hip against the reference rung, median and 95th percentile.",
    ]
    parts += [_ladder(ladder) for ladder in document["ladders"].values()]
    parts += [_slopes(document["mineral_slopes"]), _repeatability(document["repeatability"])]
    parts += [_refusals(document["refusals"]), *(_classes(one) for one in document["diagnosis"])]
    return "\n\n".join(parts) + "\n"


def _table(heading: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"## {heading}\n\n{table(columns, rows)}"


def _ladder(ladder: dict[str, Any]) -> str:
    rows = [
        [one["rung"], label(one["quantity"]), *_agreement(one), _change(one), f"{one['refused']} of {one['hips']}"]
        for one in ladder["rungs"]
        if is_areal_bmd(one["quantity"])
    ]
    columns = (ladder["axis"], "quantity", "r (95 %)", "bias", "RMSE", "change, %", "refused")
    reference = f" (reference {ladder['reference']})" if ladder["reference"] else ""
    return _table(ladder["title"] + reference, columns, rows)


def _agreement(one: dict[str, Any]) -> list[str]:
    figures = one["agreement"]
    if figures is None:
        return ["", "", ""]
    low, high = one["r_interval"]
    r = f"{figures['pearson_r']:.3f} ({low:.3f} to {high:.3f})"
    return [r, f"{figures['bias']:+.3f}", f"{figures['rmse']:.3f}"]


def _change(one: dict[str, Any]) -> str:
    return "" if one["change_percent"] is None else "{:.2f} / {:.2f}".format(*one["change_percent"])


def _slopes(slopes: Iterable[dict[str, Any]]) -> str:
    rows = [
        [one["ladder"], label(one["quantity"]), str(one["hips"]), f"{one['slope']:.2f} ({low:.2f} to {high:.2f})"]
        for one in slopes
        if is_areal_bmd(one["quantity"])
        for low, high in [one["slope_interval"]]
    ]
    columns = ("ladder", "quantity", "hips", "slope (95 %)")
    return _table("Does reading follow truth within a hip? 1 is measured, 0 is guessed from shape", columns, rows)


def _repeatability(quantities: Iterable[dict[str, Any]]) -> str:
    columns = (
        "quantity",
        "RMS-CV put down again, same device, %",
        "LSC, %",
        "over AP poses, same device, %",
        "LSC, %",
        "over poses and devices, %",
        "LSC, %",
        "of the truth itself, %",
        "in one pose over devices, %",
        "LSC, %",
    )
    rows = []
    for one in quantities:
        cells = []
        for way in ("repositioned", "same_device", "over_poses", "same_pose"):
            low, high = one[way]["rms_cv_percent_interval"]
            cells.append(
                [f"{one[way]['rms_cv_percent']:.2f} ({low:.2f} to {high:.2f})", f"{one[way]['lsc_percent']:.1f}"]
            )
        truth = f"{one['truth_over_poses']['rms_cv_percent']:.2f}"
        rows.append([label(one["quantity"]), *cells[0], *cells[1], *cells[2], truth, *cells[3]])
    return _table(
        "Repeatability: put down again five times, five AP poses before one device and before five, five radiographs in one pose",
        columns,
        rows,
    )


def _refusals(groups: Iterable[dict[str, Any]]) -> str:
    rows = [
        [
            one["group"],
            str(one["count"]),
            f"{100 * one['refused']:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
            ", ".join(f"{n} {name}" for name, n in sorted(one["outcomes"].items())),
        ]
        for one in groups
        for low, high in [one["refused_interval"]]
    ]
    return _table("What is refused", ("kind", "n", "refused (95 %)", "outcomes"), rows)


def _classes(one: dict[str, Any]) -> str:
    names = list(one["table"])
    rows = [[name.replace("_", " "), *(str(one["table"][name][read]) for read in names)] for name in names]
    low, high = one["auc_interval"]
    shares = ", ".join(
        f"{name} {one[name]['successes']} of {one[name]['of']}" for name in ("accuracy", "sensitivity", "specificity")
    )
    text = f"AUC for osteoporosis {one['auc']:.3f} ({low:.3f} to {high:.3f}); {shares}; {one['hips']} hips of 50 years or more."
    columns = ("truth, read as", *(name.replace("_", " ") for name in names))
    return _table(f"Classes by {one['reference']}: {label(one['quantity'])}", columns, rows) + f"\n\n{text}"
