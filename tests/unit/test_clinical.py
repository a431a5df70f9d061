"""Scores and classes at their boundaries, and the sentences under which they hold."""

from datetime import date

import pytest

from dicomnode.clinical.reference import AgeCurve, AgePoint, Norm, ReferencePopulation
from dicomnode.clinical.scores import (
    Classification,
    Criteria,
    FragilityFracture,
    References,
    assess,
    class_limits_g_cm2,
    classify_japan_2012,
    classify_t_score,
    classify_z_score,
    percent_yam,
    t_score,
    z_score,
)
from dicomnode.domain.measurement import Assessment, Estimate, Region
from dicomnode.domain.radiograph import Patient, Sex

UNIT = Norm(mean_g_cm2=1.0, sd_g_cm2=0.1)
POPULATION = ReferencePopulation(
    name="unit",
    title="Unit population",
    scale="Hologic",
    sexes=tuple(Sex),
    source="none",
    verified=True,
    young_adult={Region.TOTAL_HIP: UNIT, Region.FEMORAL_NECK: UNIT},
    age_curves=(
        AgeCurve(Sex.MALE, Region.TOTAL_HIP, (AgePoint(20, 1.0, 0.1), AgePoint(80, 0.7, 0.1)), "none", verified=True),
    ),
)
WOMAN_OF_70 = Patient(Sex.FEMALE, birth_date=date(1950, 1, 1), study_date=date(2020, 1, 2))
MAN_OF_40 = Patient(Sex.MALE, age_years_stated=40.0)


def read(
    value: float, patient: Patient = WOMAN_OF_70, criteria: Criteria = Criteria.ISCD_2023, **more: object
) -> Assessment:
    region = more.pop("region", Region.TOTAL_HIP)
    estimate = more.pop("estimate", Estimate(value))
    population = more.pop("population", POPULATION)
    settings = {"on_dxa_scale": True, **more}
    return assess(region, estimate, patient, population, criteria, **settings)  # type: ignore[arg-type]


def test_scores_follow_their_definitions() -> None:
    assert t_score(0.75, UNIT) == pytest.approx(-2.5)
    assert z_score(0.75, Norm(0.85, 0.1)) == pytest.approx(-1.0)
    assert percent_yam(0.75, UNIT) == pytest.approx(75.0)


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (-1.0, Classification.NORMAL),
        (-1.1, Classification.LOW_BONE_MASS),
        (-2.4, Classification.LOW_BONE_MASS),
        (-2.5, Classification.OSTEOPOROSIS),
    ],
)
def test_who_classes_include_their_own_boundaries(t: float, expected: Classification) -> None:
    assert classify_t_score(t) is expected


@pytest.mark.parametrize(("z", "below"), [(-1.9, False), (-2.0, True), (-2.1, True)])
def test_a_z_score_of_minus_two_is_below_the_expected_range(z: float, below: bool) -> None:
    assert (classify_z_score(z) is Classification.BELOW_EXPECTED_RANGE) is below


@pytest.mark.parametrize(
    ("percent", "t", "fracture", "expected"),
    [
        (70, -2.0, FragilityFracture.UNKNOWN, Classification.OSTEOPOROSIS),
        (71, -2.4, FragilityFracture.UNKNOWN, Classification.LOW_BONE_MASS),
        (75, -2.5, FragilityFracture.NONE, Classification.OSTEOPOROSIS),
        (90, -1.0, FragilityFracture.NONE, Classification.NORMAL),
        (79, -1.5, FragilityFracture.OTHER, Classification.OSTEOPOROSIS),
        (80, -1.5, FragilityFracture.OTHER, Classification.LOW_BONE_MASS),
        (120, 2.0, FragilityFracture.SPINE_OR_HIP, Classification.OSTEOPOROSIS),
    ],
)
def test_the_japanese_criteria_take_the_worse_of_percentage_and_deviations(
    percent: float, t: float, fracture: FragilityFracture, expected: Classification
) -> None:
    assert classify_japan_2012(percent, t, fracture) is expected


def test_the_class_agrees_with_the_printed_score() -> None:
    just_above = read(0.7549)  # T = -2.451, printed as -2.5
    assert (just_above.t_score, just_above.classification) == (-2.5, Classification.OSTEOPOROSIS)
    half = read(0.755)  # exactly half: away from zero, although binary 0.755 is a little above
    assert half.t_score == -2.5


def test_zero_is_not_printed_as_minus_zero() -> None:
    assert str(read(0.9999).t_score) == "0.0"


def test_a_woman_of_fifty_or_more_is_classed_by_her_t_score_and_taken_as_postmenopausal() -> None:
    result = read(0.85)
    assert result.classification is Classification.LOW_BONE_MASS
    assert result.percent_yam == 85
    assert result.z_score is None
    assert "postmenopausal" in " ".join(result.notes)


def test_a_man_under_fifty_is_classed_by_his_z_score() -> None:
    # The curve gives 0.9 at 40 years: 0.70 is Z = -2.0 although T = -3.0.
    result = read(0.70, MAN_OF_40)
    assert (result.t_score, result.z_score) == (-3.0, -2.0)
    assert result.classification is Classification.BELOW_EXPECTED_RANGE


def test_a_woman_under_fifty_without_a_curve_is_not_classified() -> None:
    result = read(0.70, Patient(Sex.FEMALE, age_years_stated=40.0))
    assert result.classification is None
    assert "Z-score decides" in " ".join(result.notes)


def test_an_unverified_curve_gives_no_z_score() -> None:
    curve = AgeCurve(
        Sex.MALE, Region.TOTAL_HIP, (AgePoint(20, 1.0, 0.1), AgePoint(80, 0.7, 0.1)), "none", verified=False
    )
    population = ReferencePopulation(
        "unit", "Unit", "Hologic", tuple(Sex), "none", True, {Region.TOTAL_HIP: UNIT}, age_curves=(curve,)
    )
    assert read(0.70, MAN_OF_40, population=population).z_score is None


def test_an_unknown_age_leaves_who_classes_open_but_not_the_scores() -> None:
    result = read(0.70, Patient(Sex.FEMALE))
    assert (result.t_score, result.classification) == (-3.0, None)
    assert "age is unknown" in " ".join(result.notes)


def test_a_child_gets_no_scores() -> None:
    result = read(0.70, Patient(Sex.FEMALE, age_years_stated=15.0))
    assert (result.t_score, result.percent_yam, result.classification) == (None, None, None)


@pytest.mark.parametrize("region", [Region.TROCHANTER, Region.INTERTROCHANTER])
def test_only_total_hip_and_neck_have_scores(region: Region) -> None:
    result = read(0.70, region=region)
    assert result.t_score is None
    assert "total hip and femoral neck only" in " ".join(result.notes)


def test_a_sex_outside_the_population_gets_no_scores() -> None:
    women = ReferencePopulation("women", "Women", "Hologic", (Sex.FEMALE,), "none", True, {Region.TOTAL_HIP: UNIT})
    assert "no values for men" in " ".join(read(0.70, MAN_OF_40, population=women).notes)
    assert "not stated" in " ".join(read(0.70, Patient(), population=women).notes)


def test_a_region_outside_the_population_gets_no_scores() -> None:
    hip_only = ReferencePopulation("hip", "Hip", "Hologic", tuple(Sex), "none", True, {Region.TOTAL_HIP: UNIT})
    assert "no values for the femoral neck" in " ".join(
        read(0.70, population=hip_only, region=Region.FEMORAL_NECK).notes
    )


def test_a_model_off_the_dxa_scale_says_so_beside_every_score() -> None:
    assert "DXA scale (Hologic)" in " ".join(read(0.85, on_dxa_scale=False).notes)
    assert "DXA scale" not in " ".join(read(0.85, on_dxa_scale=True).notes)


def test_an_unverified_reference_says_so() -> None:
    population = ReferencePopulation("guess", "Guess", "Hologic", tuple(Sex), "none", False, {Region.TOTAL_HIP: UNIT})
    assert "not verified" in " ".join(read(0.85, population=population).notes)


def test_an_interval_that_reaches_into_another_class_is_told() -> None:
    wide = read(0.76, estimate=Estimate(0.76, 0.70, 0.95))
    assert wide.classification is Classification.LOW_BONE_MASS
    assert "from osteoporosis to normal" in " ".join(wide.notes)
    assert "interval" not in " ".join(read(0.85, estimate=Estimate(0.85, 0.82, 0.88)).notes)


def test_the_japanese_criteria_say_that_fractures_are_unknown() -> None:
    result = read(0.85, Patient(Sex.FEMALE), Criteria.JAPAN_2012)
    assert result.classification is Classification.LOW_BONE_MASS
    assert "Without known fragility fracture" in " ".join(result.notes)
    assert "adults only" in " ".join(result.notes)
    assert "fracture" not in " ".join(
        read(0.85, WOMAN_OF_70, Criteria.JAPAN_2012, fracture=FragilityFracture.NONE).notes
    )


def test_a_curve_is_linear_between_its_points_and_undefined_outside() -> None:
    curve = AgeCurve(Sex.MALE, Region.TOTAL_HIP, (AgePoint(20, 1.0, 0.1), AgePoint(40, 0.8, 0.2)), "none")
    middle = curve.at(30)
    assert middle is not None
    assert (middle.mean_g_cm2, middle.sd_g_cm2) == pytest.approx((0.9, 0.15))
    assert curve.at(20) == Norm(1.0, 0.1)
    assert curve.at(40) == Norm(0.8, 0.2)
    assert curve.at(19.9) is None
    assert curve.at(40.1) is None


def test_the_japanese_limit_of_osteoporosis_is_the_higher_of_both() -> None:
    narrow, wide = Norm(1.0, 0.1), Norm(1.0, 0.14)
    assert class_limits_g_cm2(narrow, Criteria.JAPAN_2012) == pytest.approx((0.75, 0.9))
    assert class_limits_g_cm2(wide, Criteria.JAPAN_2012) == pytest.approx((0.70, 0.86))
    assert class_limits_g_cm2(wide, Criteria.ISCD_2023) == pytest.approx((0.65, 0.86))


def test_the_chart_gets_the_curve_of_the_patients_sex_or_young_adults_only() -> None:
    references = References(POPULATION)
    man = references.curve(Region.TOTAL_HIP, MAN_OF_40)
    woman = references.curve(Region.TOTAL_HIP, WOMAN_OF_70)
    assert man is not None and woman is not None
    assert (man.ages_years, woman.ages_years) == ((20, 80), ())
    assert (woman.young_mean, woman.young_sd) == (1.0, 0.1)
    assert references.curve(Region.TROCHANTER, WOMAN_OF_70) is None


def test_references_read_as_assess_does() -> None:
    references = References(POPULATION, Criteria.JAPAN_2012)
    estimate = Estimate(0.72, 0.65, 0.79)
    direct = assess(Region.TOTAL_HIP, estimate, WOMAN_OF_70, POPULATION, Criteria.JAPAN_2012, on_dxa_scale=False)
    assert references.assess(Region.TOTAL_HIP, estimate, WOMAN_OF_70, on_dxa_scale=False) == direct
