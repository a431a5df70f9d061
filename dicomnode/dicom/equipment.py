"""Who made an object: the General Equipment module's values, the same in every result."""

from dataclasses import dataclass

import dicomnode
from dicomnode.dicom.uids import device_uid


@dataclass(frozen=True)
class Equipment:
    """This installation as DICOM names it. Empty text means that the attribute is left out.

    Source: PS3.3 C.7.5.1 (General Equipment).
    """

    manufacturer: str = "dicomnode"
    model_name: str = "dicomnode-bmd"
    software_version: str = dicomnode.__version__
    serial_number: str = ""
    station_name: str = ""
    institution_name: str = ""
    institutional_department_name: str = ""

    @property
    def uid(self) -> str:
        """Device Observer UID of this installation."""
        return device_uid(self.manufacturer, self.model_name, self.serial_number, self.station_name)

    @property
    def implementation_version_name(self) -> str:
        """Implementation Version Name (0002,0013), at most 16 characters. Source: PS3.7 D.3.3.2."""
        return f"DICOMNODE_{self.software_version}"[:16]
