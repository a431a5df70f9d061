"""A DICOM node that measures bone mineral density from a plain hip radiograph."""

__version__ = "0.1.0"
