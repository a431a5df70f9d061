"""Pixel size in the object plane: the plane through the femoral head, parallel to the detector."""

from dataclasses import dataclass

from dicomnode.domain.radiograph import AcquisitionGeometry

ASSUMED_MAGNIFICATION = 1.15
"""Used where the header says nothing: magnification of the hip on pelvic radiographs was 1.14 +- 0.04 in 119 patients
(Wangjiraphan et al., he01.tci-thaijo.org/index.php/LMJ/article/view/243200) and 1.15 is the usual convention in templating
(doi:10.1007/s11999-008-0486-y)."""

_PLAUSIBLE_MAGNIFICATION = (1.0, 1.6)
_PLAUSIBLE_SPACING_MM = (0.02, 2.0)


@dataclass(frozen=True)
class ObjectPlane:
    """How large a pixel is at the femoral head."""

    spacing_mm: tuple[float, float]
    """(row, column)."""
    magnification: float
    source: str
    """"calibrated", "header" or "assumed"."""
    note: str = ""
    """A sentence for the report where something had to be assumed."""


def object_plane(geometry: AcquisitionGeometry) -> ObjectPlane | None:
    """Find the pixel size in the object plane, or None where the header holds no spacing at all.

    A spacing that was calibrated to the patient is taken as it is. A detector spacing is divided by the magnification: the
    stated factor (0018,1114), else the ratio of (0018,1110) to (0018,1111), else `ASSUMED_MAGNIFICATION`, with a note.
    Areal density, a ratio, does not depend on it; area and mass change with its square.
    """
    if _plausible(geometry.patient_spacing_mm):
        assert geometry.patient_spacing_mm is not None
        return ObjectPlane(geometry.patient_spacing_mm, 1.0, "calibrated")
    if not _plausible(geometry.detector_spacing_mm):
        return None
    assert geometry.detector_spacing_mm is not None
    rows, columns = geometry.detector_spacing_mm
    stated = _stated_magnification(geometry)
    factor = ASSUMED_MAGNIFICATION if stated is None else stated
    if stated is not None:
        return ObjectPlane((rows / factor, columns / factor), factor, "header")
    note = f"Magnification is not stated in the header; {factor:.2f} was assumed, so area and mineral content are approximate."
    return ObjectPlane((rows / factor, columns / factor), factor, "assumed", note)


def _stated_magnification(geometry: AcquisitionGeometry) -> float | None:
    candidates = [geometry.magnification_stated]
    if geometry.sdd_mm and geometry.spd_mm:
        candidates.append(geometry.sdd_mm / geometry.spd_mm)
    low, high = _PLAUSIBLE_MAGNIFICATION
    # Exactly 1 is what systems write that do not know it.
    return next((value for value in candidates if value is not None and low < value <= high), None)


def _plausible(spacing_mm: tuple[float, float] | None) -> bool:
    low, high = _PLAUSIBLE_SPACING_MM
    return spacing_mm is not None and all(low <= value <= high for value in spacing_mm)
