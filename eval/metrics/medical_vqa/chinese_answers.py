"""
Closed questions in Chinese under the strict protocol: who says yes, who says no, and which option is named.

Chinese has no spaces, so whole words cannot be asked for. And it has no one word for yes: a question is affirmed by
repeating its verb ("包含肝脏吗?" "包含"), or with 是, 对, 有. What negates stands before the verb: 不是, 没有, 不包含.

All texts here are NFKC-folded, lower case and without role words, as `vqa_scoring.clean` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


# Inside a character class: the Han characters of every block.
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

_VERBS = "是|对|有|包含|包括|含有?|存在|可以|能|会|属于|需要|正确"
_NEGATED_VERB = rf"(?:不|没有?|未|并?非)(?:{_VERBS})"
_PARTICLES = "[的了啊呢吧]*"
# A whole answer, or its first clause: only such a reference makes a yes/no question. "无回声" and "对称" are options.
_BARE_NO = re.compile(rf"(?:{_NEGATED_VERB}|否|不|没有?|无|错误?){_PARTICLES}")
_BARE_YES = re.compile(rf"(?:{_VERBS}|能够|嗯){_PARTICLES}")
# Anywhere in a clause. "所有", "具有" and the like are other words; so are "有限" and "有机".
_SAYS_NO = re.compile(rf"{_NEGATED_VERB}|没有|未见|未发现|未显示|(?<!是)否|^没|^无(?!法)")
_SAYS_YES = re.compile(r"(?<![所具还只])有(?![限机])|包含|包括|存在|可以")
# Only at the start of an answer: later on, "是" is a mere copula ("不是, 是脾脏").
_STARTS_WITH_YES = re.compile(r"是|对(?![称比侧于应])|能(?![谱量])|会(?!诊|阴)|属于|需要|正确")
# Says nothing: repeats the question, or refuses to answer it.
_QUESTION = re.compile(r"是否|是不是|有没有|有无|能不能|会不会|可不可以|对不对|[吗么嘛]$")
_UNDECIDED = re.compile(r"无法|不(?:太|能)?确定|不清楚|不知道|难以判断")
_CLAUSE_END = re.compile(r"[,.;:!?。、\n]|(?<!不)但是?|然而|而且?")
_OR = re.compile("还是|或")

# What may be said around an option or left out: "右侧", "右边" and "右" are one, and so are "冠状面" and "冠状位".
_FILLER_BEFORE = re.compile(r"^(?:在|位于|是|为)(?=.)")
_FILLER_AFTER = re.compile(r"(?<=.)(?:[侧边面位部的]|平面|加权|成像|图像|像|扫描)$")
_NEGATION = r"(?:不是?|没有?|无|并?非|未见?)"
# Options that exclude each other, by their core.
CHINESE_FAMILIES = tuple(
    frozenset(family.split())
    for family in (
        "左 右",
        "上 下",
        "前 后",
        "内 外",
        "单 双",
        "单 两",
        "横断 冠状 矢状",
        "轴 冠状 矢状",
        "横轴 冠状 矢状",
        "水平 冠状 矢状",
        "正常 异常",
        "健康 异常",
        "良性 恶性",
        "急性 慢性",
        "男 女",
        "男性 女性",
        "高密度 低密度 等密度",
        "高信号 低信号 等信号",
        "高回声 低回声 等回声 无回声",
        "增大 缩小",
        "黑色 白色 灰色",
    )
)
# Such a reference may as well be the answer to "健康吗?": a bare "是" then agrees with it.
_ADJECTIVES = re.compile(r"(不)?(?:健康|正常|异常)")


def polarities(text: str) -> set[str]:
    """
    What an answer says, "yes", "no", both or nothing, clause by clause. A clause with a negated verb says no.

    Example:
        >>> polarities("是的"), polarities("不是"), polarities("图片中没有肝脏")
        ({'yes'}, {'no'}, {'no'})
        >>> polarities("图中包含肝脏吗?不包含"), polarities("无法判断"), sorted(polarities("有,没有"))
        ({'no'}, set(), ['no', 'yes'])
    """
    said = set()
    for position, clause in enumerate(_clauses(text)):
        if _QUESTION.search(clause) or _UNDECIDED.search(clause):
            continue
        if _BARE_NO.fullmatch(clause) or _SAYS_NO.search(clause):
            said.add("no")
        elif (
            _BARE_YES.fullmatch(clause)
            or _SAYS_YES.search(clause)
            or (position == 0 and _STARTS_WITH_YES.match(clause))
        ):
            said.add("yes")
    return said


def polarity_of_reference(text: str) -> str | None:
    """
    "yes" or "no" for the answer to a yes/no question, `None` for an option such as "左侧", "无回声" or "健康".

    Example:
        >>> polarity_of_reference("包含"), polarity_of_reference("不是的。"), polarity_of_reference("对称")
        ('yes', 'no', None)
    """
    first = next(_clauses(text), "")
    if _BARE_NO.fullmatch(first):
        return "no"
    return "yes" if _BARE_YES.fullmatch(first) else None


def _clauses(text: str) -> Iterator[str]:
    """The non-empty clauses of a text, without spaces; a question keeps its last particle, by which it is known."""
    for clause in _CLAUSE_END.split(re.sub(r"\s+", "", text)):
        if clause:
            yield clause


def option_core(option: str) -> str:
    """
    An option without what may be said either way.

    Example:
        >>> option_core("在右侧"), option_core("冠状面。"), option_core("t2加权像"), option_core("面")
        ('右', '冠状', 't2', '面')
    """
    core = re.sub(r"[\s,.;:!?。、]+", "", option)
    shorter = _FILLER_AFTER.sub("", _FILLER_BEFORE.sub("", core))
    while shorter != core:
        core, shorter = shorter, _FILLER_AFTER.sub("", shorter)
    return core


def score_option(prediction: str, reference: str, families: Iterable[frozenset[str]]) -> float:
    """
    1.0 if `prediction` names the option `reference` without a negation, names no rival and leaves no choice open.

    Args:
        families: Latin-script options that exclude each other ("t1", "t2"), beside `CHINESE_FAMILIES`.

    Example:
        >>> [score_option(prediction, "左边", []) for prediction in ("位于左侧", "左右两侧", "不是左侧", "右")]
        [1.0, 0.0, 0.0, 0.0]
    """
    core = option_core(reference)
    adjective = _ADJECTIVES.fullmatch(core)
    if adjective and polarities(prediction) and not _ADJECTIVES.search(prediction):
        return float(polarities(prediction) == {"no" if adjective[1] else "yes"})
    if core.startswith("不"):  # to name "不健康" is to negate "健康", however that is put
        negated, named = _mentions(prediction, core[1:])
    else:
        named, negated = _mentions(prediction, core)
    rivals = {rival for family in (*CHINESE_FAMILIES, *families) if core in family for rival in family - {core}}
    names_rival = any(_mentions(prediction, rival)[0] for rival in rivals)
    undecided = _OR.search(prediction) is not None and _OR.search(reference) is None
    return float(named and not negated and not names_rival and not undecided)


def _mentions(text: str, option: str) -> tuple[bool, bool]:
    """Whether `text` names `option`, and whether it names it with a negation right before it."""
    text = re.sub(rf"(?<=[{HAN}])\s+(?=[{HAN}])", "", text)
    # "ct" must not be found in "ctx", nor "1" in "10"; Han characters have no such edges.
    start = r"(?<![a-z\d])" if re.match(r"[a-z\d]", option) else ""
    end = r"(?![a-z\d])" if re.search(r"[a-z\d]$", option) else ""
    found = [match[1] is not None for match in re.finditer(f"({_NEGATION})?\\s*{start}{re.escape(option)}{end}", text)]
    return False in found, True in found
