"""Models and a run that an earlier version wrote, at commit bd8bcf9, are read as they were.

The images are sin(37 t) for 720 values of t from -1 to 1; predictions of the first four were kept beside the models.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvxcnn import ConvexCNNClassifier, ConvexCNNRegressor, ConvexConvBlock, LayerwiseCNN
from cvxcnn.commands.explain import main as explain

SAVED = Path(__file__).parent / "saved"
IMAGES = np.sin(37 * np.linspace(-1, 1, 720).reshape(20, 1, 6, 6))
KINDS: dict[str, Any] = {
    "block": ConvexConvBlock,
    "gated_block": ConvexConvBlock,
    "stack": LayerwiseCNN,
    "projected_stack": LayerwiseCNN,
    "classifier": ConvexCNNClassifier,
    "regressor": ConvexCNNRegressor,
}


@pytest.mark.parametrize("name", KINDS)
def test_models_of_before_predict_as_they_did_and_can_be_saved_again(name: str, tmp_path: Path) -> None:
    model = KINDS[name].load(SAVED / name)
    expected = np.array(json.loads((SAVED / "predictions.json").read_text())[name])
    predicted = model.predict(IMAGES[:4])
    assert (predicted == expected).all() if expected.dtype.kind == "U" else np.allclose(predicted, expected, rtol=1e-12)
    model.save(tmp_path / "again")
    assert (KINDS[name].load(tmp_path / "again").predict(IMAGES) == model.predict(IMAGES)).all()


def test_a_block_of_before_has_its_certificate() -> None:
    block = ConvexConvBlock.load(SAVED / "block")
    assert block.certificate_.kind == "searched" and block.certificate_.networks == "all"
    assert block.result_.status == "optimal" and block.reg_ == 0.05 and block.n_neurons_ == len(block.neurons_)


def test_a_run_of_before_is_explained_and_has_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(SAVED / "run", folder)
    assert explain([str(folder), "--images", "2", "--method", "gradcam"]) == 0
    assert capsys.readouterr().err == ""
    page = (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['layers'][0]['convex']['objective']:.6g}" in page
