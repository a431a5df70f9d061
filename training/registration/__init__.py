"""Where the patient of a CT lay when a plain radiograph was taken: 2D/3D registration of one view."""
