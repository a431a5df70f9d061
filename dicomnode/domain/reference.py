"""A reference population for one sex and region, as the chart of a report draws it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReferenceCurve:
    """Areal BMD of a reference population against age.

    `ages_years`, `mean_g_cm2` and `sd_g_cm2` have equal length, ages rising; they are empty where a population states only its
    young adults, and then `young_mean` and `young_sd` are set.

    Raises:
        ValueError: the lengths differ, the ages do not rise, or neither curve nor young adults are given.
    """

    name: str
    """As it stands in the report, e.g. "NHANES III White female"."""
    ages_years: tuple[float, ...] = ()
    mean_g_cm2: tuple[float, ...] = ()
    sd_g_cm2: tuple[float, ...] = ()
    young_mean: float | None = None
    """Mean areal BMD of young adults, g/cm2: where the T-score is 0."""
    young_sd: float | None = None
    """Standard deviation of young adults, g/cm2."""
    class_limits_g_cm2: tuple[float, float] | None = None
    """(osteoporosis from here downwards, normal from here upwards), where criteria other than T = -2.5 and -1 decide."""

    def __post_init__(self) -> None:
        if not len(self.ages_years) == len(self.mean_g_cm2) == len(self.sd_g_cm2):
            raise ValueError(f"reference {self.name}: ages, means and standard deviations must be equally many")
        if any(later <= earlier for earlier, later in zip(self.ages_years, self.ages_years[1:], strict=False)):
            raise ValueError(f"reference {self.name}: ages must rise, found {self.ages_years}")
        if len(self.ages_years) < 2 and (self.young_mean is None or self.young_sd is None):
            raise ValueError(f"reference {self.name}: needs two or more ages, or mean and SD of young adults")

    @property
    def by_age(self) -> bool:
        """Whether the population is known age by age."""
        return len(self.ages_years) >= 2

    @property
    def limits_g_cm2(self) -> tuple[float, float] | None:
        """Class limits (osteoporosis from the first downwards, normal from the second upwards); None where unknown.

        Source: WHO Technical Report Series 843 (1994): T = -2.5 and T = -1.
        """
        if self.class_limits_g_cm2 is not None:
            return self.class_limits_g_cm2
        if self.young_mean is None or self.young_sd is None:
            return None
        return self.young_mean - 2.5 * self.young_sd, self.young_mean - self.young_sd
