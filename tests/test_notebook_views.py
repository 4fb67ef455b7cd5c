"""What notebooks show of blocks, stacks and certificates: pictures, bounds and a curve, well-formed and escaped."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from eq2 import eq2_block
from PIL import Image
from problems import digits

from cvxcnn import Certificate, LayerwiseCNN
from cvxcnn.core.markup import sparkline, table


class Closed(HTMLParser):
    """Refuses tags that aren't closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[bytes] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(base64.b64decode(str(dict(attributes)["src"]).split(",")[1]))
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_stack_shows_filters_bounds_and_how_they_closed() -> None:
    images, labels = digits(60)
    block = eq2_block(gates=8, reg=0.5, penalty="dense", bias=True)
    stack = LayerwiseCNN(layers=2, block=block)
    assert stack._repr_html_().startswith("<pre>LayerwiseCNN(") and block._repr_html_().startswith("<pre>")
    stack.fit(images, np.eye(10)[labels])
    shown = Closed(stack._repr_html_())
    for number, fitted in enumerate(stack.blocks_, 1):
        own = fitted._repr_html_()
        assert Closed(own).pictures and own in stack._repr_html_()
        assert f"layer {number}: objective {fitted.result_.objective:.6g}" in stack._repr_html_()
        assert f"{fitted.certificate_.sampled_bound:.6g} (proved)" in own
        assert own.count("<polyline") == 2 * (len(fitted.result_.history) > 0)
    # Of the first layer, the pictures are its largest filters.
    first = stack.blocks_[0]
    row = int(first.neurons_.norms().argmax())
    kernel = first.neurons_.filters[row, :-1].reshape(3, 3).numpy()
    with Image.open(io.BytesIO(shown.pictures[0])) as picture:
        pixels = np.asarray(picture).astype(int)
    assert np.array_equal(pixels[..., 0] > pixels[..., 2], kernel > 0)


@pytest.mark.parametrize(("kind", "said"), [("proved", "9 (proved)"), ("searched", "9 (searched)"), ("none", "")])
def test_a_certificate_says_no_more_than_it_knows(kind: str, said: str) -> None:
    shown = Certificate(10.0, 9.5, 9.0, kind, n_searched=7)._repr_html_()
    Closed(shown)
    assert "9.5 (proved)" in shown and said in shown
    assert ("all networks" in shown) == bool(said) and ("7 starts" in shown) == (kind == "searched")


def test_a_sparkline_goes_through_its_points() -> None:
    shown = sparkline([0.0, 1.0, 2.0], [3.0, 2.0, 1.0], [-np.inf, 0.0, 1.0], "a < b")
    first, second = (
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall('points="(.*?)"', shown)
    )
    assert len(first) == 3 and len(second) == 2 and first[-1] == second[-1]
    assert first[0][1] < first[1][1] < first[2][1] and "a &lt; b" in shown
    assert sparkline([1.0], [1.0], [-np.inf], "nothing") == ""


def test_tables_escape_what_they_are_given() -> None:
    shown = table([("<b>", "&")], caption="<i>")
    Closed(shown)
    assert "&lt;b&gt;" in shown and "&amp;" in shown and "<caption" in shown and "<i>" not in shown
