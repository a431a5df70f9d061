"""From volumes to radiographs: geometry, projector, attenuation, detector."""
