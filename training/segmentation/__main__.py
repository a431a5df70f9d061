"""`python -m training.segmentation`."""

from training.segmentation.cli import main

main()
