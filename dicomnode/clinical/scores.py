"""T-score, Z-score, percentage of the young adult mean, and what class a clinician would put them in.

Scores are rounded as densitometers print them (T and Z to one decimal, %YAM to a whole per cent) *before* they are
classified, so that a report never says "T-score -2.5" beside "low bone mass".

Source: ISCD Official Positions (Adult) 2023; WHO Technical Report Series 843 (1994); Soen S et al., J Bone Miner Metab
2013;31:247-257 (Japan 2012).
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum

from dicomnode.clinical.reference import Norm, ReferencePopulation
from dicomnode.domain.measurement import Assessment, Estimate, Region
from dicomnode.domain.radiograph import Patient, Sex
from dicomnode.domain.reference import ReferenceCurve

DIAGNOSTIC_REGIONS = (Region.TOTAL_HIP, Region.FEMORAL_NECK)
"""Regions that may be classified; the trochanter is not used for diagnosis. Source: ISCD 2023, "Hip BMD"."""
ADULT_YEARS = 20.0
"""Below this age neither criteria hold. Source: ISCD 2023 Pediatric Official Positions (ages 5-19)."""
WHO_CLASSES_FROM_YEARS = 50.0
"""From this age the WHO classes hold for men, and for women taken as postmenopausal. Source: ISCD 2023."""


class Classification(StrEnum):
    """Classes of bone mineral density."""

    NORMAL = "normal"
    LOW_BONE_MASS = "low_bone_mass"
    OSTEOPOROSIS = "osteoporosis"
    WITHIN_EXPECTED_RANGE = "within_expected_range_for_age"
    BELOW_EXPECTED_RANGE = "below_expected_range_for_age"


class Criteria(StrEnum):
    """Whose rules classify."""

    ISCD_2023 = "iscd_2023"
    JAPAN_2012 = "japan_2012"

    @property
    def words(self) -> str:
        """Name the criteria as a report does."""
        return {Criteria.ISCD_2023: "WHO 1994 / ISCD 2023", Criteria.JAPAN_2012: "Japan 2012 (JSBMR/JOS)"}[self]


def class_limits_g_cm2(young_adult: Norm, criteria: Criteria) -> tuple[float, float]:
    """Give the areal BMD from which downwards it is osteoporosis, and from which upwards normal (before rounding).

    Source: WHO 1994 (T = -2.5 and -1); Soen 2013 (70 % of YAM or -2.5 SD, whichever is higher).
    """
    minus_2_5_sd = young_adult.mean_g_cm2 - 2.5 * young_adult.sd_g_cm2
    osteoporosis = max(minus_2_5_sd, 0.7 * young_adult.mean_g_cm2) if criteria is Criteria.JAPAN_2012 else minus_2_5_sd
    return osteoporosis, young_adult.mean_g_cm2 - young_adult.sd_g_cm2


class FragilityFracture(StrEnum):
    """What is known of earlier fragility fractures; a radiograph alone does not tell."""

    UNKNOWN = "unknown"
    NONE = "none"
    SPINE_OR_HIP = "spine_or_hip"
    OTHER = "other"


@dataclass(frozen=True)
class References:
    """How areal BMD is to be read at this site: against whom, by whose rules."""

    population: ReferencePopulation
    criteria: Criteria = Criteria.ISCD_2023

    def assess(self, region: Region, areal_bmd_g_cm2: Estimate, patient: Patient, *, on_dxa_scale: bool) -> Assessment:
        """Apply `assess` with this site's population and criteria."""
        return assess(region, areal_bmd_g_cm2, patient, self.population, self.criteria, on_dxa_scale=on_dxa_scale)

    def curve(self, region: Region, patient: Patient) -> ReferenceCurve | None:
        """Give what the chart of a report draws; None where the population does not hold for this patient."""
        young_adult = self.population.young_adult.get(region)
        if young_adult is None or patient.sex not in self.population.sexes:
            return None
        by_age = self.population.age_curve(patient.sex, region)
        points = by_age.points if by_age and by_age.verified else ()
        return ReferenceCurve(
            name=self.population.title,
            ages_years=tuple(point.age_years for point in points),
            mean_g_cm2=tuple(point.mean_g_cm2 for point in points),
            sd_g_cm2=tuple(point.sd_g_cm2 for point in points),
            young_mean=young_adult.mean_g_cm2,
            young_sd=young_adult.sd_g_cm2,
            class_limits_g_cm2=class_limits_g_cm2(young_adult, self.criteria),
        )


def t_score(areal_bmd_g_cm2: float, young_adult: Norm) -> float:
    """Distance from the young adult mean in its standard deviations. Source: WHO 1994."""
    return (areal_bmd_g_cm2 - young_adult.mean_g_cm2) / young_adult.sd_g_cm2


def z_score(areal_bmd_g_cm2: float, same_age: Norm) -> float:
    """Distance from the mean of the same age and sex in its standard deviations. Source: ISCD 2023."""
    return (areal_bmd_g_cm2 - same_age.mean_g_cm2) / same_age.sd_g_cm2


def percent_yam(areal_bmd_g_cm2: float, young_adult: Norm) -> float:
    """Percentage of the young adult mean. Source: Soen 2013."""
    return 100.0 * areal_bmd_g_cm2 / young_adult.mean_g_cm2


def classify_t_score(t: float) -> Classification:
    """WHO classes: normal from -1.0 up, osteoporosis from -2.5 down, low bone mass between. Source: WHO 1994."""
    if t >= -1.0:
        return Classification.NORMAL
    return Classification.OSTEOPOROSIS if t <= -2.5 else Classification.LOW_BONE_MASS


def classify_z_score(z: float) -> Classification:
    """Classes before menopause and of men under 50: -2.0 or lower is below the expected range. Source: ISCD 2023."""
    return Classification.BELOW_EXPECTED_RANGE if z <= -2.0 else Classification.WITHIN_EXPECTED_RANGE


def classify_japan_2012(percent: float, t: float, fracture: FragilityFracture) -> Classification:
    """Classes of the Japanese criteria; the worse of percentage and standard deviations decides.

    Osteoporosis: with a spine or hip fragility fracture always; with another one below 80 % of YAM; without one at 70 %
    or lower, or at -2.5 SD or lower. Low bone mass: above -2.5 and below -1.0 SD.

    Source: Soen 2013, criteria and addendum.
    """
    if fracture is FragilityFracture.SPINE_OR_HIP:
        return Classification.OSTEOPOROSIS
    if (fracture is FragilityFracture.OTHER and percent < 80) or percent <= 70 or t <= -2.5:
        return Classification.OSTEOPOROSIS
    return Classification.LOW_BONE_MASS if t < -1.0 else Classification.NORMAL


def assess(
    region: Region,
    areal_bmd_g_cm2: Estimate,
    patient: Patient,
    population: ReferencePopulation,
    criteria: Criteria,
    *,
    on_dxa_scale: bool,
    fracture: FragilityFracture = FragilityFracture.UNKNOWN,
) -> Assessment:
    """Read one region's areal BMD as a clinician does.

    A figure that cannot be had honestly (no reference for this sex or region, a child, an unknown age) is None, and the
    notes say why.

    Args:
        region: region of the proximal femur; only total hip and neck have scores.
        areal_bmd_g_cm2: with its interval; where that spans two classes, the notes say so.
        patient: sex and age decide which reference and which classes hold.
        population: whom to compare with.
        criteria: whose rules.
        on_dxa_scale: True only where the model was calibrated against a densitometer; else the notes have the proviso.
        fracture: known fragility fractures (Japanese criteria).
    """
    obstacle = _obstacle(region, patient, population)
    if obstacle:
        return Assessment(population.name, None, None, None, None, criteria.words, (obstacle,))
    young_adult = population.young_adult[region]
    classify, provisos = _classifier(region, patient, population, criteria, fracture)
    value = areal_bmd_g_cm2.value
    same_age = _same_age(region, patient, population)
    return Assessment(
        reference=population.name,
        t_score=_t_reported(value, young_adult),
        percent_yam=_rounded(percent_yam(value, young_adult), "1"),
        z_score=None if same_age is None else _rounded(z_score(value, same_age), "0.1"),
        classification=classify(value) if classify else None,
        criteria=criteria.words,
        notes=(*_scale_provisos(population, on_dxa_scale), *provisos, *_spans_classes(areal_bmd_g_cm2, classify)),
    )


Classifier = Callable[[float], Classification]
"""Class of an areal BMD in g/cm2; called for the value and for both ends of its interval."""


def _obstacle(region: Region, patient: Patient, population: ReferencePopulation) -> str:
    """Say why there can be no score at all; empty where there can."""
    if region not in DIAGNOSTIC_REGIONS:
        return f"ISCD uses total hip and femoral neck only: no scores for the {region.replace('_', ' ')}."
    if region not in population.young_adult:
        return f"The reference population {population.name} has no values for the {region.replace('_', ' ')}."
    if patient.sex not in population.sexes:
        sex = {Sex.FEMALE: "women", Sex.MALE: "men"}.get(patient.sex, "patients whose sex is not stated as F or M")
        return f"The reference population {population.name} has no values for {sex}."
    if patient.age_years is not None and patient.age_years < ADULT_YEARS:
        return "The patient is younger than 20 years: young-adult references do not apply."
    return ""


def _classifier(
    region: Region, patient: Patient, population: ReferencePopulation, criteria: Criteria, fracture: FragilityFracture
) -> tuple[Classifier | None, list[str]]:
    """Choose the rule that holds for this patient, with the sentences it holds under."""
    young_adult = population.young_adult[region]
    if criteria is Criteria.JAPAN_2012:
        return _japan_2012(young_adult, fracture), _japan_provisos(patient, fracture)
    if patient.age_years is None:
        return None, ["The patient's age is unknown: not classified."]
    if patient.age_years >= WHO_CLASSES_FROM_YEARS:
        provisos = ["Taken as postmenopausal (age 50 or older)."] if patient.sex is Sex.FEMALE else []
        return (lambda value: classify_t_score(_t_reported(value, young_adult))), provisos
    return _under_fifty(_same_age(region, patient, population))


def _under_fifty(same_age: Norm | None) -> tuple[Classifier | None, list[str]]:
    if same_age is None:
        return None, [
            "Under 50 years the Z-score decides, and there is no verified reference by age for it: not classified."
        ]
    return (lambda value: classify_z_score(_rounded(z_score(value, same_age), "0.1"))), []


def _japan_2012(young_adult: Norm, fracture: FragilityFracture) -> Classifier:
    return lambda value: classify_japan_2012(
        _rounded(percent_yam(value, young_adult), "1"), _t_reported(value, young_adult), fracture
    )


def _japan_provisos(patient: Patient, fracture: FragilityFracture) -> list[str]:
    provisos = []
    if fracture is FragilityFracture.UNKNOWN:
        provisos.append("Without known fragility fracture; with one the class may be worse.")
    if patient.age_years is None:
        provisos.append("The patient's age is unknown: holds for adults only.")
    return provisos


def _same_age(region: Region, patient: Patient, population: ReferencePopulation) -> Norm | None:
    """Norm of the patient's sex and age from a verified curve; None where there is none."""
    curve = population.age_curve(patient.sex, region)
    if curve is None or not curve.verified or patient.age_years is None:
        return None
    return curve.at(patient.age_years)


def _scale_provisos(population: ReferencePopulation, on_dxa_scale: bool) -> list[str]:
    provisos = []
    if not on_dxa_scale:
        provisos.append(
            "Holds only if this model's areal BMD is on the reference's DXA scale "
            f"({population.scale}): not established."
        )
    if not population.verified:
        provisos.append(f"The reference values of {population.name} were not verified against their source.")
    return provisos


def _spans_classes(areal_bmd_g_cm2: Estimate, classify: Classifier | None) -> list[str]:
    """Warn where the interval reaches into another class: a radiologist must not read the class as certain."""
    if classify is None or areal_bmd_g_cm2.low is None or areal_bmd_g_cm2.high is None:
        return []
    worst, best = classify(areal_bmd_g_cm2.low), classify(areal_bmd_g_cm2.high)
    if worst is best:
        return []
    return [f"The 90 % interval reaches from {worst.replace('_', ' ')} to {best.replace('_', ' ')}."]


def _t_reported(areal_bmd_g_cm2: float, young_adult: Norm) -> float:
    return _rounded(t_score(areal_bmd_g_cm2, young_adult), "0.1")


def _rounded(score: float, step: str) -> float:
    """Round half away from zero, as on paper. Nine decimals first, so that binary noise cannot decide a half."""
    return float(Decimal(f"{score:.9f}").quantize(Decimal(step), ROUND_HALF_UP)) + 0.0
