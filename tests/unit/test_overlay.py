"""The overlay: what is drawn where, that it is the same every time, and that it identifies nobody."""

from dataclasses import replace
from datetime import date
from functools import cache

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from dicomnode.clinical.reference import load_populations
from dicomnode.clinical.scores import Criteria, References
from dicomnode.config import LONGEST_LIMITATION, SHIPPED_FOLDER
from dicomnode.dicom.overlay import HEIGHT_PX, WIDTH_PX, render_overlay, window_for_display
from dicomnode.dicom.overlay.chart import draw_chart
from dicomnode.dicom.overlay.maps import MAGNIFIED, coloured, full_scale_g_cm2, magnified_hip
from dicomnode.dicom.overlay.page import FOOT_TOP_PX, HIGHEST_FOOT_TOP_PX, _draw_foot, _language, _remarks
from dicomnode.dicom.overlay.radiograph import notice_of_hip, notice_of_image
from dicomnode.dicom.overlay.style import (
    CLASS_COLOUR,
    LATIN_FONT,
    MUTED,
    REFERENCE,
    REGION_COLOUR,
    TEXT,
    WARNING,
    Box,
    Sheet,
    font_family,
)
from dicomnode.dicom.overlay.table import _figures
from dicomnode.domain.measurement import Estimate, Measurement, Region, Status, TrainingData
from dicomnode.domain.radiograph import Patient, Sex, Side
from dicomnode.domain.reference import ReferenceCurve
from dicomnode.domain.reporting import ReportSettings
from dicomnode.domain.wording import wording
from dicomnode.inference.frame import HEAD_COLUMN, HEAD_ROW
from tests.synthetic_hips import (
    CASES,
    COLUMNS,
    CURVE,
    MODEL,
    ROWS,
    YOUNG_ADULTS_ONLY,
    both_hips,
    both_refused,
    implant_on_the_left,
    measured_hip,
    neck_only,
    nothing_measurable,
    radiograph,
)

PATIENT = Patient(Sex.FEMALE, date(1954, 6, 12), date(2025, 3, 14))
REFERENCES = {Region.TOTAL_HIP: CURVE, Region.FEMORAL_NECK: YOUNG_ADULTS_ONLY}


def draw(
    measurement: Measurement,
    settings: ReportSettings | None = None,
    patient: Patient = PATIENT,
    references: dict[Region, ReferenceCurve] | None = None,
    identification: str = "",
    image: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    return render_overlay(
        measurement,
        radiograph() if image is None else image,
        patient=patient,
        references=REFERENCES if references is None else references,
        settings=settings or ReportSettings(),
        identification=identification,
    )


@cache
def page(case: str) -> NDArray[np.uint8]:
    return draw(CASES[case]())


def pixels_of(picture: NDArray[np.uint8], colour: str, within: int = 12) -> NDArray[np.bool_]:
    wanted = np.array(to_rgb(colour)) * 255
    close: NDArray[np.bool_] = (np.abs(picture.astype(float) - wanted) <= within).all(axis=2)
    return close


@pytest.mark.parametrize("case", CASES)
def test_every_case_fills_one_rgb_page(case: str) -> None:
    picture = page(case)
    assert picture.shape == (HEIGHT_PX, WIDTH_PX, 3)
    assert picture.dtype == np.uint8


def test_the_same_measurement_gives_the_same_pixels() -> None:
    assert np.array_equal(page("both_hips"), draw(both_hips()))


def test_contours_of_both_hips_are_drawn_on_their_sides_of_the_radiograph() -> None:
    picture = page("both_hips")[116:720, 24:770]
    for region in (Region.FEMORAL_NECK, Region.TROCHANTER, Region.INTERTROCHANTER):
        _, columns = np.nonzero(pixels_of(picture, REGION_COLOUR[region], within=40))
        assert (columns < picture.shape[1] / 2).sum() > 100
        assert (columns > picture.shape[1] / 2).sum() > 100


def test_only_the_measured_hip_is_outlined() -> None:
    picture = page("implant_on_the_left")[116:720, 24:770]
    found = pixels_of(picture, REGION_COLOUR[Region.TROCHANTER], within=40)
    assert found[:, : picture.shape[1] // 2].sum() > 100
    assert found[:, picture.shape[1] // 2 :].sum() < found[:, : picture.shape[1] // 2].sum() / 4


def test_a_refused_hip_is_covered_by_its_notice() -> None:
    left_half = page("implant_on_the_left")[116:720, 400:770]
    assert pixels_of(left_half, WARNING, within=25).sum() > 300
    assert pixels_of(page("both_hips")[116:720, 400:770], WARNING, within=25).sum() == 0


@pytest.mark.parametrize("case", ["nothing_measurable", "both_refused"])
def test_a_page_without_figures_has_no_density_colours(case: str) -> None:
    picture = page(case)[120:1080].astype(int)
    saturated = picture.max(axis=2) - picture.min(axis=2) > 150
    assert saturated[:, :1100].sum() == 0


def test_figures_differ_where_measurements_differ() -> None:
    hips = both_hips().hips
    denser = replace(hips[0].regions[0], areal_bmd_g_cm2=Estimate(1.111, 1.0, 1.2))
    changed = replace(both_hips(), hips=(replace(hips[0], regions=(denser, *hips[0].regions[1:])), hips[1]))
    difference = np.abs(draw(changed).astype(int) - page("both_hips").astype(int)).max(axis=2)
    table, chart, image = difference[740:1092, :1040], difference[740:1092, 1050:], difference[116:720]
    assert table.any()
    assert chart.any()
    assert not image.any()


def test_table_figures_are_rounded_as_a_print_does() -> None:
    region = replace(
        measured_hip(Side.RIGHT).regions[0],
        areal_bmd_g_cm2=Estimate(0.80649, 0.74449, 0.86851),
        bmc_g=Estimate(28.666),
        area_cm2=Estimate(35.456),
        volumetric_bmd_mg_cm3=Estimate(293.6),
        projected_areal_bmd_g_cm2=Estimate(0.8234),
    )
    assert region.assessment is not None
    scored = replace(region, assessment=replace(region.assessment, t_score=-1.1, z_score=0.0, percent_yam=86.0))
    assert list(_figures(scored)) == ["0.806", "0.744 – 0.869", "0.823", "−1.1", "+0.0", "86", "28.67", "35.46", "294"]


def test_absent_figures_are_dashes() -> None:
    bare = replace(
        measured_hip(Side.RIGHT).regions[0],
        areal_bmd_g_cm2=Estimate(0.8),
        bmc_g=None,
        area_cm2=None,
        volumetric_bmd_mg_cm3=None,
        projected_areal_bmd_g_cm2=None,
        assessment=None,
    )
    assert list(_figures(bare)) == ["0.800", *8 * ["–"]]


def test_identification_is_drawn_only_where_the_settings_say_so() -> None:
    silent = draw(both_hips(), identification="Yamada Tarou   P-0042")
    assert np.array_equal(silent, page("both_hips"))
    spoken = draw(both_hips(), ReportSettings(burn_in_identification=True), identification="Yamada Tarou   P-0042")
    assert not np.array_equal(spoken[:64], silent[:64])
    assert np.array_equal(spoken[64:], silent[64:])


def test_the_banner_stands_on_every_page_of_a_model_trained_on_simulation_and_on_no_other() -> None:
    for case in CASES:
        assert pixels_of(page(case)[60:104], WARNING, within=25).sum() > 1000
    partly = draw(replace(both_hips(), model=replace(MODEL, trained_on=TrainingData.SIMULATED_AND_REAL)))
    assert pixels_of(partly[60:104], WARNING, within=25).sum() > 1000 and not np.array_equal(partly, page("both_hips"))
    real = draw(replace(both_hips(), model=replace(MODEL, trained_on=TrainingData.REAL)))
    assert pixels_of(real[50:104], WARNING, within=25).sum() == 0


def test_the_limitation_of_the_settings_is_drawn() -> None:
    other = draw(both_hips(), ReportSettings(limitation="Another sentence."))
    difference = np.abs(other.astype(int) - page("both_hips").astype(int)).max(axis=(1, 2))
    assert difference[FOOT_TOP_PX:].any()
    assert not difference[:FOOT_TOP_PX].any()


def chart(age_years: float | None, references: dict[Region, ReferenceCurve]) -> NDArray[np.uint8]:
    sheet = Sheet(600, 400, LATIN_FONT)
    draw_chart(sheet, Box(10, 10, 580, 380), both_hips(), age_years, references, wording("en"))
    return sheet.pixels()


@pytest.mark.parametrize("age_years", [None, 12.0, 70.7, 104.0])
@pytest.mark.parametrize(
    "references", [{Region.TOTAL_HIP: CURVE}, {Region.TOTAL_HIP: YOUNG_ADULTS_ONLY}], ids=["ages", "young"]
)
def test_the_chart_takes_any_age_and_any_reference(
    age_years: float | None, references: dict[Region, ReferenceCurve]
) -> None:
    picture = chart(age_years, references)
    assert pixels_of(picture, REFERENCE).sum() > 200
    assert pixels_of(picture, TEXT).sum() > 30


def test_the_patients_points_stand_at_the_age_and_the_right_hip_left_of_the_left() -> None:
    def points(age_years: float) -> NDArray[np.intp]:
        difference = (
            np.abs(chart(age_years, {Region.TOTAL_HIP: CURVE}).astype(int) - empty.astype(int)).max(axis=2) > 60
        )
        return np.nonzero(difference[:, :520])[1]

    empty = chart(None, {Region.TOTAL_HIP: CURVE})
    younger, older = points(40.0), points(70.0)
    assert np.median(younger) < np.median(older)


def test_without_a_reference_the_chart_says_so() -> None:
    picture = chart(70.0, {})
    assert pixels_of(picture, REFERENCE).sum() == 0
    assert pixels_of(picture, MUTED, within=20).sum() > 50


def test_a_curve_without_young_adults_is_drawn_without_t_scores_and_classes() -> None:
    curve = replace(CURVE, young_mean=None, young_sd=None)
    assert curve.limits_g_cm2 is None
    assert pixels_of(chart(70.0, {Region.TOTAL_HIP: curve}), CLASS_COLOUR["osteoporosis"], within=30).sum() == 0
    assert pixels_of(chart(70.0, {Region.TOTAL_HIP: CURVE}), CLASS_COLOUR["osteoporosis"], within=30).sum() > 30


def test_other_criteria_move_the_class_limits() -> None:
    moved = replace(CURVE, class_limits_g_cm2=(0.7, 0.8))
    assert moved.limits_g_cm2 == (0.7, 0.8)
    assert CURVE.limits_g_cm2 == (pytest.approx(0.942 - 2.5 * 0.122), pytest.approx(0.942 - 0.122))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ages_years": (20.0, 30.0), "mean_g_cm2": (1.0,), "sd_g_cm2": (0.1, 0.1)},
        {"ages_years": (30.0, 20.0), "mean_g_cm2": (1.0, 1.0), "sd_g_cm2": (0.1, 0.1)},
        {"young_mean": 0.9},
    ],
)
def test_an_impossible_reference_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="reference Someone"):
        ReferenceCurve("Someone", **wrong)  # type: ignore[arg-type]


def test_a_portrait_of_one_hip_and_an_unreadable_image_have_their_pages() -> None:
    portrait = np.ascontiguousarray(radiograph()[:, : COLUMNS // 2])
    assert draw(neck_only(), image=portrait).shape == (HEIGHT_PX, WIDTH_PX, 3)
    blank = render_overlay(nothing_measurable(), None, patient=PATIENT, references={}, settings=ReportSettings())
    assert pixels_of(blank, WARNING, within=25).sum() > 1000


def test_a_left_hip_is_mirrored_back_for_display() -> None:
    maps = measured_hip(Side.RIGHT).maps
    assert maps is not None
    right, left = coloured(maps, 1.4, Side.RIGHT), coloured(maps, 1.4, Side.LEFT)
    assert np.array_equal(left, right[:, ::-1])


@pytest.mark.parametrize("side", Side)
def test_the_magnified_radiograph_shows_what_lies_under_the_frame(side: Side) -> None:
    maps = measured_hip(side).maps
    assert maps is not None
    ramp = np.broadcast_to(np.linspace(0, 1, COLUMNS, dtype=np.float32), (ROWS, COLUMNS))
    picture = magnified_hip(maps, ramp, side)
    rows, columns = maps.areal_density_g_cm2.shape
    assert picture.shape == (MAGNIFIED * rows, MAGNIFIED * columns)
    head = maps.image_from_frame @ (HEAD_COLUMN + 0.5, HEAD_ROW + 0.5, 1)
    shown = HEAD_COLUMN if side is Side.RIGHT else columns - 1 - HEAD_COLUMN
    assert picture[MAGNIFIED * HEAD_ROW + 1, MAGNIFIED * shown + 1] == pytest.approx(255 * head[0] / COLUMNS, abs=1.5)
    across = picture[MAGNIFIED * HEAD_ROW, 60:-60:60].astype(int)
    assert (np.diff(across) > 0).all(), "the patient's right stays at the viewer's left"


def test_colours_cover_bone_only() -> None:
    maps = measured_hip(Side.RIGHT).maps
    assert maps is not None
    picture = coloured(maps, 1.4, Side.RIGHT)
    grey = np.ptp(picture, axis=2) < 1e-6
    assert grey[maps.areal_density_g_cm2 == 0].all()
    assert not grey[maps.areal_density_g_cm2 > 0.3].any()


def test_the_colour_scale_holds_the_densest_bone_and_ends_at_a_round_figure() -> None:
    assert full_scale_g_cm2([np.full((4, 4), 0.5, np.float32)]) == pytest.approx(1.2)
    assert full_scale_g_cm2([np.full((4, 4), 1.53, np.float32)]) == pytest.approx(1.6)
    assert full_scale_g_cm2([]) == pytest.approx(1.2)


def test_the_window_spans_the_anatomy_and_not_a_lead_marker() -> None:
    image = np.linspace(0, 1, ROWS * 100, dtype=np.float32).reshape(ROWS, 100)
    image[:2, :2] = 50.0
    shown = window_for_display(image)
    assert (shown.min(), shown.max()) == (0.0, 1.0)
    assert shown.mean() == pytest.approx(0.5, abs=0.03)


def test_a_flat_image_is_displayed_without_a_division_by_zero() -> None:
    assert np.isfinite(window_for_display(np.full((9, 9), 3.0, np.float32))).all()


def test_notices_say_which_hip_why_and_what_was_seen() -> None:
    words = wording("en")
    notice = notice_of_hip(implant_on_the_left().hips[1], words)
    assert notice.subject == "Left hip · Not measurable"
    assert notice.why == "Implant"
    assert notice.sentences[1].startswith("Brighter than bone")
    assert notice_of_image(nothing_measurable(), words).why == "No hip found"


def test_a_refusal_without_a_reason_is_worded_too() -> None:
    bare = replace(both_refused().hips[0], reason=None, detail="")
    assert notice_of_hip(bare, wording("en")).why == "Not measurable"
    assert notice_of_hip(bare, wording("en")).sentences == ()
    both = replace(both_hips(), hips=(both_hips().hips[0], replace(bare, side=Side.LEFT)))
    assert draw(both).shape == (HEIGHT_PX, WIDTH_PX, 3)


@pytest.mark.filterwarnings("ignore:Glyph")  # the font need not have them to be measured
def test_lines_break_between_words_and_between_japanese_characters_but_not_before_a_full_stop() -> None:
    face = Sheet(100, 100, LATIN_FONT).typeface
    lines = face.wrapped("one two three four five six", 60, 12)
    assert " ".join(lines) == "one two three four five six"
    assert len(lines) > 1
    assert all(face.width_px(line, 12) <= 60 for line in lines)
    japanese = face.wrapped("これは長い文です。これも長い文です。", 60, 12)
    assert "".join(japanese) == "これは長い文です。これも長い文です。"
    assert not any(line.startswith("。") for line in japanese)


def test_a_paragraph_too_long_ends_in_an_ellipsis_within_its_lines() -> None:
    sheet = Sheet(200, 100, LATIN_FONT)
    assert sheet.ground.paragraph(0, 0, "word " * 60, 150, 10, most_lines=2) == pytest.approx(28.0)
    assert sheet.ground.paragraph(0, 0, "word", 150, 10, most_lines=2) == pytest.approx(14.0)


def shipped_remarks(population: str, criteria: Criteria) -> str:
    """What stands below the limitation when every proviso of a shipped population holds."""
    references = References(load_populations(SHIPPED_FOLDER / "reference")[population], criteria)
    doubt = (
        "The right hip looks unlike those that the model learned from (confidence in the view 0.62), so its figures are less"
        " certain."
    )
    hips = tuple(
        replace(
            hip,
            notes=(doubt,),
            regions=tuple(
                replace(
                    region,
                    assessment=references.assess(
                        region.region, Estimate(0.70, 0.58, 0.82), PATIENT, on_dxa_scale=False
                    ),
                )
                for region in hip.regions
            ),
        )
        for hip in both_hips().hips
    )
    assumed = (
        "Magnification is not stated in the header; 1.15 was assumed, so area and mineral content are approximate."
    )
    remarks = " ".join(_remarks(replace(both_hips(), hips=hips, notes=(assumed,)), REFERENCES, wording("en")))
    assert remarks.count(doubt) == len(hips)
    return remarks


def foot(limitation: str, remarks: str, family: str = LATIN_FONT) -> tuple[float, list[str]]:
    """Draw a foot alone; give where it begins, and the lines on it, after checking that they lie on the page."""
    sheet = Sheet(WIDTH_PX, HEIGHT_PX, family)
    top = _draw_foot(sheet, limitation, remarks)
    written = sheet.ground._axes.texts
    assert all(top < text.get_position()[1] < HEIGHT_PX - 14 for text in written)
    return top, [text.get_text() for text in written]


@pytest.mark.parametrize(
    ("population", "criteria"), [("nhanes3", Criteria.ISCD_2023), ("japan2012", Criteria.JAPAN_2012)]
)
def test_the_longest_limitation_and_the_shipped_provisos_are_written_whole(population: str, criteria: Criteria) -> None:
    remarks = shipped_remarks(population, criteria)
    for limitation in (wording("en").limitation, ("must not be used for diagnosis; " * 19)[:600], "WW " * 200):
        top, lines = foot(limitation.strip(), remarks)
        assert " ".join(lines) == f"{limitation.strip()} {remarks}"
        assert HIGHEST_FOOT_TOP_PX <= top <= FOOT_TOP_PX


@pytest.mark.skipif(font_family("ja") is None, reason="no Japanese font is installed (Debian package fonts-noto-cjk)")
def test_the_longest_japanese_limitation_and_the_shipped_provisos_are_written_whole() -> None:
    remarks = shipped_remarks("japan2012", Criteria.JAPAN_2012)
    top, lines = foot("骨" * LONGEST_LIMITATION, remarks, font_family("ja") or "")
    assert "".join(lines).replace(" ", "") == "骨" * LONGEST_LIMITATION + remarks.replace(" ", "")
    assert top >= HIGHEST_FOOT_TOP_PX


def test_a_short_foot_keeps_its_place_and_remarks_without_end_are_cut_visibly() -> None:
    assert foot("Short.", "")[0] == FOOT_TOP_PX
    top, lines = foot("Short.", "another remark " * 400)
    assert top == HIGHEST_FOOT_TOP_PX
    assert lines[0] == "Short."
    assert lines[-1].endswith("…")


def test_a_line_too_long_ends_in_an_ellipsis() -> None:
    face = Sheet(100, 100, LATIN_FONT).typeface
    assert face.shortened("short", 200, 12) == "short"
    cut = face.shortened("a line that is much too long to fit", 80, 12)
    assert cut.endswith("…")
    assert face.width_px(cut, 12) <= 80
    assert face.shortened("word", 0, 12) == "…"


def test_a_box_is_fitted_in_the_middle() -> None:
    assert Box(10, 10, 200, 100).fitted(50, 50) == Box(60, 10, 100, 100)


def test_a_language_without_a_font_falls_back_to_english() -> None:
    japanese = ReportSettings(language="ja")
    family, words, limitation = _language(japanese, font_of=lambda language: None)
    assert (family, words.language, limitation) == (LATIN_FONT, "en", wording("en").limitation)
    english = replace(japanese, limitation="A site's own sentence.")
    assert _language(english, font_of=lambda language: None)[2] == "A site's own sentence."
    assert (
        _language(replace(japanese, limitation="日本語"), font_of=lambda language: None)[2] == wording("en").limitation
    )
    accents = replace(japanese, limitation="Ne remplace pas une densitométrie.")
    assert _language(accents, font_of=lambda language: None)[2] == accents.limitation


def test_a_japanese_sentence_on_an_english_page_is_written_in_a_japanese_font() -> None:
    def font_of(language: str) -> str:
        return {"ja": "A Japanese Font"}.get(language, LATIN_FONT)

    family, words, limitation = _language(ReportSettings(limitation="日本語"), font_of)
    assert (family, words.language, limitation) == ("A Japanese Font", "en", "日本語")
    assert _language(ReportSettings(), font_of)[0] == LATIN_FONT


@pytest.mark.skipif(font_family("ja") is None, reason="no Japanese font is installed (Debian package fonts-noto-cjk)")
def test_japanese_pages_are_written_in_a_japanese_font() -> None:
    family, words, _ = _language(ReportSettings(language="ja"))
    assert family != LATIN_FONT
    assert words.language == "ja"
    assert not np.array_equal(draw(both_hips(), ReportSettings(language="ja")), page("both_hips"))


def test_a_measured_hip_without_maps_or_contours_keeps_its_figures() -> None:
    hip = measured_hip(Side.RIGHT)
    bare = replace(hip, maps=None, regions=tuple(replace(region, contour_px=None) for region in hip.regions))
    assert bare.status is Status.MEASURED
    assert draw(replace(both_hips(), hips=(bare,))).shape == (HEIGHT_PX, WIDTH_PX, 3)
