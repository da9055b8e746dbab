# SPDX-License-Identifier: Apache-2.0
"""Draw the pictures of the guides while the site is built; docs/pictures/draw.py makes them."""

import importlib.util
from pathlib import Path

from mkdocs.structure.files import File


def on_files(files, config):
    """Called by MkDocs with the files of the site: add `pictures/NAME.svg` for each picture."""
    for name, draw in drawings(Path(config.docs_dir)).items():
        files.append(File.generated(config, f"pictures/{name}.svg", content=draw()))
    return files


def drawings(docs):
    """The functions of docs/pictures/draw.py, by the name of the picture that each returns."""
    spec = importlib.util.spec_from_file_location("draw", docs / "pictures" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PICTURES
