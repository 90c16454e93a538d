"""Every word of the web page, in each of its languages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Text:
    """The page in one language. {names} in braces are filled in.

    reasons: the decoder's reasons, as patterns, and what is said for each; what fits none is said as it is.
    heard: of what the library says in English alone, to those who hear the page, what is said instead.
    """

    language: str
    # ---- the frame
    lead: str
    lead_several: str
    model: str
    one: str
    many: str
    about: str
    picture: str
    pictures: str
    samples: str
    # ---- an answer
    empty: str
    empty_many: str
    heat: str
    heat_note: str
    no_heat: str
    at_least: str
    unreadable: str
    gone: str
    busy: str
    failed: str
    # ---- several answers
    number: str
    class_name: str
    probability: str
    counted: str
    not_read: str
    download: str
    too_many: str
    # ---- the model
    accuracy: str
    labels_right: str
    measured: str
    calibration: str
    calibration_note: str
    n_classes: str
    network: str
    input_size: str
    views: str
    data: str
    split: str
    n_pictures: str
    unmeasured: str
    splits: dict[str, str]
    per_class: str
    recall: str
    precision: str
    reasons: tuple[tuple[str, str], ...] = ()
    heard: dict[str, str] = field(default_factory=dict)

    def why_unreadable(self, reason: str | None) -> str:
        """A sentence for a picture that the decoder refused for a reason."""
        said = str(reason)
        for pattern, words in self.reasons:
            if found := re.fullmatch(pattern, said):
                said = found.expand(words)
                break
        return self.unreadable.format(reason=said)


ENGLISH = Text(
    language="en",
    lead="Show it a picture, and it says which of {n} classes it sees.",
    lead_several="Show it a picture, and it says which of {n} classes are in it.",
    model="Model",
    one="One picture",
    many="Several",
    about="About",
    picture="Picture",
    pictures="Pictures",
    samples="Or try one of these, which it was not trained on",
    empty="The answer appears here.",
    empty_many="A table appears here, which you can download.",
    heat="Show what spoke for “{label}”",
    heat_note="The square that the network sees. Red spoke most for “{label}”; what is not coloured did not.",
    no_heat="There is no heat map of this network.",
    at_least="A picture may have several classes: those of at least {threshold} are ticked.",
    unreadable="This file could not be read as a picture: {reason}.",
    gone="The picture is no longer on the server, which keeps none. Please choose it again.",
    busy="Many pictures are waiting just now. Please try again in {seconds} s.",
    failed="Something went wrong on the server; its log says what.",
    number="Picture",
    class_name="Class",
    probability="Probability",
    counted="{n} pictures",
    not_read="{n} could not be read",
    download="Download as CSV",
    too_many="At most {n} pictures at once; the first {n} are answered. For more there is the command lenext predict.",
    accuracy="Accuracy",
    labels_right="All labels right",
    measured="95 % interval: {low} to {high}, measured on {n} {split} pictures",
    calibration="Calibration error",
    calibration_note="how far stated probabilities are from how often they are right, on average",
    n_classes="Classes: {n}",
    network="Network",
    input_size="It sees",
    views="Mirrored or turned views averaged",
    data="Data: {name}",
    split="Split",
    n_pictures="Pictures",
    unmeasured="How well it does is not recorded here.",
    splits={"train": "training", "val": "validation", "test": "test"},
    per_class="Class by class",
    recall="Found (recall)",
    precision="Right when said (precision)",
)

CHINESE = Text(
    language="zh",
    lead="给它一张图片，它会说出是 {n} 个类别中的哪一个。",
    lead_several="给它一张图片，它会说出其中有 {n} 个类别中的哪些。",
    model="模型",
    one="一张图片",
    many="多张图片",
    about="关于模型",
    picture="图片",
    pictures="图片",
    samples="或者试试这些训练时没有用过的图片",
    empty="结果会显示在这里。",
    empty_many="这里会显示一张可以下载的表格。",
    heat="显示“{label}”的依据",
    heat_note="网络看到的正方形区域。越红的地方越支持“{label}”；没有着色的地方不支持它。",
    no_heat="这个网络没有热力图。",
    at_least="一张图片可以有多个类别：概率不低于 {threshold} 的打了勾。",
    unreadable="这个文件无法作为图片读取：{reason}。",
    gone="图片已不在服务器上（服务器不保留图片）。请重新选择。",
    busy="现在等待的图片很多。请在 {seconds} 秒后再试。",
    failed="服务器出错了；原因见它的日志。",
    number="图片",
    class_name="类别",
    probability="概率",
    counted="{n} 张图片",
    not_read="{n} 张无法读取",
    download="下载 CSV",
    too_many="一次最多 {n} 张图片；只回答前 {n} 张。更多图片请用命令 lenext predict。",
    accuracy="准确率",
    labels_right="标签全部正确",
    measured="95 % 区间：{low} 至 {high}，在 {n} 张{split}图片上测得",
    calibration="校准误差",
    calibration_note="所说的概率与实际正确的频率平均相差多少",
    n_classes="类别：{n} 个",
    network="网络",
    input_size="输入大小",
    views="取平均的镜像或旋转视角数",
    data="数据：{name}",
    split="划分",
    n_pictures="图片数",
    unmeasured="这里没有记录它的测试结果。",
    splits={"train": "训练", "val": "验证", "test": "测试"},
    per_class="各个类别",
    recall="找到的比例（召回率）",
    precision="说对的比例（精确率）",
    reasons=(
        (r"the file is empty .*", r"文件是空的（0 字节）"),
        (r"not an image: the content is text", r"内容是文本，不是图片"),
        (r"not an image: the content is a web page \(HTML\)", r"内容是网页（HTML），不是图片"),
        (r"not an image: the content is XML or SVG.*", r"内容是 XML 或 SVG，没有像素"),
        (r"not an image: the content is a zip archive", r"内容是 zip 压缩包，不是图片"),
        (r"not an image: the content is a PDF", r"内容是 PDF，不是图片"),
        (r"not an image: .*", r"不是任何已知的图片格式"),
        (r"more pixels than the limit of (\d+) megapixels", r"像素超过 \1 百万的上限"),
        (r"(\d+) x (\d+) pixels are more than the limit of (\d+) megapixels", r"\1 x \2 像素，超过 \3 百万像素的上限"),
        (r"the picture has no pixels", r"图片没有像素"),
        (r"a JPEG that is drawn in (\d+) passes.*", r"这个 JPEG 要画 \1 遍，只会让解码器白忙"),
        (r"a TIFF with a plane for each channel.*", r"这种每个通道一个平面的 TIFF 无法读取；请存成像素交错的形式"),
        (r"HEIC pictures need one more package: (.*)", r"读取 HEIC 图片还需要一个软件包：\1"),
        (r"damaged or cut off in its header.*", r"文件头损坏、不完整，或属于无法读取的种类"),
        (r"damaged or cut off \(the file ends .*\)", r"文件损坏或不完整（图片没有完就到了文件末尾）"),
        (r"damaged.*", r"文件损坏或不完整"),
    ),
    heard={
        "File upload": "上传文件",
        "Upload file": "上传文件",
        "Capture from camera": "用摄像头拍照",
        "capture photo": "拍照",
        "select input source": "选择摄像头",
        "Paste from clipboard": "从剪贴板粘贴",
        "Remove Image": "移除图片",
        "Remove this file": "移除这个文件",
        "Close": "关闭",
    },
)

LANGUAGES = {text.language: text for text in (ENGLISH, CHINESE)}


def language_of(accept: str) -> str:
    """The first of our languages in the order of an Accept-Language header; English where there is none."""
    wanted = []
    for item in accept.split(","):
        name, _, quality = item.strip().partition(";q=")
        try:
            wanted.append((-float(quality or 1), name.lower().split("-")[0]))
        except ValueError:
            continue
    names = [name for _, name in sorted(wanted, key=lambda pair: pair[0])]
    return next((name for name in names if name in LANGUAGES), ENGLISH.language)
