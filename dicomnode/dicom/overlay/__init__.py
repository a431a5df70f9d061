"""The overlay: one picture on which a radiologist sees what was measured, where, and how it compares.

Drawn with matplotlib's Agg canvas through its object-oriented interface: no global state, no display, the same pixels every time.
"""

from dicomnode.dicom.overlay.page import HEIGHT_PX, WIDTH_PX, render_overlay
from dicomnode.dicom.overlay.radiograph import window_for_display

__all__ = ["HEIGHT_PX", "WIDTH_PX", "render_overlay", "window_for_display"]
