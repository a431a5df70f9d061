"""The words of a report in English and Japanese, in one place: Structured Report, overlay and command line say the same.

Sentences that come with a figure (notes of reading, assessment provisos, details of a refusal) are written where they arise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dicomnode.domain.measurement import Reason, Region, TrainingData
from dicomnode.domain.radiograph import Side


@dataclass(frozen=True)
class Wording:
    """What a report says in one language. Mappings are complete over their enums."""

    language: str
    """RFC 5646 tag."""
    title: str
    subtitle: str
    side: Mapping[Side, str]
    region: Mapping[Region, str]
    region_short: Mapping[Region, str]
    """For labels beside a contour."""
    reason: Mapping[Reason, str]
    """A few words."""
    reason_sentence: Mapping[Reason, str]
    """What it means, and what can be done."""
    classification: Mapping[str, str]
    """Keys are the values of the clinical layer's `Classification`."""
    magnification_source: Mapping[str, str]
    """Keys are the values of `HipMeasurement.magnification_source`."""
    not_measurable: str
    measured: str
    limitation: str
    """What stands in every result unless the configuration says it in other words."""
    trained_on: Mapping[TrainingData, str]
    """One sentence for reports; of what has none, nothing need be said."""
    trained_on_banner: Mapping[TrainingData, str]
    magnification: str
    areal_bmd: str
    bone_mineral_content: str
    area: str
    volumetric_bmd: str
    t_score: str
    z_score: str
    percent_yam: str
    classified: str
    interval: str
    as_projected: str
    """Heading of the areal BMD in the pose of the radiograph, beside that of the pose of densitometry."""
    canonical_pose: str
    """What the figures of a table refer to."""
    region_heading: str
    reference: str
    age_years: str
    age_unknown: str
    young_adult_mean: str
    class_bands: tuple[str, str, str]
    """Normal, low bone mass, osteoporosis, as the chart names its bands."""
    decomposed_bone: str
    magnified_radiograph: str
    no_reference: str
    criteria: str
    model: str
    patient: str


_ENGLISH = Wording(
    language="en",
    title="Hip bone mineral density",
    subtitle="Estimated from a plain radiograph",
    side=MappingProxyType({Side.RIGHT: "Right hip", Side.LEFT: "Left hip"}),
    region=MappingProxyType(
        {
            Region.TOTAL_HIP: "Total hip",
            Region.FEMORAL_NECK: "Femoral neck",
            Region.TROCHANTER: "Trochanter",
            Region.INTERTROCHANTER: "Intertrochanter",
        }
    ),
    region_short=MappingProxyType(
        {
            Region.TOTAL_HIP: "Total",
            Region.FEMORAL_NECK: "Neck",
            Region.TROCHANTER: "Troch.",
            Region.INTERTROCHANTER: "Inter.",
        }
    ),
    reason=MappingProxyType(
        {
            Reason.UNREADABLE: "Image cannot be read",
            Reason.NOT_A_RADIOGRAPH: "Not a plain radiograph",
            Reason.UNKNOWN_SCALE: "Pixel spacing unknown",
            Reason.NO_HIP: "No hip found",
            Reason.IMPLANT: "Implant",
            Reason.CUT_OFF: "Bone cut off",
            Reason.NOT_AP: "Not an AP view in range",
            Reason.FRACTURE: "Bone looks broken",
            Reason.LATERALITY: "Side contradicts the header",
            Reason.IMPLAUSIBLE: "Result not plausible",
        }
    ),
    reason_sentence=MappingProxyType(
        {
            Reason.UNREADABLE: "The pixels cannot be decoded, or they contradict the header.",
            Reason.NOT_A_RADIOGRAPH: "Only single-frame greyscale projection radiographs can be measured.",
            Reason.UNKNOWN_SCALE: "The image states no pixel spacing, so no area can be measured.",
            Reason.NO_HIP: "No hip was found in the image.",
            Reason.IMPLANT: "Metal lies in or over the bone.",
            Reason.CUT_OFF: "Part of the bone lies outside the image or the collimated field.",
            Reason.NOT_AP: "The hip is not seen in an anteroposterior view with its rotation, flexion and abduction in range.",
            Reason.FRACTURE: "The bone looks broken and displaced, so it is not measured. This is no diagnosis.",
            Reason.LATERALITY: "The side that the header states and the side that the image shows contradict each other.",
            Reason.IMPLAUSIBLE: "The decomposition does not re-explain the radiograph, or is no femur in shape or amount.",
        }
    ),
    classification=MappingProxyType(
        {
            "normal": "Normal",
            "low_bone_mass": "Low bone mass",
            "osteoporosis": "Osteoporosis",
            "within_expected_range_for_age": "Expected for age",
            "below_expected_range_for_age": "Below expected",
        }
    ),
    magnification_source=MappingProxyType(
        {"header": "from the image header", "calibrated": "from a calibrated pixel spacing", "assumed": "assumed"}
    ),
    not_measurable="Not measurable",
    measured="Measured",
    limitation=(
        "Opportunistic estimate from a plain radiograph. It is not a DXA measurement, does not rule out low bone mineral density "
        "and must not be the sole basis of a diagnosis or a treatment decision; confirm by DXA where clinically indicated."
    ),
    trained_on=MappingProxyType(
        {
            TrainingData.SIMULATED: (
                "The model was trained on simulated radiographs only; its accuracy on patients' radiographs has not been"
                " established."
            ),
            TrainingData.SIMULATED_AND_REAL: (
                "The model was trained on simulated radiographs and on real ones of one hospital; its accuracy elsewhere has not"
                " been established."
            ),
        }
    ),
    trained_on_banner=MappingProxyType(
        {
            TrainingData.SIMULATED: (
                "MODEL TRAINED ON SIMULATED X-RAYS \N{MIDDLE DOT} ACCURACY ON PATIENTS NOT ESTABLISHED"
            ),
            TrainingData.SIMULATED_AND_REAL: (
                "MODEL TRAINED IN PART ON SIMULATED X-RAYS \N{MIDDLE DOT} ACCURACY OUTSIDE OF ITS HOSPITAL NOT ESTABLISHED"
            ),
        }
    ),
    magnification="Magnification",
    areal_bmd="aBMD",
    bone_mineral_content="BMC",
    area="Area",
    volumetric_bmd="vBMD",
    t_score="T-score",
    z_score="Z-score",
    percent_yam="%YAM",
    classified="In the range of",
    interval="90 % interval",
    as_projected="As posed",
    canonical_pose=(
        "Figures are estimates for the pose of densitometry (neck in the coronal plane, shaft upright); "
        "\N{LEFT DOUBLE QUOTATION MARK}as posed\N{RIGHT DOUBLE QUOTATION MARK} is the areal density in the pose of this radiograph."
    ),
    region_heading="Region",
    reference="Reference",
    age_years="Age (years)",
    age_unknown="age not stated",
    young_adult_mean="young adult mean",
    class_bands=("Normal", "Low bone mass", "Osteoporosis"),
    decomposed_bone="decomposed femur, areal density",
    magnified_radiograph="radiograph, magnified",
    no_reference="No reference population for this patient",
    criteria="Criteria",
    model="Model",
    patient="Patient",
)

_JAPANESE = Wording(
    language="ja",
    title="股関節骨密度",
    subtitle="単純X線像からの推定",
    side=MappingProxyType({Side.RIGHT: "右股関節", Side.LEFT: "左股関節"}),
    region=MappingProxyType(
        {
            Region.TOTAL_HIP: "大腿骨近位部全体",
            Region.FEMORAL_NECK: "大腿骨頸部",
            Region.TROCHANTER: "転子部",
            Region.INTERTROCHANTER: "転子間部",
        }
    ),
    region_short=MappingProxyType(
        {
            Region.TOTAL_HIP: "全体",
            Region.FEMORAL_NECK: "頸部",
            Region.TROCHANTER: "転子部",
            Region.INTERTROCHANTER: "転子間部",
        }
    ),
    reason=MappingProxyType(
        {
            Reason.UNREADABLE: "画像を読み取れません",
            Reason.NOT_A_RADIOGRAPH: "単純X線像ではありません",
            Reason.UNKNOWN_SCALE: "画素間隔が不明",
            Reason.NO_HIP: "股関節が見つかりません",
            Reason.IMPLANT: "インプラント",
            Reason.CUT_OFF: "骨の一部が撮影範囲外",
            Reason.NOT_AP: "対応する正面像ではありません",
            Reason.FRACTURE: "骨の連続性に疑い",
            Reason.LATERALITY: "左右の記載と画像が矛盾",
            Reason.IMPLAUSIBLE: "結果が妥当ではありません",
        }
    ),
    reason_sentence=MappingProxyType(
        {
            Reason.UNREADABLE: "画素を復号できないか、ヘッダと矛盾しています。",
            Reason.NOT_A_RADIOGRAPH: "計測できるのは単一フレームのグレースケール単純X線像のみです。",
            Reason.UNKNOWN_SCALE: "画素間隔の記載がないため、面積を計測できません。",
            Reason.NO_HIP: "画像内に股関節が見つかりませんでした。",
            Reason.IMPLANT: "骨の内部または骨に重なって金属があります。",
            Reason.CUT_OFF: "骨の一部が画像または照射野の外にあります。",
            Reason.NOT_AP: "回旋・屈曲・外転が許容範囲内の正面像ではありません。",
            Reason.FRACTURE: "骨が折れてずれているように見えるため計測しません。骨折の有無を判定するものではありません。",
            Reason.LATERALITY: "ヘッダに記載された左右と画像上の左右が矛盾しています。",
            Reason.IMPLAUSIBLE: "分解結果が元のX線像を再現しないか、形状または量が大腿骨として妥当ではありません。",
        }
    ),
    classification=MappingProxyType(
        {
            "normal": "正常",
            "low_bone_mass": "骨量減少",
            "osteoporosis": "骨粗鬆症",
            "within_expected_range_for_age": "年齢相応",
            "below_expected_range_for_age": "年齢相応より低値",
        }
    ),
    magnification_source=MappingProxyType(
        {"header": "画像ヘッダによる", "calibrated": "校正済み画素間隔による", "assumed": "仮定値"}
    ),
    not_measurable="計測不可",
    measured="計測済み",
    limitation=(
        "単純X線像からの機会的な推定値です。DXAによる測定値ではなく、骨密度低下を否定するものではありません。"
        "この値のみで診断または治療方針を決定せず、臨床上必要な場合はDXAで確認してください。"
    ),
    trained_on=MappingProxyType(
        {
            TrainingData.SIMULATED: "このモデルは模擬X線像のみで学習されており、患者のX線像での精度は確立されていません。",
            TrainingData.SIMULATED_AND_REAL: (
                "このモデルは模擬X線像と一施設の実際のX線像で学習されており、他施設での精度は確立されていません。"
            ),
        }
    ),
    trained_on_banner=MappingProxyType(
        {
            TrainingData.SIMULATED: "模擬X線像で学習したモデル \N{MIDDLE DOT} 患者での精度は未確立",
            TrainingData.SIMULATED_AND_REAL: "模擬X線像と一施設のX線像で学習したモデル \N{MIDDLE DOT} 他施設での精度は未確立",
        }
    ),
    magnification="拡大率",
    areal_bmd="面積骨密度",
    bone_mineral_content="骨塩量",
    area="面積",
    volumetric_bmd="体積骨密度",
    t_score="Tスコア",
    z_score="Zスコア",
    percent_yam="%YAM",
    classified="該当区分",
    interval="90 % 区間",
    as_projected="撮影肢位",
    canonical_pose=(
        "数値は骨密度測定の標準肢位（頸部が前額面内、骨幹部が垂直）での推定値です。「撮影肢位」は本X線像の肢位での面密度です。"
    ),
    region_heading="部位",
    reference="基準集団",
    age_years="年齢（歳）",
    age_unknown="年齢の記載なし",
    young_adult_mean="若年成人平均",
    class_bands=("正常", "骨量減少", "骨粗鬆症"),
    decomposed_bone="分解された大腿骨の面積密度",
    magnified_radiograph="X線像（拡大）",
    no_reference="この患者に適用できる基準集団がありません",
    criteria="判定基準",
    model="モデル",
    patient="患者",
)

_WORDINGS = {wording.language: wording for wording in (_ENGLISH, _JAPANESE)}
LANGUAGES = tuple(_WORDINGS)


def wording(language: str) -> Wording:
    """Give the words of a language.

    Raises:
        ValueError: there is no such language here.
    """
    if language not in _WORDINGS:
        raise ValueError(f"no wording in language {language!r}; there is {', '.join(LANGUAGES)}")
    return _WORDINGS[language]
