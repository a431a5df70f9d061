"""What a site decides about its reports."""

from dataclasses import dataclass

from dicomnode.domain.wording import Wording, wording


@dataclass(frozen=True)
class ReportSettings:
    """How results are worded and what they may show.

    Raises:
        ValueError: `language` has no wording.
    """

    language: str = "en"
    """One of `domain.wording.LANGUAGES`."""
    limitation: str = ""
    """The sentence that stands in every result; empty: the wording's own."""
    author_organisation: str = ""
    """Institution that is accountable for this installation; empty: not stated."""
    burn_in_identification: bool = False
    """Whether the overlay shows the patient's name, ID and the study date. Off: nothing on the picture identifies anybody."""

    def __post_init__(self) -> None:
        wording(self.language)

    @property
    def words(self) -> Wording:
        """The words of `language`."""
        return wording(self.language)

    @property
    def limitation_sentence(self) -> str:
        """The limitation of use as it stands in every result."""
        return self.limitation or self.words.limitation
