"""The model card, written from `model.json` so that no figure in it can differ from the bundle's."""

from typing import Any

from dicomnode.domain.measurement import TrainingData
from training.cases import QUANTITY_LABELS
from training.markdown import table

_AGREEMENT = ("n", "Pearson r", "ICC(2,1)", "slope", "SEE", "RMSE", "MAE", "bias", "limits of agreement")


def model_card(document: dict[str, Any]) -> str:
    """Render the card (Mitchell et al. 2019, doi:10.1145/3287560.3287596, shortened to what applies)."""
    provenance, figures = document["provenance"], document["figures"]
    run, split = provenance["run"], {part: f"{ends[0]}-{ends[1]}" for part, ends in provenance["split"].items()}
    return f"""# Model card: {document["name"]} {document["version"]}

**{_first_words(provenance)}
Not a medical device; not for diagnosis, and not for ruling out low bone density.**

## What it is
A locator that finds femoral heads on an overview, and a residual U-Net that decomposes one hip ({document["frame"]["rows"]} x
{document["frame"]["columns"]} pixels of {document["frame"]["spacing_mm"]} mm in the object plane) into:

{table(("channel", "unit"), ((channel["name"], channel["unit"]) for channel in document["channels"]))}

In the maps bone density is mineral mass over area as projected in the pose of the radiograph. From maps and features the
network states each region's areal BMD, area and volumetric BMD in the **canonical (DXA) pose**, each with a spread that the
prediction interval is a multiple of; BMC is areal BMD times area. Nothing is calibrated to any densitometer.
{_regressed(document)}{_told(document)}

## Intended use
Research and development of the node that it ships with: adult anteroposterior radiographs of hip or pelvis.

## Data
From {provenance["data"]}.
The phantoms (seed {run["pairs"]["seed"]}), two hips each, are split into
training {split["training"]}, validation {split["validation"]}, test {split["test"]}.
Tube voltage, filtration, detector, dose, scatter and the vendor's processing are drawn anew for each example.
{_real_data(provenance)}
{table(("source of anatomy", "licence"), ((source["name"], source["licence"]) for source in provenance["sources"]))}

## Figures on held-out phantoms ({figures["data"]})
{_agreement(figures)}

{_methods(figures["methods"], run)}
Share of true figures inside the 90 % prediction interval:

{_coverage(figures)}

What became of each kind of hip, judged by the total hip:

{_outcomes(figures["refusals"])}

{_whole(figures["whole_radiographs"])}
{_real(figures.get("real"))}## Known limits
- Simulated people are simpler than real ones: no osteoarthritis, no calcification, no clothing in what was learned from them.
{_fractures(provenance)}
- Positions and densities of muscles are not decomposed.
- Dose, tube, scatter, vendor, file size, body, mineral and pose move the figures: `python -m training ladders` shows by how much
  (for the shipped bundle: `evaluation/LADDERS.md`).

## How it was made
`python -m training build` with seed {run["seed"]}; commit {provenance["commit"]}, torch {provenance["torch"]},
numpy {provenance["numpy"]}, Python {provenance["python"]}. Weights SHA-256 `{document["weights_sha256"]}`.
"""


def _fractures(provenance: dict[str, Any]) -> str:
    if not provenance["fractures"]:
        return "- Nothing was learned of fractures: a broken hip is measured; the ladders show what is made of it."
    return "- Of fractures, displaced ones alone were learned: they are refused where they are recognised, all others are measured."


def _regressed(document: dict[str, Any]) -> str:
    if "regressor" not in document["networks"]:
        return ""
    shares = [share for row in document["regressed"].values() for share in row.values()]
    return (
        "A second network reads the same figures straight from the crop; what is stated is the mean of both, in which its reading\n"
        f"weighs {min(shares):.2f} to {max(shares):.2f}, by figure (`regressed` in model.json)."
    )


def _told(document: dict[str, Any]) -> str:
    if not document["networks"]["decomposer"]["factors"]:
        return ""
    return (
        "\nBeside the picture the network is told the tube voltage where the header states one (KVP, 0018,0060), and figures are\n"
        "corrected for added copper and for a storage phosphor where the header states filter and detector (`corrections` in\n"
        "model.json). The figures below are for radiographs that state all three."
    )


def _first_words(provenance: dict[str, Any]) -> str:
    if "real" not in provenance:
        start = provenance.get("start")
        if start is not None and start["trained_on"] != TrainingData.SIMULATED:
            return (
                f"Trained and evaluated on simulated radiographs, but begun with the weights of {start['name']} {start['version']},"
                "\nwhich had learned from real radiographs of one hospital too. No figure below says anything about patients."
            )
        return "Trained and evaluated on simulated radiographs only. No figure below says anything about patients."
    trained, tested = (provenance["real"][part]["patients"] for part in ("training", "test"))
    return (
        f"Trained on simulated radiographs of phantoms and on real radiographs of {trained} patients of one hospital;"
        f"\nevaluated on phantoms and on {tested} held-out patients. The figures on phantoms say nothing about patients,"
        "\nthose on patients nothing about another hospital."
    )


def _real_data(provenance: dict[str, Any]) -> str:
    if "real" not in provenance:
        return ""
    parts = ", ".join(
        f"{part} {count['patients']} ({count['hips']} hips)" for part, count in provenance["real"].items()
    )
    share = 100 * provenance["run"]["hospital"]["share"]
    return (
        f"\nReal hips, registered to CTs of the same patients, split by patient: {parts}. Of the decomposer's examples {share:g} %"
        " are drawn\nfrom the training part, with mild changes of grey levels; the locator has seen phantoms only.\n"
    )


def _real(real: dict[str, Any] | None) -> str:
    if real is None:
        return ""
    regions = ", ".join(region.replace("_", " ") for region in real["intervals_from_real_hips"]) or "no region"
    return f"""
## Figures on held-out patients ({real["data"]})
{real["patients"]} patients, {real["hips"]} hips. Prediction intervals were set from real validation hips for {regions},
from phantoms else.

{_agreement(real)}

{_coverage(real)}

{_outcomes(real["refusals"])}

{_dxa(real["dxa"])}
"""


def _dxa(makers: dict[str, Any]) -> str:
    if not makers:
        return "Too few of these hips have a DXA reading to compare with (three per maker and region are needed)."
    rows = (
        (maker, region.replace("_", " "), *_row(a))
        for maker, regions in makers.items()
        for region, a in regions.items()
    )
    agreement = table(("maker", "region", *_AGREEMENT), rows)
    return f"Canonical areal BMD, on CT's scale, against DXA:\n\n{agreement}"


def _agreement(figures: dict[str, Any]) -> str:
    rows = (
        (region.replace("_", " "), QUANTITY_LABELS[name], *_row(a))
        for region, quantities in figures["agreement"].items()
        for name, a in quantities.items()
    )
    return table(("region", "quantity", *_AGREEMENT), rows)


def _row(a: dict[str, Any]) -> list[str]:
    """Cells of `_AGREEMENT`."""
    low, high = a["limits_of_agreement"]
    ratios = [f"{a[name]:.3f}" for name in ("pearson_r", "icc", "slope")]
    errors = [f"{a[name]:.3g}" for name in ("see", "rmse", "mae")]
    return [str(a["n"]), *ratios, *errors, f"{a['bias']:+.2g}", f"{low:.3g} to {high:.3g}"]


def _outcomes(refusals: dict[str, Any]) -> str:
    rows = (
        (kind, ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))) for kind, counts in refusals.items()
    )
    return table(("kind", "hips by outcome"), rows)


def _whole(whole: dict[str, Any]) -> str:
    if not whole:
        return ""
    lines = [
        "On whole radiographs, from locator to figure, judged by the total hip:",
        "",
        _outcomes(whole["refusals"]),
    ]
    if (a := whole["total_hip_areal_bmd_g_cm2"]) is not None:
        errors = f"RMSE {a['rmse']:.3f} g/cm², bias {a['bias']:+.3f}"
        lines += ["", f"Areal BMD of the total hip there: n {a['n']}, r {a['pearson_r']:.3f}, {errors}."]
    return "\n".join([*lines, ""])


def _methods(methods: dict[str, Any], run: dict[str, Any]) -> str:
    if not methods:
        return ""
    seen, seen_by_regressor = (_examples(run[name]) for name in ("decomposer", "regressor"))
    first = next(iter(next(iter(methods.values())).values()))
    read, gains = list(first["agreement"]), list(first["gain"])
    lines = [
        "What is stated is a mean of two readings; here each of them alone, at the same hips. The regressor saw"
        f" {seen_by_regressor:,}",
        f"examples of measurable hips, the decomposer {seen:,} of all kinds, each in stages of its own.",
        "Gains are of r; 95 % intervals by drawing patients.",
        "",
    ]
    rows = []
    for region, quantities in methods.items():
        for name, m in quantities.items():
            agreed = [f"{m['agreement'][one]['pearson_r']:.3f}, {m['agreement'][one]['rmse']:.3g}" for one in read]
            gained = [_gain(m["gain"][pair]["r"]) for pair in gains]
            rows.append([region.replace("_", " "), QUANTITY_LABELS[name], *agreed, *gained])
    columns = ("region", "quantity", *(f"r, RMSE {method}" for method in read), *gains)
    return "\n".join([*lines, table(columns, rows), ""])


def _examples(network: dict[str, Any]) -> int:
    return sum(int(network["batch"] * stage["steps"]) for stage in network["stages"])


def _gain(gain: list[float]) -> str:
    value, low, high = gain
    return f"{value:+.2g} ({low:+.2g} to {high:+.2g})"


def _coverage(figures: dict[str, Any]) -> str:
    rows = (
        [region.replace("_", " "), *(f"{100 * shares[n]:.1f} %" if n in shares else "" for n in QUANTITY_LABELS)]
        for region, shares in figures["interval_coverage"].items()
    )
    return table(("region", *QUANTITY_LABELS.values()), rows)
