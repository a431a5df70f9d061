"""More bone is never a worse class, whoever the patient is and whatever the criteria."""

from hypothesis import given
from hypothesis import strategies as st

from dicomnode.clinical.reference import AgeCurve, AgePoint, Norm, ReferencePopulation
from dicomnode.clinical.scores import Classification, Criteria, FragilityFracture, assess
from dicomnode.domain.measurement import Estimate, Region
from dicomnode.domain.radiograph import Patient, Sex

ORDER = {
    Classification.OSTEOPOROSIS: 0,
    Classification.LOW_BONE_MASS: 1,
    Classification.NORMAL: 2,
    Classification.BELOW_EXPECTED_RANGE: 0,
    Classification.WITHIN_EXPECTED_RANGE: 2,
}
NORMS = st.builds(Norm, st.floats(0.6, 1.2), st.floats(0.08, 0.16))
BMD = st.floats(0.1, 2.0)


@given(
    BMD,
    BMD,
    NORMS,
    st.sampled_from(list(Sex)),
    st.one_of(st.none(), st.floats(0, 110)),
    st.sampled_from(list(Criteria)),
    st.sampled_from(list(FragilityFracture)),
)
def test_scores_and_classes_never_fall_with_more_bone(
    one: float,
    other: float,
    norm: Norm,
    sex: Sex,
    age: float | None,
    criteria: Criteria,
    fracture: FragilityFracture,
) -> None:
    curve = AgeCurve(
        Sex.MALE, Region.TOTAL_HIP, (AgePoint(20, 1.0, 0.1), AgePoint(90, 0.7, 0.1)), "none", verified=True
    )
    population = ReferencePopulation(
        "any", "Any", "Hologic", tuple(Sex), "none", True, {Region.TOTAL_HIP: norm}, age_curves=(curve,)
    )
    patient = Patient(sex, age_years_stated=age)
    less, more = (
        assess(Region.TOTAL_HIP, Estimate(v), patient, population, criteria, on_dxa_scale=True, fracture=fracture)
        for v in sorted((one, other))
    )
    for figure in ("t_score", "z_score", "percent_yam"):
        low, high = getattr(less, figure), getattr(more, figure)
        assert (low is None) == (high is None)
        assert low is None or low <= high
    assert (less.classification is None) == (more.classification is None)
    if less.classification and more.classification:
        assert ORDER[Classification(less.classification)] <= ORDER[Classification(more.classification)]
