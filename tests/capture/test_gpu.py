"""On a GPU: float16 by default, and the values of a CPU's float32 within its precision."""

import pytest
import torch
from safetensors.torch import load_file

from capture.run import capture
from capture.settings import CaptureSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_float16_on_a_gpu(tiny_llava, image_dir, query_file, last_store, tmp_path):
    settings = CaptureSettings(
        model=str(tiny_llava),
        dataset=query_file,
        image_dir=image_dir,
        output_dir=tmp_path / "store",
        batch_size=5,
        chunk_samples=3,
    )
    capture(settings, device=torch.device("cuda"))
    for path in sorted((last_store / "chunks").iterdir()):
        exact, found = load_file(path), load_file(tmp_path / "store" / "chunks" / path.name)
        for name in (f"{kind}_{layer:02d}" for kind in ("x", "mlp_out") for layer in range(32)):
            assert found[name].dtype == torch.float16
            error = (found[name].float() - exact[name]).norm() / exact[name].norm()
            assert error < 3e-2, name
