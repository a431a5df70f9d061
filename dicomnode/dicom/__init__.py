"""DICOM data sets in and out."""
