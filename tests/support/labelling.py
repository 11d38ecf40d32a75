"""Three classes, and images and requests of which only the numbers matter."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ahfal_app.labels.store import LabelRequest
from ahfal_app.oracle import EncodedImage

CLASSES = ("healthy", "benign", "malignant")


def encoded(sample: int, format_: str = "PNG") -> EncodedImage:
    content = io.BytesIO()
    pixels = np.random.default_rng(sample).integers(0, 256, (32, 48), dtype=np.uint8)
    Image.fromarray(pixels).save(content, format=format_)
    return EncodedImage(f"ward/{sample}.{format_.lower()}", content.getvalue())


def request(
    *samples: int, cycle: int = 1, readers: int = 1, rule: str = "majority"
) -> LabelRequest:
    n = len(samples)
    scores, guesses = (0.5,) * n, (2,) * n
    return LabelRequest(
        f"request{cycle}", cycle, "entropy", samples, scores, guesses, readers, rule
    )
