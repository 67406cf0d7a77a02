"""Draws digits.png of a run: `python docs/images/digits.py runs/digits`. Above real images, below the set."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dasm_ray.config.keys import Data
from dasm_ray.report.page import draw_rows
from dasm_ray.store.artifact import read_artifact
from dasm_ray.store.datasets.catalogue import first_pictures, open_source
from dasm_ray.store.description import artifact_place
from dasm_ray.store.place import Place

GAP = 12

artifact = read_artifact(artifact_place(Place(sys.argv[1])))
levels = np.rint(artifact.visible() * 255).astype(np.uint8)
each = len(levels) // len(artifact.class_names)
made = [np.stack([levels[artifact.labels == label][row] for label in range(10)]) for row in range(each)]
of_class = first_pictures(open_source(Data()), Data(), each)
real = [np.stack([images[row] for images in of_class]) for row in range(each)]
above, below = (Image.open(io.BytesIO(draw_rows(rows))) for rows in (real, made))
sheet = Image.new("L", (above.width, above.height + GAP + below.height), 255)
sheet.paste(above, (0, 0))
sheet.paste(below, (0, above.height + GAP))
sheet.save(Path(__file__).with_suffix(".png"), optimize=True)
