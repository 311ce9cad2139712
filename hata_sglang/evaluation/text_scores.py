"""What the metrics of `hata_sglang.evaluation.metrics` are made of: words, F1, best of several."""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType

from hata_sglang.errors import Refusal

Metric = Callable[[str, Sequence[str], Sequence[str]], float]
#: One prediction against one reference.
Single = Callable[[str, str], float]

ARTICLES = re.compile(r"\b(a|an|the)\b")
CHINESE_SIGNS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def optional_package(name: str) -> ModuleType:
    """Import a package of the extra ``eval``.

    Raises
    ------
    Refusal
        If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise
        expected = 'installed for this metric: pip install "hata-sglang[eval]"'
        raise Refusal.of(f"package {package}", expected, "no such package") from None


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and English articles (SQuAD's normalisation)."""
    kept = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return ARTICLES.sub(" ", kept).split()


def plain_chinese(text: str) -> str:
    """Lower-case text without punctuation of either script and without white space."""
    unwanted = set(string.punctuation + CHINESE_SIGNS)
    return "".join("".join(sign for sign in text.lower() if sign not in unwanted).split())


def token_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, each counted as often as it occurs."""
    same = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * same / (len(prediction) + len(reference)) if same else 0.0


def best(single: Single) -> Metric:
    """Metric that takes the best of the references, as LongBench and SQuAD do."""

    def metric(
        prediction: str, references: Sequence[str], all_classes: Sequence[str] = ()
    ) -> float:
        return float(max(single(prediction, reference) for reference in references))

    return metric
