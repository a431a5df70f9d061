"""Data sets in and out: reading, admission, pixels, normalising, and the objects that the node writes."""

import logging
import warnings

from pydicom import config

# pydicom and highdicom quote values that do not fit their VR in warnings and log lines, and values are patient data. What is
# wrong in a peer's data set is judged and told by `admission` and `normalise`, without the values.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.ERROR)
for quoting in (r"Invalid value for VR", r"The string .* is unlikely to represent the intended person name"):
    warnings.filterwarnings("ignore", message=quoting, category=UserWarning)
