"""From Hounsfield units to mineral in mg/cm3: by the rods of a phantom under the patient, or by the patient's own tissues."""
