"""The measurement as a Comprehensive SR by TID 1500 Measurement Report.

Content tree::

    Imaging Measurement Report                              TID 1500
    ├── language, device observer, procedure reported       TID 1204, 1002 + 1004
    ├── Image Library                                       TID 1600: the radiograph
    ├── Imaging Measurements
    │   ├── Measurement Group "Right hip"                   TID 1501: status, reason, magnification, notes
    │   ├── Measurement Group "Right hip, Total hip"        TID 1410: contour, figures, class (TID 1501 where there is no contour)
    │   └── ...
    └── Qualitative Evaluations                             TID 1500 row 12: status of the image, limitation, training data, notes

Source: PS3.16 Annex A; PS3.3 A.35.3 (Comprehensive SR IOD).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    ComprehensiveSR,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
    ImageContentItem,
    ImageRegion,
    LanguageOfContentItemAndDescendants,
    MeasurementProperties,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    MeasurementStatisticalProperties,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from highdicom.sr import Measurement as SrMeasurement
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from pydicom.valuerep import DA, DT, TM

from dicomnode.dicom import codes
from dicomnode.dicom.equipment import Equipment
from dicomnode.dicom.uids import IMPLEMENTATION_CLASS_UID, Kind, result_instance_uid, result_series_uid, tracking_uid
from dicomnode.domain.measurement import (
    Assessment,
    Estimate,
    HipMeasurement,
    Measurement,
    ModelIdentity,
    Reason,
    RegionMeasurement,
    Status,
)
from dicomnode.domain.radiograph import Side
from dicomnode.domain.reporting import ReportSettings
from dicomnode.domain.wording import Wording

SERIES_NUMBER = 9801
"""Far above what modalities count to, so that results stand behind the images in a viewer."""
SERIES_DESCRIPTION = "Hip BMD from radiograph: report"
MOST_POLYGON_POINTS = 4000
"""Graphic Data has VR FL, whose length field counts to 65,534 bytes (8,191 points) in explicit VR. Source: PS3.5 7.1.2."""

_Group: TypeAlias = MeasurementsAndQualitativeEvaluations | PlanarROIMeasurementsAndQualitativeEvaluations
_CONTAINS = RelationshipTypeValues.CONTAINS
_HAS_PROPERTIES = RelationshipTypeValues.HAS_PROPERTIES
_HAS_ACQ_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT


@dataclass(frozen=True)
class _Subject:
    """What every measurement group needs to know."""

    source: Dataset
    report_uid: str
    words: Wording
    model: ModelIdentity
    equipment: Equipment
    configuration_digest: str


def build_structured_report(
    source: Dataset,
    measurement: Measurement,
    *,
    equipment: Equipment,
    settings: ReportSettings,
    configuration_digest: str,
    now: datetime,
) -> Dataset:
    """Encode a measurement, or the reasons why there is none, as a Comprehensive SR.

    The same arguments give the same bytes: nothing is read from the clock, nothing is drawn at random.

    Args:
        source: the radiograph's data set as `normalise_source` gives it; patient and study are taken from it.
        measurement: what was measured, or why not.
        equipment: this installation.
        settings: language, limitation sentence, accountable organisation.
        configuration_digest: SHA-256 (hex) of what of the configuration determines the figures.
        now: local time of encoding; seconds are the finest that is written.
    """
    digests = measurement.model.digest, configuration_digest
    report_uid = result_instance_uid(Kind.STRUCTURED_REPORT, source.SOPInstanceUID, *digests)
    subject = _Subject(source, report_uid, settings.words, measurement.model, equipment, configuration_digest)
    report = ComprehensiveSR(
        evidence=[_evidence(source)],
        content=_content(subject, measurement, settings),
        series_instance_uid=result_series_uid(Kind.STRUCTURED_REPORT, source.SOPInstanceUID, *digests),
        series_number=SERIES_NUMBER,
        sop_instance_uid=report_uid,
        instance_number=1,
        manufacturer=equipment.manufacturer,
        is_complete=True,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=SERIES_DESCRIPTION,
        manufacturer_model_name=equipment.model_name,
        software_versions=equipment.software_version,
        specific_character_set="ISO_IR 192",
        coding_schemes=[codes.private_scheme_identification()],
    )
    _evidence_class(report, source)
    _general_equipment(report, equipment)
    _author(report, equipment, settings)
    _stamp(report, now.replace(microsecond=0))
    return report


def _algorithm(subject: _Subject) -> AlgorithmIdentification:
    """TID 4019: the model by name, version and digest, and the configuration that it ran under."""
    digests = [f"model sha256 {subject.model.digest}", f"configuration sha256 {subject.configuration_digest}"]
    return AlgorithmIdentification(
        name=subject.model.name,
        version=subject.model.version,
        manufacturer=subject.equipment.manufacturer,
        parameters=digests,
        family=codes.ARTIFICIAL_INTELLIGENCE,
    )


# --- Attributes outside the content tree -----------------------------------------------------------------------------
def _evidence(source: Dataset) -> Dataset:
    """Give the source a SOP class whose modules highdicom knows.

    It looks them up to copy patient and study, and knows no private or retired classes.
    """
    evidence = Dataset()
    evidence.update(source)
    evidence.add_new("SOPClassUID", "UI", SecondaryCaptureImageStorage)  # a new element: those of `source` are shared
    return evidence


def _evidence_class(report: Dataset, source: Dataset) -> None:
    # SR Document General (PS3.3 C.17.2), Hierarchical SOP Instance Reference Macro: the source's own class
    [study] = report.CurrentRequestedProcedureEvidenceSequence
    study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID = source.SOPClassUID


def _general_equipment(report: Dataset, equipment: Equipment) -> None:
    # General Equipment (PS3.3 C.7.5.1), what highdicom's constructor does not take empty
    for keyword, value in (
        ("DeviceSerialNumber", equipment.serial_number),
        ("StationName", equipment.station_name),
        ("InstitutionName", equipment.institution_name),
        ("InstitutionalDepartmentName", equipment.institutional_department_name),
    ):
        if value:
            setattr(report, keyword, value)
    report.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    report.file_meta.ImplementationVersionName = equipment.implementation_version_name


def _author(report: Dataset, equipment: Equipment, settings: ReportSettings) -> None:
    # SR Document General (PS3.3 C.17.2), Identified Person or Device Macro (table C.17-3b)
    author = Dataset()
    author.ObserverType = "DEV"
    author.StationName = equipment.station_name
    author.DeviceUID = equipment.uid
    author.Manufacturer = equipment.manufacturer
    author.ManufacturerModelName = equipment.model_name
    author.InstitutionName = settings.author_organisation or equipment.institution_name
    author.InstitutionCodeSequence = []
    report.AuthorObserverSequence = [author]


def _stamp(report: Dataset, now: datetime) -> None:
    """Replace every time that highdicom's constructor took from the clock."""
    # General Series (PS3.3 C.7.3.1), SR Document General (C.17.2), SOP Common (C.12.1)
    report.SeriesDate = report.ContentDate = report.InstanceCreationDate = DA(now.date())
    report.SeriesTime = report.ContentTime = report.InstanceCreationTime = TM(now.time())
    for equipment in report.ContributingEquipmentSequence:
        if equipment.get("ManufacturerModelName") == "highdicom":
            equipment.ContributionDateTime = DT(now.replace(tzinfo=None))


# --- The content tree ------------------------------------------------------------------------------------------------
def _content(subject: _Subject, measurement: Measurement, settings: ReportSettings) -> MeasurementReport:
    """TID 1500."""
    content = MeasurementReport(
        observation_context=_observation_context(subject.equipment),
        procedure_reported=codes.PROCEDURE_REPORTED,
        imaging_measurements=list(_groups(subject, measurement)),
        title=codes.REPORT_TITLE,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            codes.concept(codes.LANGUAGES[settings.language])
        ),
    )
    items = content[0].ContentSequence
    items.insert(len(items) - 1, _image_library(subject.source))
    items.append(_evaluations_of_image(subject, measurement, settings))
    return content


def _observation_context(equipment: Equipment) -> ObservationContext:
    """TID 1001 with a device as observer (TID 1004)."""
    device = DeviceObserverIdentifyingAttributes(
        uid=equipment.uid,
        name=equipment.station_name or equipment.model_name,
        manufacturer_name=equipment.manufacturer,
        model_name=equipment.model_name,
        serial_number=equipment.serial_number or None,
        physical_location=equipment.institution_name or None,
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.concept(codes.DEVICE), device))


def _image_library(source: Dataset) -> ContainerContentItem:
    """TID 1600 with the radiograph as its only entry (TID 1601).

    Written here because highdicom's own demands attributes that real radiographs lack (Patient Orientation, Imager Pixel
    Spacing); the items of TID 1602 and 1603 are optional and are given as far as the source states them.
    """
    image = ImageContentItem(
        name=codes.SOURCE,
        referenced_sop_class_uid=source.SOPClassUID,
        referenced_sop_instance_uid=source.SOPInstanceUID,
        relationship_type=_CONTAINS,
    )
    image.ContentSequence = ContentSequence(list(_image_descriptors(source)))
    group = _container(codes.IMAGE_LIBRARY_GROUP, [image])
    return _container(codes.IMAGE_LIBRARY, [group])


def _image_descriptors(source: Dataset) -> Iterator[ContentItem]:
    """TID 1602 and TID 1603, for what the source states."""
    modality = codes.MODALITIES.get(source.get("Modality", ""))
    if modality is not None:
        yield CodeContentItem(codes.MODALITY, modality, _HAS_ACQ_CONTEXT)
    if source.get("Rows") and source.get("Columns"):
        yield NumContentItem(codes.PIXEL_DATA_ROWS, int(source.Rows), codes.PIXELS, relationship_type=_HAS_ACQ_CONTEXT)
        yield NumContentItem(
            codes.PIXEL_DATA_COLUMNS, int(source.Columns), codes.PIXELS, relationship_type=_HAS_ACQ_CONTEXT
        )
    orientation = list(source.get("PatientOrientation") or [])
    if len(orientation) == 2 and all(orientation):
        yield TextContentItem(codes.PATIENT_ORIENTATION_ROW, orientation[0], _HAS_ACQ_CONTEXT)
        yield TextContentItem(codes.PATIENT_ORIENTATION_COLUMN, orientation[1], _HAS_ACQ_CONTEXT)
    spacing = list(source.get("ImagerPixelSpacing") or source.get("PixelSpacing") or [])
    if len(spacing) == 2 and all(value > 0 for value in spacing):
        yield _spacing(codes.HORIZONTAL_PIXEL_SPACING, spacing[1])
        yield _spacing(codes.VERTICAL_PIXEL_SPACING, spacing[0])


def _spacing(name: Code, value_mm: float) -> NumContentItem:
    return NumContentItem(name, float(value_mm), codes.MILLIMETER, relationship_type=_HAS_ACQ_CONTEXT)


def _container(name: Code, items: Sequence[ContentItem]) -> ContainerContentItem:
    container = ContainerContentItem(name=name, relationship_type=_CONTAINS)
    container.ContentSequence = ContentSequence(items)
    return container


def _groups(subject: _Subject, measurement: Measurement) -> Iterator[_Group]:
    """One group for each hip, each followed by one for each of its regions; for an image without a hip one for the image."""
    if not measurement.hips:
        yield _image_group(subject, measurement)
    for hip in measurement.hips:
        yield _hip_group(subject, hip)
        for region in hip.regions:
            yield _region_group(subject, hip.side, region)


def _image_group(subject: _Subject, measurement: Measurement) -> _Group:
    """TID 1501 for an image in which no hip could be looked at."""
    return _group(
        subject,
        "image",
        "Image",
        FindingSite(codes.HIP),
        evaluations=_status(measurement.status, measurement.reason),
        texts=_explanation(subject.words, measurement.reason, measurement.detail),
    )


def _hip_group(subject: _Subject, hip: HipMeasurement) -> _Group:
    """TID 1501 for what holds for a hip as a whole."""
    texts = [*_explanation(subject.words, hip.reason, hip.detail), *((codes.COMMENT, note) for note in hip.notes)]
    measurements = []
    if hip.magnification is not None:
        measurements.append(SrMeasurement(codes.MAGNIFICATION, round(hip.magnification, 4), codes.NO_UNITS))
        origin = subject.words.magnification_source.get(hip.magnification_source, hip.magnification_source)
        texts.append((codes.MAGNIFICATION_SOURCE, origin))
    return _group(
        subject,
        hip.side.value,
        subject.words.side[hip.side],
        FindingSite(codes.HIP, laterality=codes.LATERALITY[hip.side]),
        measurements=measurements,
        evaluations=_status(hip.status, hip.reason),
        texts=texts,
    )


def _region_group(subject: _Subject, side: Side, region: RegionMeasurement) -> _Group:
    """TID 1410 for a region with a contour, TID 1501 for one without."""
    evaluations = _status(region.status, region.reason)
    texts = _explanation(subject.words, region.reason, region.detail)
    assessment = region.assessment
    if assessment is not None:
        evaluations += _classification(assessment)
        texts += _assessment_texts(assessment)
    return _group(
        subject,
        f"{side.value} {region.region.value}",
        f"{subject.words.side[side]}, {subject.words.region[region.region]}",
        FindingSite(
            codes.FINDING_SITE[region.region],
            laterality=codes.LATERALITY[side],
            topographical_modifier=codes.REGION[region.region],
        ),
        measurements=list(_figures(region)),
        evaluations=evaluations,
        texts=texts,
        contour_px=region.contour_px,
    )


def _group(
    subject: _Subject,
    key: str,
    title: str,
    site: FindingSite,
    *,
    measurements: Sequence[SrMeasurement] = (),
    evaluations: Sequence[QualitativeEvaluation] = (),
    texts: Sequence[tuple[Code, str]] = (),
    contour_px: NDArray[np.float32] | None = None,
) -> _Group:
    """Put a measurement group together; `texts` follow at its end."""
    source = subject.source
    polygon = None if contour_px is None else closed_polygon(contour_px, source.Rows, source.Columns)
    common: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(uid=tracking_uid(subject.report_uid, key), identifier=title),
        "finding_category": codes.FINDING_CATEGORY_ANATOMY,
        "finding_type": codes.FINDING_BONE,
        "finding_sites": [site],
        "algorithm_id": _algorithm(subject),
        "measurements": measurements,
        "qualitative_evaluations": evaluations,
    }
    group: _Group
    if polygon is None:
        whole_image = SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)
        group = MeasurementsAndQualitativeEvaluations(source_images=[whole_image], **common)
    else:
        image = SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID)
        region = ImageRegion(GraphicTypeValues.POLYLINE, polygon, image)
        group = PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **common)
    group[0].ContentSequence.extend(_text(name, value) for name, value in texts)
    return group


def closed_polygon(contour_px: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32] | None:
    """Make a contour a closed POLYLINE within the image, to 0.01 pixel; None where it encloses nothing.

    Args:
        contour_px: (n, 2) as (column, row), pixel (0, 0) covering 0..1.
        rows: rows of the image.
        columns: columns of the image.

    Source: PS3.3 C.10.5.1.2 (Graphic Type POLYLINE: closed where first and last point are equal), C.18.6.1.1 (coordinates).
    """
    points = np.asarray(contour_px, dtype=np.float64)
    step = -(-len(points) // MOST_POLYGON_POINTS) or 1
    points = np.clip(points[::step], 0.0, (columns, rows)).round(2)
    moved = np.any(points[1:] != points[:-1], axis=1)
    points = points[np.concatenate(([True], moved))] if len(points) else points
    if len(points) and np.array_equal(points[0], points[-1]):
        points = points[:-1]
    if len(points) < 3 or np.ptp(points, axis=0).min() == 0.0:
        return None
    return np.vstack((points, points[:1])).astype(np.float32)


# --- Content of the groups -------------------------------------------------------------------------------------------
def _status(status: Status, reason: Reason | None) -> list[QualitativeEvaluation]:
    measured = status is Status.MEASURED
    evaluations = [QualitativeEvaluation(codes.MEASURABILITY, codes.MEASURED if measured else codes.NOT_MEASURABLE)]
    if reason is not None:
        evaluations.append(QualitativeEvaluation(codes.NOT_MEASURABLE_REASON, codes.REASON[reason]))
    return evaluations


def _explanation(words: Wording, reason: Reason | None, detail: str) -> list[tuple[Code, str]]:
    sentences = ([] if reason is None else [words.reason_sentence[reason]]) + ([detail] if detail else [])
    return [(codes.COMMENT, " ".join(sentences))] if sentences else []


def _classification(assessment: Assessment) -> list[QualitativeEvaluation]:
    if assessment.classification is None:
        return []
    return [QualitativeEvaluation(codes.DENSITY_CLASS, codes.DENSITY_CLASSES[assessment.classification])]


def _assessment_texts(assessment: Assessment) -> list[tuple[Code, str]]:
    texts = [(codes.CRITERIA, assessment.criteria)] if assessment.classification is not None else []
    return texts + ([(codes.ASSESSMENT_NOTE, " ".join(assessment.notes))] if assessment.notes else [])


def _figures(region: RegionMeasurement) -> Iterator[SrMeasurement]:
    """TID 300 for each figure that there is, rounded to what the method can resolve and a little more."""
    canonical, as_projected = codes.CANONICAL_METHOD, codes.METHOD
    for name, estimate, method, unit, digits in (
        (codes.AREAL_BMD, region.areal_bmd_g_cm2, canonical, codes.G_PER_CM2, 4),
        (codes.BONE_MINERAL_CONTENT, region.bmc_g, canonical, codes.GRAM, 3),
        (codes.PROJECTED_AREA, region.area_cm2, canonical, codes.CM2, 3),
        (codes.VOLUMETRIC_BMD, region.volumetric_bmd_mg_cm3, canonical, codes.MG_PER_CM3, 2),
        (codes.PROJECTED_AREAL_BMD, region.projected_areal_bmd_g_cm2, as_projected, codes.G_PER_CM2, 4),
    ):
        if estimate is not None:
            yield _figure(name, estimate, method, unit, digits)
    if region.assessment is not None:
        yield from _scores(region.assessment)


def _figure(name: Code, estimate: Estimate, method: Code, unit: Code, digits: int) -> SrMeasurement:
    """A figure with its method and, where calibrated, its 90 % prediction interval (TID 300, TID 310)."""
    return SrMeasurement(
        name=name,
        value=round(float(estimate.value), digits),
        unit=unit,
        method=method,
        properties=_interval(estimate, unit, digits),
    )


def _interval(estimate: Estimate, unit: Code, digits: int) -> MeasurementProperties | None:
    """TID 310: the interval as limits in figures and as TID's ranges around the value, all in the unit of the measurement.

    The ranges are written here because highdicom gives them the unit 1.
    """
    if estimate.low is None or estimate.high is None:
        return None
    value, low, high = (round(float(number), digits) for number in (estimate.value, estimate.low, estimate.high))
    properties = MeasurementProperties()
    for name, number in (
        (codes.UPPER_UNCERTAINTY, high - value),
        (codes.LOWER_UNCERTAINTY, value - low),
        (codes.INTERVAL_LOW, low),
        (codes.INTERVAL_HIGH, high),
    ):
        properties.append(NumContentItem(name, round(number, digits), unit, relationship_type=_HAS_PROPERTIES))
    return properties


def _scores(assessment: Assessment) -> Iterator[SrMeasurement]:
    """T-score, Z-score and %YAM, each with whom it compares with (TID 311)."""
    for name, score, unit in (
        (codes.T_SCORE, assessment.t_score, codes.NO_UNITS),
        (codes.Z_SCORE, assessment.z_score, codes.NO_UNITS),
        (codes.PERCENT_YAM, assessment.percent_yam, codes.PERCENT),
    ):
        if score is not None:
            population = MeasurementStatisticalProperties(values=[], description=assessment.reference)
            properties = MeasurementProperties(measurement_statistical_properties=population)
            yield SrMeasurement(name, round(float(score), 2), unit, properties=properties)


def _evaluations_of_image(
    subject: _Subject, measurement: Measurement, settings: ReportSettings
) -> ContainerContentItem:
    """TID 1500 row 12: what holds for the report as a whole."""
    items: list[ContentItem] = [
        item for evaluation in _status(measurement.status, measurement.reason) for item in evaluation
    ]
    items += [_text(name, text) for name, text in _explanation(subject.words, measurement.reason, measurement.detail)]
    items.append(_text(codes.LIMITATION, settings.limitation_sentence))
    if (sentence := subject.words.trained_on.get(measurement.model.trained_on)) is not None:
        items.append(_text(codes.TRAINING_DATA, sentence))
    if measurement.status is Status.MEASURED:
        items.append(_text(codes.COMMENT, subject.words.canonical_pose))
    items += [_text(codes.COMMENT, note) for note in measurement.notes]
    return _container(codes.QUALITATIVE_EVALUATIONS, items)


def _text(name: Code | CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name, value, _CONTAINS)
