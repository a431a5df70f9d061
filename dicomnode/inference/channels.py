"""What the networks answer, in order: the one place that training, serving and the bundle agree on."""

from dicomnode.domain.measurement import Region
from dicomnode.inference.frame import Label

CHANNELS = (
    ("femur_density", "g/cm2"),
    ("femur_path", "cm"),
    ("pelvis_density", "g/cm2"),
    ("soft", "g/cm2"),
    ("background", "logit"),
    ("head", "logit"),
    ("neck", "logit"),
    ("trochanter", "logit"),
    ("intertrochanter", "logit"),
    ("shaft", "logit"),
    ("metal", "logit"),
    ("field", "logit"),
)
"""The decomposer's output channels, in order, with units."""
INDEX = {name: index for index, (name, _) in enumerate(CHANNELS)}
MAPS = slice(0, INDEX["background"])
"""The channels in physical units."""
LABELS = slice(INDEX["background"], INDEX["shaft"] + 1)
"""The logits of `frame.Label`, in its order."""
VERDICTS = ("anteroposterior_hip", "implant")
"""The decomposer's scalar logits of the whole crop: is it an AP hip in a pose that was trained for, and is there metal in it."""
REGIONAL_VERDICTS = ("fracture",)
"""Those of what it sees of the regions: is the femur broken and displaced."""
LOCATOR_CHANNELS = (("right_head", "logit"), ("left_head", "logit"))

REGIONS = tuple(Region)
LABELS_OF_REGION = {
    Region.TOTAL_HIP: (Label.NECK, Label.TROCHANTER, Label.INTERTROCHANTER),
    Region.FEMORAL_NECK: (Label.NECK,),
    Region.TROCHANTER: (Label.TROCHANTER,),
    Region.INTERTROCHANTER: (Label.INTERTROCHANTER,),
}
"""Total hip is neck, trochanter and intertrochanter; the head is excluded (Uemura et al.; ISCD Official Positions)."""
CANONICAL = (("areal_bmd_g_cm2", "g/cm2"), ("area_cm2", "cm2"), ("volumetric_bmd_mg_cm3", "mg/cm3"))
"""What the decomposer states of each region in the canonical (DXA) pose, as natural logarithms; BMC is areal BMD x area."""
